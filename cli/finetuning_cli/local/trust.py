"""What an earlier run left behind is looked at before it is used: damage is repaired or refused, never passed on."""

import shutil

from finetuning_api.base import ConditionType
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation, RelocationStatus
from finetuning_api.sources import Conversion
from finetuning_cli.local.layout import Layout
from finetuning_operator.reconcile.conditions import is_true
from finetuning_workload.artifact import damaged_files, read_manifest, require_intact
from finetuning_workload.errors import UserError


def damage(layout: Layout, relocation: Relocation) -> str:
    """Return what is wrong with a finished artifact, "" when nothing is.

    Everything is compared by content: a weight with one changed bit loads without a word. It costs a second or two for
    each gigabyte, and only where a step still needs the artifact.
    """
    artifact = relocation.status.artifact
    if artifact is None:
        return "its state does not say where it is"
    folder = layout.claim(artifact.claim)
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return error.message
    if manifest is None:
        # A user's own claim may have no manifest of ours; it is verified where it lies.
        return "" if folder.exists() and relocation.spec.parsed.scheme == "pvc" else "it has no manifest"
    if manifest.digest != artifact.digest:
        return "its manifest is another one"
    damaged = damaged_files(folder, manifest)
    return f"changed or missing: {', '.join(damaged[:5])}" if damaged else ""


def restart(layout: Layout, relocation: Relocation) -> Relocation:
    """Return a Relocation that is brought again, with what must not be reused removed.

    The artifact stays recorded: the same revision is brought again, and intact files are kept by the relocator.
    """
    if relocation.spec.conversion is not Conversion.NONE:
        # A conversion cannot mend single files: it starts from the raw bytes.
        shutil.rmtree(layout.volumes / relocation.metadata.name / "artifact", ignore_errors=True)
    return relocation.model_copy(update={"status": RelocationStatus(artifact=relocation.status.artifact)})


def require_adapter(layout: Layout, job: FineTuningJob) -> None:
    """Raise UserError(ARTIFACT_CORRUPT) when the result of a job that was trained is not what training left."""
    adapter = job.status.artifacts.adapter
    if adapter is None or not is_true(job.status.conditions, ConditionType.TRAINED):
        return
    folder = layout.volumes / adapter.claim_name / adapter.path
    try:
        require_intact(folder, digest=adapter.digest)
    except UserError as error:
        name = job.metadata.name
        hint = f"Train it again: finetune delete {name}, then finetune run; what was relocated stays."
        message = f"the adapter of {name} cannot be trusted: {error.message}"
        raise UserError(Reason.ARTIFACT_CORRUPT, message, hint) from error
