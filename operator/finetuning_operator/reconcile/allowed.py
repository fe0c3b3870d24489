"""Why an installation does not allow what an object asks for: each refusal names field, value, bound and a way out."""

from collections.abc import Iterator, Sequence

from finetuning_api.base import ConditionType, Resource, ResourceRequirements
from finetuning_api.custom import CustomMetricSpec
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import EvaluationOptions, FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_api.sources import SourceRef
from finetuning_operator.reconcile.conditions import is_true
from finetuning_operator.reconcile.lifecycle import Refusal
from finetuning_operator.reconcile.plan import Observed
from finetuning_operator.reconcile.policy import Bounds, SourcePolicy
from finetuning_operator.reconcile.quantities import parse_quantity

Sources = Sequence[tuple[str, SourceRef | None]]
"""Sources by the fields that hold them."""
_ALWAYS_USED = frozenset({"cpu", "memory", "ephemeral-storage"})
"""Resources that a pod uses without asking: without a limit it may use all that a node has."""


def refused_source(refs: Sources, policy: SourcePolicy) -> Refusal | None:
    """Return why the first of some sources may not be brought, None where all may."""
    for field, ref in refs:
        if ref is not None and not policy.allows_source(ref):
            places = ", ".join(policy.allowed_sources)
            return _refusal(
                f"{field}.source is {ref.parsed.canonical}, but this installation brings only what is below {places}",
                "copy it to one of these places, or have this one added (relocation.allowedSources)",
            )
        if ref is not None and not policy.allows_endpoint(ref):
            places = ", ".join(policy.allowed_endpoints) or "its own alone"
            return _refusal(
                f"{field}.endpoint is {ref.endpoint}, but the endpoints of this installation are {places}",
                "remove the endpoint, or have it added (relocation.allowedEndpoints)",
            )
    return None


def refused_amount(asked: Sequence[tuple[str, ResourceRequirements | None]], bounds: Bounds) -> Refusal | None:
    """Return why the first amount above its bound is not given, by the fields that ask for it; None where all are."""
    return next((refusal for field, amounts in asked if amounts for refusal in _excesses(field, amounts, bounds)), None)


def refused_number(replicas: Sequence[tuple[str, int]], bounds: Bounds) -> Refusal | None:
    """Return why the first number of pods is more than a server may have, by the fields; None where all are fewer."""
    return next(_crowds(replicas, bounds), None)


def refused_code(field: str, custom: Sequence[CustomMetricSpec], bounds: Bounds) -> Refusal | None:
    """Return why metrics of a user's own are not computed, None where they are, and where there are none."""
    if not custom or bounds.metric_code:
        return None
    message = f"{field} brings code, but this installation runs no metrics of others (bounds.metricCode)"
    return _refusal(message, "use the built-in metrics, or have it allowed")


def own_sources(field: str, options: EvaluationOptions) -> Sources:
    """Return the sources of metrics and tasks of a user's own by the fields that hold them, which are in ``field``."""
    metrics = [(f"{field}.custom[{index}]", metric) for index, metric in enumerate(options.custom)]
    return [*metrics, *((f"{field}.tasks[{index}]", task) for index, task in enumerate(options.tasks))]


def came_with_a_job(child: Resource, amounts: ResourceRequirements, observed: Observed) -> bool:
    """Whether an object is a stage of a job that was accepted, and asks for what that job asks for, and runs its code.

    Then it was allowed together with the job, whatever was forbidden since. That it names the job as its owner is not
    enough: everybody can write that.
    """
    for owner in child.metadata.owner_references:
        job = observed.resources.get((owner.kind, owner.name))
        if isinstance(job, FineTuningJob) and job.metadata.uid == owner.uid:
            serving = job.spec.serving.resources if job.spec.serving else None
            own = job.status.preset.resources if job.status.preset else job.spec.resources
            alike = amounts in (own, serving) and _has_code_of(child, job)
            return alike and is_true(job.status.conditions, ConditionType.ACCEPTED)
    return False


def _has_code_of(child: Resource, job: FineTuningJob) -> bool:
    return not isinstance(child, EvaluationJob) or all(each in job.spec.evaluation.custom for each in child.spec.custom)


def _excesses(field: str, amounts: ResourceRequirements, bounds: Bounds) -> Iterator[Refusal]:
    for name, most in bounds.resources.items():
        bound, way_out = f"at most {most} in each pod (bounds.resources)", "pick a preset, or have the bound raised"
        for kind, wanted in (("limits", amounts.limits.get(name)), ("requests", amounts.requests.get(name))):
            if wanted is not None and parse_quantity(wanted) > parse_quantity(most):
                message = f"{field}.{kind}.{name} is {wanted}, but this installation gives {bound}"
                yield _refusal(message, f"ask for less, {way_out}")
        if name in _ALWAYS_USED and name not in amounts.limits:
            message = f"{field}.limits.{name} is not set, but this installation gives {bound}"
            yield _refusal(message, f"set it to no more, {way_out}")


def _crowds(replicas: Sequence[tuple[str, int]], bounds: Bounds) -> Iterator[Refusal]:
    most = bounds.server_replicas
    for field, count in replicas:
        if most is not None and count > most:
            message = f"{field} is {count}, but this installation gives a server at most {most} (bounds.serverReplicas)"
            yield _refusal(message, "ask for less, or have the bound raised")


def _refusal(message: str, advice: str) -> Refusal:
    return Refusal(Reason.NOT_ALLOWED, f"{message}: {advice}")
