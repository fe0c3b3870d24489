"""Objects for people: the table of results, the verdict, and where everything lies."""

import math
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetuning_api.base import ClaimRef, Condition, ConditionStatus, ConditionType, Resource
from finetuning_api.evaluationjob import EvaluationJob, PredictionsArtifact
from finetuning_api.export import ExportFormat, ExportStatus
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.inferenceserver import InferenceServer
from finetuning_api.metrics import EvaluationRow, Verdict
from finetuning_api.notification import NotificationStatus
from finetuning_api.relocation import Relocation
from finetuning_api.tracking import TrackingState, TrackingStatus
from finetuning_api.tuning import TuningStatus
from finetuning_cli.display import duration, stage_note, stages_of
from finetuning_cli.local.layout import Layout
from finetuning_operator.reconcile.conditions import find_condition
from finetuning_operator.reconcile.job import REPORT_FOLDER
from finetuning_workload.files import format_bytes

_VERDICT_STYLES: Mapping[Verdict, str] = {
    Verdict.PASS: "green",
    Verdict.FAIL: "red",
    Verdict.INCONCLUSIVE: "yellow",
}


def number(value: float | None) -> str:
    """Return a value of a metric in four significant digits; nothing for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.1f}" if abs(value) >= 10_000 else f"{value:#.4g}".rstrip(".")  # noqa: PLR2004  (digits)


def signed(value: float | None) -> str:
    """Return a difference with its sign."""
    return "" if value is None else f"{'+' if value >= 0 else ''}{number(value)}"


def results_table(rows: list[EvaluationRow]) -> Table:
    """Return the table of an evaluation; a column without values is left out."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    referenced = any(row.reference is not None for row in rows)
    columns = ("base", "tuned", *(("reference",) if referenced else ()), "delta", "95 % interval", "n")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        interval = "" if row.ci_low is None or row.ci_high is None else f"{signed(row.ci_low)} .. {signed(row.ci_high)}"
        middle = (number(row.reference),) if referenced else ()
        values = (number(row.base), number(row.tuned), *middle, signed(row.delta), interval, str(row.samples))
        table.add_row(row.metric, *values)
    return table


def trials_table(tuning: TuningStatus) -> Table:
    """Return what became of each trial; the best is marked."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    tried = [parameter.name for parameter in tuning.trials[0].parameters]
    for column in ("trial", *(name.rpartition(".")[2] for name in tried)):
        table.add_column(column, justify="right")
    table.add_column("state", no_wrap=True)
    for column in ("held-out loss", "steps", "resumed"):
        table.add_column(column, justify="right")
    told = any(trial.message for trial in tuning.trials)
    if told:
        table.add_column("message", overflow="fold")
    for trial in tuning.trials:
        best = trial.number == tuning.best
        table.add_row(
            str(trial.number),
            *(f"{parameter.value:g}" for parameter in trial.parameters),
            f"{trial.state.value}, best" if best else trial.state.value,
            number(trial.evaluation_loss),
            "" if trial.steps is None else str(trial.steps),
            str(trial.resumptions or ""),
            *([escape(trial.message)] if told else []),
            style="bold" if best else None,
        )
    return table


def print_outcome(console: Console, resource: Resource, *, layout: Layout | None) -> None:
    """Print how an object ended: results, verdict, where its files lie, or why it failed.

    Without a layout the object is one of a cluster, and its files lie on claims.
    """
    title = f"\n[bold]{resource.kind} {resource.metadata.name}[/bold]: {escape(headline(resource))}"
    console.print(title, highlight=False, soft_wrap=True)
    if isinstance(resource, FineTuningJob | EvaluationJob):
        for warning in resource.status.warnings:
            console.print(f"  [yellow]warning[/yellow] {escape(warning)}", highlight=False, soft_wrap=True)
        if isinstance(resource, FineTuningJob) and resource.status.tuning is not None:
            console.print()
            console.print(trials_table(resource.status.tuning))
        if resource.status.evaluation:
            console.print()
            console.print(results_table(resource.status.evaluation))
            console.print()
        _print_verdict(console, resource)
    if isinstance(resource, EvaluationJob) and resource.status.predictions is not None:
        made = resource.status.predictions
        console.print(f"  predicted    {made.rows} rows, {made.tokens} tokens", highlight=False)
    if isinstance(resource, FineTuningJob) and resource.status.tracking is not None:
        console.print(f"  tracked      {escape(_tracked(resource.status.tracking))}", highlight=False, soft_wrap=True)
    lies = claims(resource) if layout is None else [(k, str(_from_here(path))) for k, path in places(resource, layout)]
    for name, where in lies:
        console.print(f"  {name:<13}{escape(where)}", soft_wrap=True, highlight=False)


def _tracked(record: TrackingStatus) -> str:
    """Return where a run is shown, or why there is none."""
    state = "" if record.state is TrackingState.DONE else record.state.value
    return " ".join(filter(None, (record.url, state, record.message)))


def _from_here(path: Path) -> Path:
    """Return a path as one would type it: relative when it lies below the working folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def headline(resource: Resource) -> str:
    """Return the state of an object in one line."""
    conditions = _conditions(resource)
    failed = find_condition(conditions, ConditionType.FAILED)
    if failed is not None and failed.status is ConditionStatus.TRUE:
        return f"Failed ({failed.reason.value}): {failed.message}"
    phase = getattr(getattr(resource, "status", None), "phase", None)
    text = str(phase.value) if phase is not None else ""
    if isinstance(resource, FineTuningJob | EvaluationJob | Relocation):
        start, end = resource.status.start_time, resource.status.completion_time
        if start and end:
            text += f" in {duration((end - start).total_seconds())}"
    return text


