"""`finetune export`: what is made of a job's result for others, on this machine."""

from pathlib import Path

from rich.console import Console

from finetuning_api.base import ClaimRef
from finetuning_api.export import ExportState
from finetuning_api.finetuningjob import FineTuningJob, FineTuningJobSpec
from finetuning_api.reasons import Reason
from finetuning_cli.commands.inspect import find_job
from finetuning_cli.commands.run import run_manifest, stopped
from finetuning_cli.exports import Wish, export_record, told, with_export
from finetuning_cli.local.layout import Layout
from finetuning_cli.manifest import Manifest
from finetuning_workload.errors import UserError


def export(name: str, wish: Wish, *, state: Path) -> int:
    """Make an export of a job that ended here, and return the exit code: 0 when it is done.

    Raises UserError where there is nothing to export.
    """
    layout = Layout.at(state)
    job, _ = find_job(name, layout)
    if not isinstance(job, FineTuningJob):
        raise UserError(Reason.INVALID_SPEC, f"{name} is an {job.kind}, which makes no model", "Name a FineTuningJob.")
    export_name, exports = with_export(job, wish)
    spec = FineTuningJobSpec.model_validate(job.spec.to_wire() | {"exports": exports})
    manifest = Manifest(path=layout.object_file(job.kind, name), resources=(job.model_copy(update={"spec": spec}),))
    outcome = run_manifest(manifest, layout=layout)
    ended = outcome.objects[job.kind, name]
    record = export_record(ended, export_name) if isinstance(ended, FineTuningJob) else None
    if record is None or record.state is ExportState.PENDING:
        return stopped(outcome, again=f"finetune export {name}")
    console = Console()
    console.print(f"export {record.name}: {record.state.value}", highlight=False, markup=False)
    if record.claim_name is not None:
        place = ClaimRef(claim_name=record.claim_name, path=record.path or "")
        console.print(f"  {'folder':<10}{layout.claim(place)}", highlight=False, markup=False, soft_wrap=True)
    for word, text in told(record):
        console.print(f"  {word:<10}{text}", highlight=False, markup=False, soft_wrap=True)
    return 0 if record.state is ExportState.DONE else 1
