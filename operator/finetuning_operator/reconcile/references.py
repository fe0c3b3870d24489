"""Which other objects of its namespace an object reads: what wakes it, and what it keeps in use."""

from collections.abc import Callable, Iterable

from finetuning_api.base import Resource
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.inferenceserver import InferenceServer
from finetuning_operator.reconcile.conditions import is_terminal
from finetuning_operator.reconcile.dependencies import job_refs
from finetuning_operator.reconcile.evaluation import evaluation_needs
from finetuning_operator.reconcile.export import is_exporting, merge_needs
from finetuning_operator.reconcile.names import adapter_job, evaluation_name
from finetuning_operator.reconcile.needs import Need, job_needs, server_needs
from finetuning_operator.reconcile.plan import Observed

Reference = tuple[str, str]
"""(kind, name) of an object in the same namespace."""


def references(resource: Resource, find: Callable[[str, str], Resource | None]) -> frozenset[Reference]:
    """Return the objects that reconciling this one reads.

    A job that has ended reads the server that it keeps, and what it still exports is made of. ``find`` returns an
    object of the same namespace by kind and name: what the result of another job needs is known through that job. The
    answer can grow when one of the objects in it changes.
    """
    match resource:
        case FineTuningJob():
            return frozenset(_of_job(resource))
        case EvaluationJob():
            return frozenset(_of_evaluation(resource, find))
        case InferenceServer():
            return frozenset((*_makers(resource), *_relocations(server_needs(resource.spec))))
    return frozenset()


def _of_job(job: FineTuningJob) -> Iterable[Reference]:
    served = () if job.spec.serving is None else (("InferenceServer", job.metadata.name),)
    if is_terminal(job.status.conditions):
        return (*served, *_relocations(merge_needs(job.spec))) if is_exporting(job) else served
    evaluated = (("EvaluationJob", evaluation_name(job.metadata.name)),) if job.spec.evaluation.enabled else ()
    compared = (("FineTuningJob", name) for name in job_refs(job))
    return (*_relocations(job_needs(job.spec)), *compared, *evaluated, *served)


def _of_evaluation(job: EvaluationJob, find: Callable[[str, str], Resource | None]) -> Iterable[Reference]:
    if is_terminal(job.status.conditions):
        return ()
    makers = _makers(job)
    found = {maker: known for maker in makers if (known := find(*maker)) is not None}
    return (*makers, *_relocations(evaluation_needs(job, observed=Observed(resources=found))))


def _makers(resource: EvaluationJob | InferenceServer) -> tuple[Reference, ...]:
    """Return the jobs whose results an object uses, by reference or from their claims, and that which it belongs to."""
    if isinstance(resource, EvaluationJob):
        used = [(candidate.job_ref, candidate.adapter) for candidate in resource.spec.candidates]
    else:
        used = [(adapter.job_ref, adapter.claim) for adapter in resource.spec.adapters]
    owners = (owner.name for owner in resource.metadata.owner_references if owner.kind == FineTuningJob.__name__)
    names = [*(adapter_job(claim.claim_name) if claim else job_ref for job_ref, claim in used), *owners]
    return tuple(("FineTuningJob", name) for name in dict.fromkeys(names) if name)


def _relocations(needs: Iterable[Need]) -> tuple[Reference, ...]:
    return tuple(("Relocation", wanted.name) for wanted in needs)
