"""Results of earlier jobs beside a job's own: what they have in common with it, and what a reader should know."""

from collections.abc import Iterator

from finetuning_api.finetuningjob import FineTuningJob
from finetuning_operator.reconcile.dependencies import dependency, job_refs, tunes_other_model
from finetuning_operator.reconcile.needs import Role, need
from finetuning_operator.reconcile.plan import Observed


def shares_inputs(job: FineTuningJob, name: str, observed: Observed) -> bool:
    """Return whether another job tunes the same model with the same tokenizer: its inputs are this job's own."""
    other = dependency(name, observed).job
    return other is not None and not _other_model(job, other, observed) and not _other_tokenizer(job, other)


def comparison_warnings(job: FineTuningJob, observed: Observed) -> tuple[str, ...]:
    """Return what distinguishes this job from those that it is compared with, beside what was trained."""
    found = [dependency(name, observed).job for name in job_refs(job)]
    return tuple(warning for other in found if other is not None for warning in _differences(job, other, observed))


def _differences(job: FineTuningJob, other: FineTuningJob, observed: Observed) -> Iterator[str]:
    name = other.metadata.name
    if _other_model(job, other, observed):
        yield (
            f"evaluation.jobRefs: {name} tuned another base model, {other.spec.model.source}: the comparison with it is"
            " one of models, not of trainings"
        )
    elif _other_tokenizer(job, other):
        yield f"evaluation.jobRefs: {name} was trained with another tokenizer: bits-per-byte can be compared with it"
    if _other_rows(job, other):
        yield (
            f"evaluation.jobRefs: {name} was trained on other data or another split: it may have seen rows that are"
            " held out here, and its values may be too good"
        )


def _other_model(job: FineTuningJob, other: FineTuningJob, observed: Observed) -> bool:
    return tunes_other_model(other, need(job.spec.model, Role.MODEL, job.spec.storage), observed)


def _other_tokenizer(job: FineTuningJob, other: FineTuningJob) -> bool:
    sources = [
        each.spec.tokenizer and (each.spec.tokenizer.source, each.spec.tokenizer.revision) for each in (job, other)
    ]
    return sources[0] != sources[1]


def _other_rows(job: FineTuningJob, other: FineTuningJob) -> bool:
    """Whether two jobs hold out other rows: their data, how it is rendered, or its split differ."""
    digests = [each.status.artifacts.dataset.digest if each.status.artifacts.dataset else None for each in (job, other)]
    other_bytes = None not in digests and digests[0] != digests[1]
    return other_bytes or job.spec.dataset.row_format() != other.spec.dataset.row_format()
