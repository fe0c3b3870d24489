"""The progress of a job, for loops, terminals and notebooks."""

import html
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetuning_api.base import ProgressStatus, Resource, Stage, StagedStatus, StageState

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_COLOURS = {StageState.SUCCEEDED: "#2e7d32", StageState.FAILED: "#c62828", StageState.RUNNING: "#1565c0"}
_WAITING_COLOUR = "#9e9e9e"


@dataclass(slots=True)
class Progress:
    """A job as it goes on. Each step of a loop over it yields the job after its next change, until it has ended."""

    changes: Iterator[Resource]
    latest: Resource | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[Resource]:
        for resource in self.changes:
            self.latest = resource
            yield resource

    def show(self) -> Resource | None:
        """Show bars until the job has ended, and return it: in a notebook in place, else on a terminal."""
        if (display := _notebook_display()) is not None:
            self._show_in_notebook(display)
        else:
            self._show_on_terminal()
        return self.latest

    def _show_in_notebook(self, display: Any) -> None:  # noqa: ANN401  (a module that may not be installed)
        handle = display.display(display.HTML("waits for the job"), display_id=True)
        for resource in self:
            handle.update(display.HTML(progress_html(resource)))

    def _show_on_terminal(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bars

        with Bars(console=Console(stderr=True)) as bars:
            tasks: dict[str, TaskID] = {}
            for resource in self:
                _advance(bars, tasks, resource)

    def _repr_html_(self) -> str:
        if self.latest is None:
            self.latest = next(iter(self.changes), None)
        return progress_html(self.latest) if self.latest is not None else ""


def _advance(bars: "Bars", tasks: "dict[str, TaskID]", resource: Resource) -> None:
    for stage in _status(resource).stages:
        if stage.state is StageState.PENDING and stage.name not in tasks:
            continue
        if stage.name not in tasks:
            tasks[stage.name] = bars.add_task(stage.name, total=100)
        bars.update(tasks[stage.name], completed=stage.percent)


def progress_html(resource: Resource) -> str:
    """Return the stages of an object as a small table with bars."""
    status = _status(resource)
    title = f"<b>{resource.kind} {html.escape(resource.metadata.name)}</b> {html.escape(str(status.phase))}"
    return f"<div>{title}<table>{''.join(_row(stage, status.progress) for stage in status.stages)}</table></div>"


def _row(stage: Stage, progress: ProgressStatus | None) -> str:
    colour = _COLOURS.get(stage.state, _WAITING_COLOUR)
    bar = (
        '<div style="width:12em;background:#e0e0e0">'
        f'<div style="width:{stage.percent}%;background:{colour}">&nbsp;</div></div>'
    )
    note = stage_note(stage, progress if stage.state is StageState.RUNNING else None)
    cells = (html.escape(stage.name), bar, f"{stage.percent} %", stage.state.value, html.escape(note))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def stage_note(stage: Stage, progress: ProgressStatus | None) -> str:
    """Return what a stage does, with the numbers of the running program."""
    parts = [stage.message]
    if progress is not None and progress.step is not None and progress.total_steps:
        parts.append(f"step {progress.step}/{progress.total_steps}")
    if progress is not None and progress.loss is not None:
        parts.append(f"loss {progress.loss:.4g}")
    if progress is not None and progress.eta_seconds is not None:
        parts.append(f"{progress.eta_seconds // 60} min {progress.eta_seconds % 60:02} s left")
    return ", ".join(filter(None, parts))


def _status(resource: Resource) -> StagedStatus:
    status = getattr(resource, "status", None)
    return status if isinstance(status, StagedStatus) else StagedStatus()


def _notebook_display() -> Any:  # noqa: ANN401  (a module that may not be installed)
    """Return IPython's display module inside a notebook, None anywhere else."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or type(shell).__name__ != "ZMQInteractiveShell":
        return None
    from IPython import display

    return display
