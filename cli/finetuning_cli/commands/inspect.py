"""`finetune status`, `logs` and `report`: what the state folder tells, while a run works and after it."""

import json
import time
from pathlib import Path

import typer
from rich.console import Console

from finetuning_api.base import Resource
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.records import load_records
from finetuning_cli.local.store import Key, Store, to_yaml
from finetuning_cli.output import has_results, print_outcome, print_status, report_content, status_table
from finetuning_operator.reconcile.names import evaluation_name
from finetuning_operator.reconcile.needs import job_needs
from finetuning_operator.reconcile.plan import StepPhase
from finetuning_workload.errors import UserError

_FOLLOW_SECONDS = 0.5


def find_object(objects: dict[Key, Resource], name: str, layout: Layout) -> Resource:
    """Return the object of a name, jobs first. Raises UserError listing what there is."""
    found = [resource for (_, other), resource in objects.items() if other == name]
    if found:
        return found[0]
    names = ", ".join(sorted({resource.metadata.name for resource in objects.values()})) or "nothing"
    message = f"{layout.root} holds no object named {name!r}"
    raise UserError(Reason.INVALID_SPEC, message, f"It holds {names}. Another folder is named with --state.")


def find_job(name: str, layout: Layout) -> tuple[FineTuningJob | EvaluationJob, dict[Key, Resource]]:
    """Return a job and all objects. Raises UserError for a name that is not a job's."""
    objects = Store(layout).all()
    found = find_object(objects, name, layout)
    if not isinstance(found, FineTuningJob | EvaluationJob):
        raise UserError(Reason.INVALID_SPEC, f"{name} is a {found.kind}, not a job", "Give the name of a job.")
    return found, objects


def show_status(name: str | None, *, state: Path, output: str) -> None:
    """Print one object, or a line for each."""
    layout = Layout.at(state)
    objects = Store(layout).all()
    chosen = list(objects.values()) if name is None else [find_object(objects, name, layout)]
    if output == "yaml":
        typer.echo("---\n".join(to_yaml(resource) for resource in chosen), nl=False)
    elif output == "json":
        wires = [resource.to_wire() for resource in chosen]
        typer.echo(json.dumps(wires if name is None else wires[0], indent=2))
    elif not objects:
        typer.echo(f"nothing was run in {layout.root} yet", err=True)
    elif name is None:
        Console().print(status_table(objects))
    else:
        print_status(Console(), chosen[0], layout=layout)


def show_report(name: str, *, state: Path, output: str = "table") -> None:
    """Print the results of a job. Raises UserError when there are none yet."""
    layout = Layout.at(state)
    job, _ = find_job(name, layout)
    if not has_results(job):
        hint = f"See how far it is: finetune status {name}"
        raise UserError(Reason.WAITING, f"{name} has no results yet ({job.status.phase.value})", hint)
    if output == "json":
        typer.echo(json.dumps(report_content(job), indent=2))
        return
    print_outcome(Console(), job, layout=layout)


def show_logs(name: str, stage: str | None, *, state: Path, follow: bool) -> None:
    """Print the log of a stage's last attempt; with ``follow`` until the stage has ended."""
    layout = Layout.at(state)
    objects = Store(layout).all()
    steps = _step_folders(find_object(objects, name, layout), objects, layout)
    chosen = _choose(name, stage, steps)
    log = _latest_log(chosen)
    offset = 0
    while True:
        ended = not _is_running(chosen)
        with log.open("rb") as file:
            file.seek(offset)
            text = file.read()
        offset += len(text)
        typer.echo(text.decode("utf-8", errors="replace"), nl=False)
        if ended or not follow:
            return
        time.sleep(_FOLLOW_SECONDS)


def _step_folders(owner: Resource, objects: dict[Key, Resource], layout: Layout) -> dict[str, Path]:
    """Return the folders of steps that have logs, by stage: an object's own and those of what it made."""
    owners: list[tuple[str, Resource]] = [("", owner)]
    if isinstance(owner, FineTuningJob):
        child = objects.get(("EvaluationJob", evaluation_name(owner.metadata.name)))
        owners += [("", child)] if child is not None else []
        for wanted in job_needs(owner.spec):
            relocation = objects.get(("Relocation", wanted.name))
            owners += [(f"{wanted.role}/", relocation)] if relocation is not None else []
    folders: dict[str, Path] = {}
    for prefix, each in owners:
        for log in sorted(layout.owner(each).glob("*/attempt-*.log")):
            folders[f"{prefix}{log.parent.name}"] = log.parent
    return folders


def _choose(name: str, stage: str | None, steps: dict[str, Path]) -> Path:
    if not steps:
        raise UserError(Reason.WAITING, f"{name} has no logs yet", "Nothing was started for it.")
    if stage is None:
        return max(steps.values(), key=lambda folder: _latest_log(folder).stat().st_mtime)
    if stage not in steps:
        hint = f"It has {', '.join(sorted(steps))}."
        raise UserError(Reason.INVALID_SPEC, f"{name} has no log of a stage {stage!r}", hint)
    return steps[stage]


def _latest_log(folder: Path) -> Path:
    return max(folder.glob("attempt-*.log"), key=lambda log: int(log.stem.removeprefix("attempt-")))


def _is_running(folder: Path) -> bool:
    record = load_records(folder.parent).get(folder.name)
    return record is not None and record.phase is StepPhase.RUNNING