def places(resource: Resource, layout: Layout) -> list[tuple[str, Path]]:
    """Return what lies where, of what exists."""
    found: list[tuple[str, Path]] = []
    report: ClaimRef | None = None
    if isinstance(resource, FineTuningJob) and resource.status.artifacts.adapter is not None:
        adapter = resource.status.artifacts.adapter
        folder = layout.volumes / adapter.claim_name / adapter.path
        found += [("adapter", folder), ("provenance", folder / "provenance.json")]
        report = ClaimRef(claim_name=adapter.claim_name, path=REPORT_FOLDER)
    if isinstance(resource, FineTuningJob):
        found += [(f"export {name}", layout.claim(place)) for name, place in _exported(resource)]
    if isinstance(resource, EvaluationJob):
        report = resource.status.report
        if resource.status.predictions is not None:
            found.append(("predictions", layout.claim(_predictions(resource.status.predictions))))
    if isinstance(resource, Relocation) and resource.status.artifact is not None:
        found.append(("artifact", layout.claim(resource.status.artifact.claim)))
    if report is not None:
        found += [("report", layout.claim(report) / "report.html"), ("results", layout.claim(report) / "results.json")]
    return [(name, path) for name, path in found if path.exists()]


def _predictions(made: PredictionsArtifact) -> ClaimRef:
    """Return where the lines of predictions are."""
    return ClaimRef(claim_name=made.claim_name, path=f"{made.path}/predictions.jsonl".lstrip("/"))


def _exported(job: FineTuningJob) -> list[tuple[str, ClaimRef]]:
    """Return where what was exported lies, by name; an adapter lies where it always did."""
    return [
        (each.name, ClaimRef(claim_name=each.claim_name, path=each.path or ""))
        for each in job.status.exports
        if each.claim_name is not None and each.format is ExportFormat.MERGED
    ]


def has_results(job: FineTuningJob | EvaluationJob) -> bool:
    """Return whether a job has told what it found out."""
    return bool(job.status.evaluation) or (isinstance(job, EvaluationJob) and job.status.predictions is not None)


def report_content(job: FineTuningJob | EvaluationJob) -> dict[str, object]:
    """Return the results of a job for scripts."""
    status = job.status
    predictions = job.status.predictions if isinstance(job, EvaluationJob) else None
    tuning = job.status.tuning if isinstance(job, FineTuningJob) else None
    return {
        "kind": job.kind,
        "name": job.metadata.name,
        "state": headline(job),
        "verdict": status.verdict.value if status.verdict else None,
        "evaluation": [row.to_wire() for row in status.evaluation],
        **({"predictions": predictions.to_wire()} if predictions else {}),
        **({"tuning": tuning.to_wire()} if tuning else {}),
        "warnings": list(status.warnings),
    }


def claims(resource: Resource) -> list[tuple[str, str]]:
    """Return what lies where on the claims of a cluster, as far as the status tells."""
    found: list[tuple[str, ClaimRef]] = []
    if isinstance(resource, FineTuningJob) and resource.status.artifacts.adapter is not None:
        adapter = resource.status.artifacts.adapter
        found.append(("adapter", ClaimRef(claim_name=adapter.claim_name, path=adapter.path)))
        if resource.status.evaluation:
            found.append(("report", ClaimRef(claim_name=adapter.claim_name, path=f"{REPORT_FOLDER}/report.html")))
    if isinstance(resource, FineTuningJob):
        found += [(f"export {name}", place) for name, place in _exported(resource)]
    if isinstance(resource, EvaluationJob) and resource.status.report is not None:
        report = resource.status.report
        path = f"{report.path}/report.html".lstrip("/")
        found.append(("report", ClaimRef(claim_name=report.claim_name, path=path)))
    if isinstance(resource, EvaluationJob) and resource.status.predictions is not None:
        found.append(("predictions", _predictions(resource.status.predictions)))
    if isinstance(resource, Relocation) and resource.status.artifact is not None:
        found.append(("artifact", resource.status.artifact.claim))
    shown = [(name, f"claim {place.claim_name}{f', {place.path}' if place.path else ''}") for name, place in found]
    return [*shown, *_addresses(resource)]


