"""Results of FineTuningJobs that other objects use: whether they are there, will be, or never will."""

from dataclasses import dataclass

from finetuning_api.base import ClaimRef, ConditionType
from finetuning_api.finetuningjob import AdapterArtifact, FineTuningJob
from finetuning_operator.reconcile.conditions import find_condition, headline, is_true
from finetuning_operator.reconcile.names import adapter_job
from finetuning_operator.reconcile.plan import Observed


@dataclass(frozen=True, slots=True)
class Dependency:
    """A job that somebody refers to."""

    name: str
    job: FineTuningJob | None

    @property
    def failure(self) -> str:
        """Why there will be no result; empty where there may be one."""
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
    return Dependency(name, found if isinstance(found, FineTuningJob) else None)


def made_adapter(place: ClaimRef, observed: Observed) -> AdapterArtifact | None:
    """Return what the job recorded that made the adapter in a place; None where no job tells."""
    job = dependency(adapter_job(place.claim_name) or "", observed).job
    made = job.status.artifacts.adapter if job else None
    return made if made and (made.claim_name, made.path) == (place.claim_name, place.path) else None
