"""Which jobs are accepted, and which of their fields do nothing here: nothing is ignored in silence."""

from pydantic.alias_generators import to_camel

from finetuning_api.base import ConditionType
from finetuning_api.deepspeed import refused_settings
from finetuning_api.evaluationjob import EvaluationJobSpec
from finetuning_api.finetuningjob import FineTuningJob, FineTuningJobSpec, MethodType, Objective
from finetuning_api.reasons import Reason
from finetuning_api.sources import PATH_ADVICE, Scheme
from finetuning_operator.reconcile.allowed import (
    Sources,
    own_sources,
    refused_amount,
    refused_code,
    refused_number,
    refused_source,
)
from finetuning_operator.reconcile.conditions import is_true
from finetuning_operator.reconcile.lifecycle import Refusal
from finetuning_operator.reconcile.plan import Settings
from finetuning_operator.reconcile.presets import chosen_preset
from finetuning_operator.reconcile.quantities import parse_quantity
from finetuning_operator.reconcile.tuning import refused_tuning

_FOR_CLUSTERS = (
    "pending_deadline_seconds",
    "ttl_seconds_after_finished",
    "priority_class_name",
    "queue_name",
    "resources",
    "pod",
    "storage",
    "tensorboard",
)
_ACCELERATOR = "/gpu"
"""How the resources end of which each process uses one."""


def refusal_of(job: FineTuningJob, settings: Settings) -> Refusal | None:
    """Return why a job, completed by its preset, is not accepted; None when it is.

    What an administrator forbids later does not end a job that was accepted before.
    """
    paths = refused_paths(_sources(job.spec), settings)
    if paths is not None:
        return paths
    if refusal := refused_by_release(job.spec):
        return refusal
    if not settings.local and (lacking := _lacking_accelerators(job.spec)):
        return Refusal(Reason.INVALID_SPEC, lacking)
    return None if is_true(job.status.conditions, ConditionType.ACCEPTED) else _not_allowed(job, settings)


def refused_by_release(spec: FineTuningJobSpec) -> Refusal | None:
    """Return why no installation of this release accepts a job, beyond what the rules of its type refuse."""
    if unsupported := _unsupported(spec):
        return Refusal(Reason.UNSUPPORTED, "; ".join(unsupported))
    if mistake := refused_tuning(spec) or _refused_engine(spec):
        return Refusal(Reason.INVALID_SPEC, mistake)
    return None


def _not_allowed(job: FineTuningJob, settings: Settings) -> Refusal | None:
    preset, serving = chosen_preset(job, settings), job.spec.serving
    if isinstance(preset, Refusal):
        return preset
    if settings.bounds.preset_required and preset is None:
        names = ", ".join(sorted(settings.presets)) or "none; have one added (presets)"
        message = f"spec.preset is not set, but this installation wants one picked (bounds.presetRequired): {names}"
        return Refusal(Reason.NOT_ALLOWED, message)
    asked = (("spec.resources", job.spec.resources), ("spec.serving.resources", serving.resources if serving else None))
    replicas = (("spec.serving.replicas", serving.replicas),) if serving else ()
    return (
        refused_source(_sources(job.spec), settings.sources)
        or refused_code("spec.evaluation.custom", job.spec.evaluation.custom, settings.bounds)
        or refused_amount(asked, settings.bounds)
        or refused_number(replicas, settings.bounds)
    )


def refused_paths(refs: Sources, settings: Settings) -> Refusal | None:
    """Return why sources, by the fields that hold them, cannot be read: paths mean something on one machine only."""
    files = [(field, ref) for field, ref in refs if ref is not None and ref.parsed.scheme is Scheme.FILE]
    paths = [f"{field}.source {ref.source!r}" for field, ref in files]
    if settings.local or not paths:
        return None
    are, it = ("is a path", "it") if len(paths) == 1 else ("are paths", "them")
    message = f"{' and '.join(paths)} {are} of one machine; a cluster cannot read {it}: {PATH_ADVICE}"
    return Refusal(Reason.INVALID_SPEC, message)


