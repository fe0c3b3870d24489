"""Which jobs are accepted, and what a machine without a cluster leaves out: nothing is ignored in silence."""

from finetuning_api.finetuningjob import FineTuningJobSpec, MethodType, ParallelStrategy
from finetuning_api.reasons import Reason
from finetuning_api.sources import SourceRef
from finetuning_operator.reconcile.lifecycle import Refusal
from finetuning_operator.reconcile.needs import local_paths
from finetuning_operator.reconcile.plan import Settings


def refusal_of(spec: FineTuningJobSpec, settings: Settings) -> Refusal | None:
    """Return why a job is not accepted, None when it is."""
    fields = () if settings.local else local_paths(_sources(spec))
    if fields:
        message = f"{', '.join(fields)} is a path of one machine; a cluster cannot read it"
        return Refusal(Reason.INVALID_SPEC, message)
    unsupported = _unsupported(spec)
    return Refusal(Reason.UNSUPPORTED, "; ".join(unsupported)) if unsupported else None


def _sources(spec: FineTuningJobSpec) -> tuple[tuple[str, SourceRef], ...]:
    named = (
        ("spec.model", spec.model),
        ("spec.tokenizer", spec.tokenizer),
        ("spec.dataset", spec.dataset),
        ("spec.evaluation.reference", spec.evaluation.reference),
    )
    return tuple((field, ref) for field, ref in named if ref is not None)


def _unsupported(spec: FineTuningJobSpec) -> tuple[str, ...]:
    parallelism = spec.parallelism
    checks = (
        (
            spec.method.type is MethodType.QLORA,
            "spec.method.type qlora is not supported by this release; use lora",
        ),
        (
            parallelism.workers > 1 or parallelism.processes_per_worker > 1,
            "this release trains with one process: set spec.parallelism.workers and processesPerWorker to 1",
        ),
        (
            parallelism.strategy not in {ParallelStrategy.AUTO, ParallelStrategy.DDP},
            f"spec.parallelism.strategy {parallelism.strategy.value} is not supported by this release; use auto",
        ),
    )
    return tuple(message for holds, message in checks if holds)


def local_warnings(spec: FineTuningJobSpec, settings: Settings) -> tuple[str, ...]:
    """Return which fields need a cluster and do nothing on one machine."""
    if not settings.local:
        return ()
    fields = {
        "notifications": bool(spec.notifications),
        "tracking": spec.tracking is not None,
        "queueName": spec.queue_name is not None,
        "priorityClassName": spec.priority_class_name is not None,
        "pendingDeadlineSeconds": spec.pending_deadline_seconds is not None,
        "ttlSecondsAfterFinished": spec.ttl_seconds_after_finished is not None,
        "resources": bool(spec.resources.requests or spec.resources.limits),
    }
    unused = [f"spec.{name}" for name, given in fields.items() if given]
    return (f"{', '.join(unused)}: without effect on one machine",) if unused else ()
