"""What `finetune export` asks for, the same on this machine and on a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetuning_api.export import ExportFormat, ExportSpec, ExportState, ExportStatus
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_api.validation import validate_manifest
from finetuning_operator.reconcile.conditions import is_terminal
from finetuning_workload.errors import UserError


@dataclass(frozen=True, slots=True)
class Wish:
    """An export that somebody asks for."""

    format: ExportFormat
    to: str | None = None
    revision: str | None = None
    endpoint: str | None = None
    secret: str | None = None
    after_gate: bool = True

    def fields(self) -> dict[str, object]:
        """Return the fields of the export but its name, as a manifest has them."""
        given = {
            "to": self.to,
            "revision": self.revision,
            "endpoint": self.endpoint,
            "secretRef": self.secret and {"name": self.secret},
            "afterGate": None if self.after_gate else False,
        }
        return {"format": self.format.value} | {key: value for key, value in given.items() if value is not None}


def with_export(job: FineTuningJob, wish: Wish) -> tuple[str, list[dict[str, object]]]:
    """Return the name of an export and all exports of a job with it; one that is there and did not fail is that one.

    Raises UserError for a job that has not ended, and for a wish that the API does not take.
    """
    if not is_terminal(job.status.conditions):
        hint = "Write it under spec.exports when you make a job, and it follows by itself."
        message = f"{job.metadata.name} has not ended ({job.status.phase.value}): there is nothing to export yet"
        raise UserError(Reason.WAITING, message, hint)
    exports = [spec.to_wire() for spec in job.spec.exports]
    known = next((spec.name for spec in job.spec.exports if _is_met(job, spec, wish)), None)
    if known is not None:
        return known, exports
    name = _free_name(wish, [spec.name for spec in job.spec.exports])
    exports.append({"name": name} | wish.fields())
    wire = job.to_wire()
    errors = validate_manifest({**wire, "spec": {**_mapping(wire["spec"]), "exports": exports}})
    if errors:
        raise UserError(Reason.INVALID_SPEC, "\n".join(str(error) for error in errors), "Nothing was started.")
    return name, exports


def export_record(job: FineTuningJob, name: str) -> ExportStatus | None:
    """Return what became of an export; None where nothing is told of it yet."""
    return next((record for record in job.status.exports if record.name == name), None)


def told(record: ExportStatus) -> list[tuple[str, str]]:
    """Return what an export came to, in pairs of a word and a text."""
    pairs = (
        ("digest", record.digest),
        ("pushed to", record.to if record.pushed_revision else None),
        ("revision", record.pushed_revision),
        ("message", record.message),
    )
    return [(word, text) for word, text in pairs if text]


def _is_met(job: FineTuningJob, spec: ExportSpec, wish: Wish) -> bool:
    record = export_record(job, spec.name)
    over = record is not None and record.state in {ExportState.FAILED, ExportState.SKIPPED}
    asked = ExportSpec.model_validate({"name": spec.name} | wish.fields()) if _is_valid(wish) else None
    return not over and spec == asked


def _is_valid(wish: Wish) -> bool:
    try:
        ExportSpec.model_validate({"name": "a"} | wish.fields())
    except ValueError:
        return False
    return True


def _free_name(wish: Wish, taken: Sequence[str]) -> str:
    base = wish.format.value if wish.to is None else f"{wish.format.value}-{wish.to.partition(':')[0]}"
    numbered = (f"{base}-{number}" for number in range(2, len(taken) + 3))
    return next(name for name in (base, *numbered) if name not in taken)


def _mapping(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, dict) else {}
