"""Results of FineTuningJobs that other objects use: whether they are there, will be, or never will."""

from collections.abc import Iterable
from dataclasses import dataclass

from finetuning_api.base import ClaimRef, ConditionType, Resource, StageState
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import AdapterArtifact, FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_operator.reconcile.conditions import find_condition, headline, is_true
from finetuning_operator.reconcile.names import adapter_job
from finetuning_operator.reconcile.needs import Need
from finetuning_operator.reconcile.plan import Observed
from finetuning_operator.reconcile.stages import Outcome


@dataclass(frozen=True, slots=True)
class Dependency:
    """A job that somebody refers to."""

    name: str
    job: FineTuningJob | None
    lost: frozenset[str] = frozenset()
    """Claims that are gone."""

    @property
    def failure(self) -> str:
        """Why there will be no result; empty where there may be one."""
        made = self.job.status.artifacts.adapter if self.job else None
        if made is not None and made.claim_name in self.lost:
            return f"the claim {made.claim_name} with the result of FineTuningJob {self.name} is gone"
        conditions = self.job.status.conditions if self.job else ()
        failed = find_condition(conditions, ConditionType.FAILED)
        if failed is None or not is_true(conditions, ConditionType.FAILED):
            return ""
        return f"FineTuningJob {self.name} failed: {headline(failed.message)}"

    @property
    def complete(self) -> bool:
        """Whether the result is there."""
        return self.job is not None and is_true(self.job.status.conditions, ConditionType.COMPLETE)

    @property
    def told(self) -> str:
        """The job and where it stands, for whoever waits for it."""
        return f"{self.name} ({self.job.status.phase.value if self.job else 'not there yet'})"


def dependency(name: str, observed: Observed) -> Dependency:
    """Return a job by its name, whether it is there or not."""
    found = observed.resources.get((FineTuningJob.__name__, name))
    return Dependency(name, found if isinstance(found, FineTuningJob) else None, observed.lost)


def awaited(names: Iterable[str], observed: Observed) -> Outcome:
    """Return where the stage stands that waits for the results of other jobs."""
    jobs = [dependency(name, observed) for name in dict.fromkeys(names)]
    failure = next((job.failure for job in jobs if job.failure), "")
    if failure:
        return Outcome(StageState.FAILED, Reason.DEPENDENCY_FAILED, failure)
    waiting = ", ".join(job.told for job in jobs if not job.complete)
    if waiting:
        return Outcome(StageState.PENDING, Reason.WAITING, f"waits for FineTuningJob {waiting}")
    return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, percent=100)


def job_refs(resource: Resource) -> tuple[str, ...]:
    """Return the jobs whose results an object names to evaluate them, each once."""
    match resource:
        case FineTuningJob():
            return tuple(resource.spec.evaluation.job_refs)
        case EvaluationJob():
            named = (candidate.job_ref for candidate in resource.spec.candidates)
            return tuple(dict.fromkeys(name for name in named if name is not None))
    return ()


def made_adapter(place: ClaimRef, observed: Observed) -> AdapterArtifact | None:
    """Return what the job recorded that made the adapter in a place; None where no job tells."""
    job = dependency(adapter_job(place.claim_name) or "", observed).job
    made = job.status.artifacts.adapter if job else None
    return made if made and (made.claim_name, made.path) == (place.claim_name, place.path) else None


def tunes_other_model(job: FineTuningJob, model: Need, observed: Observed) -> bool:
    """Whether a job tuned another model than one that is needed here: another source, or other bytes of the same."""
    if job.spec.model.parsed.canonical != model.ref.parsed.canonical:
        return True
    here, there = model.artifact(observed), job.status.artifacts.model
    return here is not None and there is not None and here.digest != there.digest
