"""What a run shows while it works: a bar for each stage on a terminal, else a line when something changed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from finetuning_api.base import ProgressStatus, Resource, Stage, StageState
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.relocation import Relocation
from finetuning_cli.local.store import Key

_LINE_SECONDS = 5.0
_SHOWN = frozenset({StageState.RUNNING, StageState.SUCCEEDED, StageState.FAILED})
_UNENDED = frozenset({StageState.PENDING, StageState.RUNNING})


def stage_note(stage: Stage, progress: ProgressStatus | None) -> str:
    """Return what a stage does, with the numbers of the program where it is the running one."""
    parts = [stage.message]
    if stage.state is StageState.RUNNING and progress is not None:
        if progress.step is not None and progress.total_steps:
            parts.append(f"step {progress.step}/{progress.total_steps}")
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.4g}")
        if progress.tokens_per_second:
            parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
        if progress.eta_seconds is not None:
            parts.append(f"{duration(progress.eta_seconds)} left")
    if stage.attempts > 1:
        parts.append(f"attempt {stage.attempts}")
    return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Return a span of time for a person."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004  (seconds of a minute)
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def stages_of(resource: Resource) -> tuple[Sequence[Stage], ProgressStatus | None]:
    """Return the stages of an object and the progress of the running one."""
    if isinstance(resource, FineTuningJob | EvaluationJob | Relocation):
        return resource.status.stages, resource.status.progress
    return (), None


@dataclass(slots=True)
class LiveDisplay:
    """Shows a run; use it as a context manager so that bars are taken down."""

    console: Console
    clock: Callable[[], float] = time.monotonic
    _bars: Progress | None = None
    _tasks: dict[tuple[Key, str], TaskID] = field(default_factory=dict)
    _told: dict[tuple[Key, str], tuple[StageState, str]] = field(default_factory=dict)
    _told_at: float = float("-inf")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            name = TextColumn("{task.description}", table_column=Column(no_wrap=True))
            note = TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
            columns = (name, BarColumn(bar_width=20), TaskProgressColumn(), TimeElapsedColumn(), note)
            self._bars = Progress(*columns, console=self.console, expand=True)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def note(self, text: str) -> None:
        """Say one thing."""
        self.console.print(escape(text), soft_wrap=True)

    def show(self, objects: Mapping[Key, Resource], roots: tuple[Key, ...]) -> None:
        """Show the stages of what the manifest asks for; why one failed is told once, at the end."""
        recent = self.clock() - self._told_at < _LINE_SECONDS
        for key in roots:
            stages, progress = stages_of(objects[key])
            for stage in stages:
                tries_again = stage.state is StageState.PENDING and stage.attempts > 0
                if stage.state in _SHOWN or tries_again:
                    self._show_stage(key, stage, progress, recent=recent)

    def _show_stage(self, key: Key, stage: Stage, progress: ProgressStatus | None, *, recent: bool) -> None:
        place, note = (key, stage.name), stage_note(stage, progress)
        if self._bars is not None:
            if place not in self._tasks:
                self._tasks[place] = self._bars.add_task(f"{key[1]} {stage.name}", total=100, note="")
            self._bars.update(self._tasks[place], completed=stage.percent, note=escape(note))
            if stage.state not in _UNENDED:
                self._bars.stop_task(self._tasks[place])
            return
        before = self._told.get(place)
        line = {StageState.RUNNING: f"{stage.percent} % {note}".strip(), StageState.FAILED: ""}.get(stage.state, note)
        now_told = (stage.state, line)
        if before == now_told or (before is not None and before[0] is stage.state and recent):
            return
        self._told[place] = now_told
        self._told_at = self.clock()
        self.note(f"{key[1]} {stage.name}: {' '.join(filter(None, (stage.state.value.lower(), line)))}")
