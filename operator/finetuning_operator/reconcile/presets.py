"""Presets: what an installation offers under a name, and what a job that picks one runs with.

The API server fills in the defaults of a spec, so nobody can tell later whether a user wrote a default or left the
field out. A preset therefore decides every field that has its default, and the job every other one. The outcome is
written to the status when the job is accepted, for all to see, and holds from then on: a preset that is changed later
changes no job that exists.
"""

from collections.abc import Mapping
from typing import Any

from finetuning_api.finetuningjob import (
    AppliedPreset,
    FineTuningJob,
    FineTuningJobSpec,
    MethodSpec,
    Preset,
    TrainingSpec,
)
from finetuning_api.reasons import Reason
from finetuning_api.rules import holds
from finetuning_operator.reconcile.conditions import is_terminal
from finetuning_operator.reconcile.lifecycle import Refusal
from finetuning_operator.reconcile.plan import Settings

_OF_A_CLUSTER = "presets belong to the installation of a cluster; give a file with them by --presets, or remove it"


def with_preset(job: FineTuningJob, settings: Settings) -> FineTuningJob:
    """Return a job as its preset completes it; one without a preset, or with one that it cannot have, as it is."""
    found = chosen_preset(job, settings)
    if not isinstance(found, AppliedPreset):
        return job
    spec = job.spec
    completed = {
        "method": found.method,
        "training": found.training,
        "resources": found.resources,
        "pod": spec.pod.model_copy(update=dict(found.pod)),
        "storage": spec.storage.model_copy(update=dict(found.storage)),
        "priority_class_name": found.priority_class_name,
        "queue_name": found.queue_name,
    }
    status = job.status if job.status.preset == found else job.status.model_copy(update={"preset": found})
    return job.model_copy(update={"spec": spec.model_copy(update=completed), "status": status})


def chosen_preset(job: FineTuningJob, settings: Settings) -> AppliedPreset | Refusal | None:
    """Return what a job has by its preset, why it cannot have it, or None where it names none or has ended without."""
    name = job.spec.preset
    if name is None or job.status.preset is not None or is_terminal(job.status.conditions):
        return job.status.preset if name is not None else None
    preset = settings.presets.get(name)
    if preset is None:
        return Refusal(Reason.INVALID_SPEC, f"spec.preset is {name}: {_unknown(settings)}")
    applied = _completed(name, job.spec, preset)
    broken = _broken_rule(applied)
    if broken:
        return Refusal(Reason.INVALID_SPEC, f"spec with preset {name}: {broken}")
    return applied


def _unknown(settings: Settings) -> str:
    if settings.presets:
        return f"this installation has no such preset; choose one of {', '.join(sorted(settings.presets))}"
    return _OF_A_CLUSTER if settings.local else "this installation has no presets; remove it"


def _completed(name: str, spec: FineTuningJobSpec, preset: Preset) -> AppliedPreset:
    offered = preset.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    names = {field.alias for field in Preset.model_fields.values()}
    own = {field: value for field, value in spec.to_wire().items() if field in names}
    return AppliedPreset.model_validate({"name": name} | _merged(own, offered, standard=Preset().to_wire()))


def _merged(own: Mapping[str, Any], offered: Mapping[str, Any], *, standard: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields in their wire form: what is offered, unless the object's own differs from the standard value."""
    merged = dict(own)
    for name, value in offered.items():
        mine, default = own.get(name), standard.get(name)
        if isinstance(value, Mapping):
            merged[name] = _merged(mine or {}, value, standard=default or {})
        elif mine == default:
            merged[name] = value
    return merged


def _broken_rule(applied: AppliedPreset) -> str:
    """Return the first rule of the API that job and preset break together, each of them being right alone."""
    parts = (
        ("method", applied.method.to_wire(), MethodSpec.cel_rules),
        ("training", applied.training.to_wire(), TrainingSpec.cel_rules),
    )
    broken = (
        f"{field}: {rule.message}" for field, wire, rules in parts for rule in rules if not holds(rule.rule, value=wire)
    )
    return next(broken, "")
