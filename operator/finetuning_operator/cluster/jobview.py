"""A Job with its pods, and what follows from them together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetuning_api.reasons import ExitCode
from finetuning_operator.cluster.facts import JobFacts, PodFacts, read_job, read_pod

NODE_PATIENCE = timedelta(seconds=30)
"""How long after its end a pod may still be there before its node counts as silent."""
_ONE_ATTEMPT = timedelta(minutes=1)
"""Workers that fail within this time fail together: one of them first, the others because of it."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A Job with its pods, oldest first, at one moment."""

    job: JobFacts
    pods: tuple[PodFacts, ...]
    now: datetime

    @classmethod
    def read(cls, job: Mapping[str, object], pods: Sequence[Mapping[str, object]], *, now: datetime) -> "JobView":
        """Read plain objects."""
        facts = sorted(map(read_pod, pods), key=lambda pod: (seconds(pod.created_at), pod.name))
        return cls(read_job(job), tuple(facts), now)

    @property
    def ended(self) -> tuple[PodFacts, ...]:
        """The pods that ended, in the order in which they did."""
        return tuple(sorted((pod for pod in self.pods if pod.ended), key=lambda pod: seconds(pod.ended_at)))

    @property
    def success(self) -> PodFacts | None:
        """The pod that speaks for a success: worker 0."""
        return next((pod for pod in self.ended if pod.succeeded and pod.index == 0), None)

    @property
    def culprit(self) -> PodFacts | None:
        """The pod to blame for the last failed attempt.

        Of several workers it is the one that failed first, and not one that ended because of it.
        """
        failed = [pod for pod in self.ended if not pod.succeeded]
        told = self.job.condition("Failed", "FailureTarget")
        named = [pod for pod in failed if told and f"/{pod.name} " in told.message]
        if named or not failed:
            return named[-1] if named else None
        latest = seconds(failed[-1].ended_at)
        together = [pod for pod in failed if latest - seconds(pod.ended_at) <= _ONE_ATTEMPT.total_seconds()]
        by_themselves = [pod for pod in together if not (pod.end and pod.end.exit_code == ExitCode.INTERRUPTED)]
        return (by_themselves or together)[0] if self.job.workers > 1 else failed[-1]

    @property
    def waiting(self) -> tuple[PodFacts, ...]:
        """The pods that neither run nor have ended, and those that should be gone and are not."""
        return tuple(pod for pod in self.pods if not pod.ended and (not pod.running or self.is_lost(pod)))

    @property
    def all_running(self) -> bool:
        """Whether every worker runs, or has done its part."""
        running = {pod.index for pod in self.pods if pod.running and not self.is_lost(pod)}
        done = {pod.index for pod in self.pods if pod.succeeded}
        return bool(running) and len(running | done) >= self.job.workers

    @property
    def is_behind(self) -> bool:
        """Whether the Job has ended and a pod of it seems not to have.

        Jobs and pods are watched apart: the pod's own event, with its last words, is still to come.
        """
        ended = self.job.condition("Failed", "Complete", "SuccessCriteriaMet") is not None
        return ended and any(not pod.ended and pod.deleted_at is None for pod in self.pods)

    @property
    def pending_since(self) -> datetime | None:
        """Since when the step waits for a pod to run, where that is known: each wait counts for itself."""
        if self.job.suspended:
            told = self.job.condition("Suspended")
            return (told.at if told else None) or self.job.created_at
        if self.job.condition("Suspended"):
            return None  # It was just let go, and has not started: the time before was not for its pods to use.
        times = (
            self.job.started_at or self.job.created_at,
            *(pod.ended_at for pod in self.ended),
            *(pod.created_at for pod in self.waiting),
        )
        return max((time for time in times if time), default=None)

    def is_lost(self, pod: PodFacts) -> bool:
        """Return whether a pod should have been gone for a while: its node does not answer."""
        return pod.deleted_at is not None and self.now > pod.deleted_at + NODE_PATIENCE


def seconds(time: datetime | None) -> float:
    """Return a time as a number to sort by; unknown times come first."""
    return time.timestamp() if time else 0.0