def _sources(spec: FineTuningJobSpec) -> Sources:
    return (
        ("spec.model", spec.model),
        ("spec.tokenizer", spec.tokenizer),
        ("spec.dataset", spec.dataset),
        ("spec.evaluation.reference", spec.evaluation.reference),
        *own_sources("spec.evaluation", spec.evaluation),
        ("spec.script", spec.script),
    )


def _unsupported(spec: FineTuningJobSpec) -> tuple[str, ...]:
    checks = (
        (
            spec.method.type is MethodType.QLORA and spec.script is None,
            "spec.method.type qlora is not supported by this release; use lora, or bring a script (spec.script)",
        ),
        *_unsupported_with_dpo(spec),
    )
    return tuple(message for holds, message in checks if holds)


def _unsupported_with_dpo(spec: FineTuningJobSpec) -> tuple[tuple[bool, str], ...]:
    dpo, parallelism = spec.training.objective is Objective.DPO, spec.parallelism
    advice = "with spec.training.objective dpo"
    return (
        (
            dpo and spec.method.type is MethodType.FULL,
            f"spec.method.type full is not supported {advice}: the base model is the reference; use lora",
        ),
        (
            dpo and parallelism.workers * parallelism.processes_per_worker > 1,
            f"spec.parallelism with several processes is not supported {advice}; use one",
        ),
        (
            dpo and spec.training.early_stopping is not None,
            f"spec.training.earlyStopping is not supported {advice}; set maxSteps",
        ),
        (dpo and spec.tuning is not None, f"spec.tuning is not supported {advice}; remove it"),
    )


def _refused_engine(spec: FineTuningJobSpec) -> str:
    """Return why settings in DeepSpeed's own words are not taken; nothing where all are."""
    settings = spec.parallelism.deepspeed
    refused = refused_settings(settings.config) if settings else ()
    return f"spec.parallelism.deepspeed.config has {', '.join(refused)}" if refused else ""


def _lacking_accelerators(spec: FineTuningJobSpec) -> str:
    """Return why not every process of a worker gets an accelerator; nothing where each does, or all use the CPU."""
    processes, limits = spec.parallelism.processes_per_worker, spec.resources.limits
    for name, amount in (spec.resources.requests | limits).items():
        if name.endswith(_ACCELERATOR) and parse_quantity(amount) < processes:
            return (
                f"spec.resources gives each worker {amount} {name}, but spec.parallelism.processesPerWorker is"
                f" {processes} and each process needs one: raise the first or lower the second"
            )
    return ""


def idle_warnings(spec: FineTuningJobSpec | EvaluationJobSpec, settings: Settings) -> tuple[str, ...]:
    """Return which fields that were set do nothing here."""
    here = [*_given(spec, _FOR_CLUSTERS), *_image_given(spec), *_side_by_side(spec)] if settings.local else []
    return (f"{', '.join(here)}: without effect on one machine",) if here else ()


def _image_given(spec: FineTuningJobSpec | EvaluationJobSpec) -> list[str]:
    script = spec.script if isinstance(spec, FineTuningJobSpec) else None
    return ["spec.script.image"] if script is not None and script.image is not None else []


def _side_by_side(spec: FineTuningJobSpec | EvaluationJobSpec) -> list[str]:
    """Return what several pods would share: one machine does one thing after the other."""
    if not isinstance(spec, FineTuningJobSpec):
        return []
    numbers = {
        "spec.parallelism.workers": spec.parallelism.workers,
        "spec.tuning.parallelism": spec.tuning.parallelism if spec.tuning else 1,
    }
    return [field for field, number in numbers.items() if number > 1]


def _given(spec: FineTuningJobSpec | EvaluationJobSpec, names: tuple[str, ...]) -> list[str]:
    fields = type(spec).model_fields
    return [
        f"spec.{to_camel(name)}"
        for name in names
        if name in fields and getattr(spec, name) != fields[name].get_default(call_default_factory=True)
    ]
