"""What the two kinds of jobs share: being refused, suspended, out of time, failed and finished."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from finetuning_api.base import Condition, ConditionStatus, ConditionType, ProgressStatus, Resource, Stage, StagedStatus
from finetuning_api.finetuningjob import JobPhase, RunOptions
from finetuning_api.reasons import Reason
from finetuning_operator.reconcile.conditions import condition, find_condition, is_terminal, is_true, set_condition
from finetuning_operator.reconcile.plan import Plan, Settings
from finetuning_operator.reconcile.stages import Clock, pause, seconds_left

Status = TypeVar("Status", bound=StagedStatus)
_STAGE_CONDITIONS = frozenset(
    {ConditionType.RELOCATED, ConditionType.TRAINED, ConditionType.EVALUATED, ConditionType.SERVING}
)
"""Conditions that tell of stages: what they wait for in suspension is to be resumed."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a job cannot go on."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Admission:
    """A job that may go on: since when it is active, and what is true of every job that is."""

    since: datetime
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Common:
    """The part of a job's status that both kinds of jobs have."""

    conditions: tuple[Condition, ...]
    stages: tuple[Stage, ...]
    phase: JobPhase
    start_time: datetime | None
    completion_time: datetime | None
    generation: int
    progress: ProgressStatus | None = None
    reason: Reason | None = None
    """Why the job waits or has failed; None while all goes well."""

    @property
    def finished(self) -> bool:
        """Whether the job has ended for good."""
        return is_terminal(self.conditions)

    def fields(self) -> dict[str, object]:
        """Return the fields as an update of a status."""
        return {
            "observed_generation": self.generation,
            "phase": self.phase,
            "reason": self.reason,
            "start_time": self.start_time,
            "completion_time": self.completion_time,
            "progress": self.progress,
            "stages": list(self.stages),
            "conditions": list(self.conditions),
        }


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes conditions of one generation at one moment."""

    generation: int
    now: datetime

    def set(
        self,
        conditions: Sequence[Condition],
        condition_type: ConditionType,
        *,
        holds: bool,
        reason: Reason,
        message: str = "",
    ) -> tuple[Condition, ...]:
        """Return the conditions with one of them set."""
        told = condition(
            condition_type, holds=holds, reason=reason, message=message, generation=self.generation, now=self.now
        )
        return set_condition(conditions, told)

    def accepted(self, conditions: Sequence[Condition]) -> tuple[Condition, ...]:
        """Return the conditions of a job that may run, with the mark of an earlier suspension taken back."""
        told = self.set(conditions, ConditionType.ACCEPTED, holds=True, reason=Reason.ACCEPTED)
        if find_condition(told, ConditionType.SUSPENDED) is None:
            return told
        return self.set(told, ConditionType.SUSPENDED, holds=False, reason=Reason.RESUMED)

    def refused(
        self, refusal: Refusal, *, conditions: Sequence[Condition], stages: Sequence[Stage], start: datetime | None
    ) -> Common:
        """Return the end of a job that is not accepted."""
        told = self.set(conditions, ConditionType.ACCEPTED, holds=False, reason=refusal.reason, message=refusal.message)
        return self.failed(refusal, conditions=told, stages=stages, start=start)

    def failed(
        self, refusal: Refusal, *, conditions: Sequence[Condition], stages: Sequence[Stage], start: datetime | None
    ) -> Common:
        """Return the end of a job that failed."""
        told = self.set(conditions, ConditionType.FAILED, holds=True, reason=refusal.reason, message=refusal.message)
        return Common(
            conditions=told,
            stages=tuple(stages),
            phase=JobPhase.FAILED,
            start_time=start,
            completion_time=self.now,
            generation=self.generation,
            reason=refusal.reason,
        )

    def suspended(self, *, conditions: Sequence[Condition], stages: Sequence[Stage], start: datetime | None) -> Common:
        """Return the state of a job whose steps are stopped on purpose."""
        accepted = self.set(conditions, ConditionType.ACCEPTED, holds=True, reason=Reason.ACCEPTED)
        for stage in accepted:
            if stage.type in _STAGE_CONDITIONS and stage.status is ConditionStatus.FALSE:
                accepted = self.set(accepted, stage.type, holds=False, reason=Reason.SUSPENDED)
        told = self.set(
            accepted,
            ConditionType.SUSPENDED,
            holds=True,
            reason=Reason.SUSPENDED,
            message="spec.suspend is true; set it to false to go on",
        )
        return Common(
            conditions=told,
            stages=pause(stages),
            phase=JobPhase.SUSPENDED,
            start_time=start,
            completion_time=None,
            generation=self.generation,
        )


def admit(spec: RunOptions, status: StagedStatus, *, refusal: Refusal | None, writer: Writer) -> Admission | Common:
    """Return how a job that has not ended goes on; where it runs nothing, refused, suspended or late, its state."""
    before, stages = status.conditions, status.stages
    if refusal is not None:
        return writer.refused(refusal, conditions=before, stages=stages, start=status.start_time)
    if spec.suspend:
        return writer.suspended(conditions=before, stages=stages, start=status.start_time)
    admission = Admission(active_since(status.start_time, before, writer.now), writer.accepted(before))
    late = overdue(spec.active_deadline_seconds, admission.since, writer.now)
    if late is not None:
        return writer.failed(late, conditions=admission.conditions, stages=stages, start=admission.since)
    return admission


def active_since(start: datetime | None, conditions: Sequence[Condition], now: datetime) -> datetime:
    """Return since when a job is active; time in suspension does not count, as in a batch Job."""
    return now if start is None or is_true(conditions, ConditionType.SUSPENDED) else start


def concerned_since(status: StagedStatus, *, settings: Settings, now: datetime) -> datetime | None:
    """Return since when failures of what others share are a job's own; None on one machine, which clears them away."""
    return None if settings.local else active_since(status.start_time, status.conditions, now)


def overdue(active: int | None, since: datetime, now: datetime) -> Refusal | None:
    """Return why a job has run out of time, None when it has not. The deadline is in seconds."""
    if seconds_left(active, since, now) != 0:
        return None
    return Refusal(Reason.DEADLINE_EXCEEDED, f"the job was active for {active} seconds (activeDeadlineSeconds)")


def time_left(spec: RunOptions, since: datetime | None, now: datetime) -> float | None:
    """Return the seconds until a job runs out of time; None where it never does."""
    return seconds_left(spec.active_deadline_seconds, since, now)


def soonest(*seconds: float | None) -> float | None:
    """Return after how many seconds the clock alone may change a plan, None where it never does."""
    return min((each for each in seconds if each is not None), default=None)


def clock_of(spec: RunOptions, *, since: datetime, settings: Settings, now: datetime) -> Clock:
    """Return the time as the stages of a job see it."""
    return Clock(
        now,
        stalled_after=settings.stalled_after_seconds,
        pending_deadline=spec.pending_deadline_seconds,
        active_since=since,
    )


def ended(
    status: StagedStatus, *, generation: int, ttl: int | None, now: datetime, children: tuple[Resource, ...] = ()
) -> Plan:
    """Return the plan of an object that has ended: nothing changes, until its time after the end is over.

    What of its specification may still change is taken note of: tools wait until the generation was seen.
    """
    left = seconds_left(ttl, status.completion_time, now)
    return Plan(status=seen(status, generation), children=children, expired=left == 0, requeue_after=left or None)


def seen(status: Status, generation: int) -> Status:
    """Return a status that is about a generation of its object."""
    if status.observed_generation == generation:
        return status
    return status.model_copy(update={"observed_generation": generation})