def _addresses(resource: Resource) -> list[tuple[str, str]]:
    """Return where something answers inside the cluster, or what it waits for."""
    if isinstance(resource, InferenceServer):
        return [("served at", resource.status.url)] if resource.status.url else []
    if not isinstance(resource, FineTuningJob):
        return []
    serving, board = resource.status.serving, resource.status.tensorboard
    told = (("served at", serving.url if serving else ""), ("tensorboard", board.url or board.message if board else ""))
    return [(name, text) for name, text in told if text]


def status_table(objects: Mapping[tuple[str, str], Resource]) -> Table:
    """Return one line for each object."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "name", "state", "stage", "progress", "result"):
        table.add_column(column, overflow="fold")
    for resource in objects.values():
        stages, progress = stages_of(resource)
        running = next((stage for stage in stages if stage.state.value in {"Running", "Failed"}), None)
        percent = f"{progress.percent} %" if progress is not None and running is not None else ""
        phase = getattr(getattr(resource, "status", None), "phase", "")
        stage = running.name if running else ""
        table.add_row(resource.kind, resource.metadata.name, str(phase), stage, percent, _result(resource))
    return table


def _result(resource: Resource) -> str:
    """Return how an object ended in one word: the verdict of its gate, or the reason of its failure."""
    failed = find_condition(_conditions(resource), ConditionType.FAILED)
    if failed is not None and failed.status is ConditionStatus.TRUE:
        return failed.reason.value
    if isinstance(resource, EvaluationJob) and resource.status.predictions is not None:
        return f"{resource.status.predictions.rows} rows"
    verdict = resource.status.verdict if isinstance(resource, FineTuningJob | EvaluationJob) else None
    return verdict.value if verdict is not None else ""


def print_status(console: Console, resource: Resource, *, layout: Layout | None) -> None:
    """Print everything about one object: stages, conditions, results and places."""
    stages = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "state", "progress", "took", "attempts", "message"):
        stages.add_column(column, overflow="fold")
    found, progress = stages_of(resource)
    for stage in found:
        took = ""
        if stage.start_time and stage.completion_time:
            took = duration((stage.completion_time - stage.start_time).total_seconds())
        note = escape(stage_note(stage, progress))
        values = (stage.state.value, f"{stage.percent} %", took, str(stage.attempts), note)
        stages.add_row(stage.name, *values)
    console.print(stages)
    conditions = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("condition", "status", "reason", "message"):
        conditions.add_column(column, overflow="fold")
    for condition in _conditions(resource):
        conditions.add_row(
            condition.type.value, condition.status.value, condition.reason.value, escape(condition.message)
        )
    console.print()
    console.print(conditions)
    if isinstance(resource, FineTuningJob) and resource.status.exports:
        console.print()
        console.print(_exports_table(resource.status.exports))
    if isinstance(resource, FineTuningJob) and resource.status.notifications:
        console.print()
        console.print(_notifications_table(resource.status.notifications))
    print_outcome(console, resource, layout=layout)


def _exports_table(exports: list[ExportStatus]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("export", "format", "to", "state", "message"):
        table.add_column(column, overflow="fold")
    for each in exports:
        table.add_row(each.name, each.format.value, each.to or "", each.state.value, escape(each.message))
    return table


def _notifications_table(notifications: list[NotificationStatus]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("notification", "to", "secret", "state", "message"):
        table.add_column(column, overflow="fold")
    for each in notifications:
        table.add_row(each.event.value, each.type.value, each.secret_name, each.state.value, escape(each.message))
    return table


def brought(count: int) -> str:
    """Return how much a run relocated, as its last line."""
    return f"relocated {format_bytes(count)}"


def _conditions(resource: Resource) -> list[Condition]:
    if isinstance(resource, FineTuningJob | EvaluationJob | Relocation | InferenceServer):
        return resource.status.conditions
    return []


def _print_verdict(console: Console, resource: FineTuningJob | EvaluationJob) -> None:
    verdict = resource.status.verdict
    if verdict is None:
        return
    gate = find_condition(resource.status.conditions, ConditionType.GATE_PASSED)
    message = gate.message if gate is not None else ""
    style = _VERDICT_STYLES[verdict]
    console.print(
        f"  gate         [{style}]{verdict.value}[/{style}] {escape(message)}", highlight=False, soft_wrap=True
    )
