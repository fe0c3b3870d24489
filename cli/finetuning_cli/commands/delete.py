"""`finetune delete`: forget an object and what belongs to it alone."""

import shutil
from pathlib import Path

import typer

from finetuning_api import KINDS
from finetuning_api.base import Resource
from finetuning_api.finetuningjob import FineTuningJob, RetentionPolicy
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.lock import state_lock
from finetuning_cli.local.store import Store
from finetuning_operator.reconcile.conditions import is_terminal
from finetuning_operator.reconcile.evaluation import PREDICTIONS, REPORT
from finetuning_operator.reconcile.names import adapter_claim, child_name, evaluation_name
from finetuning_operator.reconcile.needs import job_needs
from finetuning_workload.errors import UserError
from finetuning_workload.files import explained_os_errors


def delete_object(name: str, *, state: Path) -> None:
    """Remove an object by name, also one whose state file is damaged. Raises UserError when there is none."""
    layout = Layout.at(state)
    kinds = [kind for kind in _kinds() if layout.object_file(kind, name).exists()]
    if not kinds:
        hint = "See what there is: finetune status"
        raise UserError(Reason.INVALID_SPEC, f"{layout.root} holds no object named {name!r}", hint)
    kind = kinds[0]
    lock = state_lock(layout, job=f"delete {name}", wait=False, on_wait=lambda _: None)
    with lock, explained_os_errors("delete from the state folder"):
        store = Store(layout)
        try:
            resource = store.get(kind, name)
        except UserError:
            resource = None  # Damaged: what belongs to it is found by name.
        if isinstance(resource, Relocation):
            _require_unused(resource, store)
        for line in _remove(kind, name, resource, layout=layout, store=store):
            typer.echo(line)


def _kinds() -> list[str]:
    return [str(kind.model_fields["kind"].default) for kind in KINDS]


def _remove(kind: str, name: str, resource: Resource | None, *, layout: Layout, store: Store) -> list[str]:
    claims: list[str] = []
    if kind == "FineTuningJob":
        keeps = isinstance(resource, FineTuningJob) and resource.spec.storage.retention is RetentionPolicy.RETAIN
        claims = [] if keeps else [adapter_claim(name)]
        evaluation = evaluation_name(name)
        shutil.rmtree(layout.root / "steps" / "EvaluationJob" / evaluation, ignore_errors=True)
        store.delete("EvaluationJob", evaluation)
    elif kind == "EvaluationJob":
        claims = [child_name(name, suffix) for suffix in (REPORT, PREDICTIONS)]
    elif kind == "Relocation":
        claims = [name]
    # The object goes first: what is left without it is used by nobody.
    store.delete(kind, name)
    shutil.rmtree(layout.root / "steps" / kind / name, ignore_errors=True)
    removed = [layout.volumes / claim for claim in claims if (layout.volumes / claim).exists()]
    for folder in removed:
        shutil.rmtree(folder)
    return [f"deleted {kind} {name}", *(f"deleted {folder}" for folder in removed)]


def _require_unused(relocation: Relocation, store: Store) -> None:
    name = relocation.metadata.name
    for resource in store.all().values():
        needed = isinstance(resource, FineTuningJob) and name in {each.name for each in job_needs(resource.spec)}
        if needed and isinstance(resource, FineTuningJob) and not is_terminal(resource.status.conditions):
            message = f"{name} is used by the job {resource.metadata.name}, which has not ended"
            raise UserError(
                Reason.INVALID_SPEC, message, f"Delete the job first: finetune delete {resource.metadata.name}"
            )
