"""How far an evaluation is, over candidates and tasks, and where it may be stopped."""

from collections.abc import Callable, Sequence

from finetuning_api.metrics import Task
from finetuning_api.runconfig import ProgressMetric
from finetuning_evaluator.tasks import cost
from finetuning_workload.program import StopFlag
from finetuning_workload.progress import Reporter


class Progress:
    """Turns what is finished into one fraction, and raises Interrupted when the program was asked to stop."""

    def __init__(self, reporter: Reporter, stop: StopFlag, *, tasks: Sequence[Task], candidates: int) -> None:
        self._reporter = reporter
        self._stop = stop
        self._per_candidate = sum(cost(task) for task in tasks)
        self._total = self._per_candidate * candidates
        self._done = 0.0

    def note(self, text: str) -> None:
        """Say what is done now."""
        self._stop.raise_if_set("stopped; finished parts are kept")
        self._reporter.update(self._done / self._total, note=text)

    def of(self, candidate: str, task: Task) -> Callable[[int, int], None]:
        """Return the callback for one task of one candidate."""

        def on_progress(done: int, total: int) -> None:
            self._stop.raise_if_set(f"stopped in {task} of {candidate}; finished parts are kept")
            self._reporter.update(
                (self._done + cost(task) * done / max(total, 1)) / self._total,
                note=f"{candidate}: {task} {done / max(total, 1):.0%}",
                metrics={ProgressMetric.ITEMS: done, ProgressMetric.TOTAL_ITEMS: total},
            )

        return on_progress

    def finish(self, task: Task) -> None:
        """Count a task of one candidate as done."""
        self._done += cost(task)

    def finished_candidates(self, count: int) -> None:
        """Count candidates as done whose parts were found finished."""
        self._done = self._per_candidate * count
