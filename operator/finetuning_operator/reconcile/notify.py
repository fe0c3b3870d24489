"""Notifications: events of a job are told to whoever asked for them, at least once, whatever becomes of the job.

An event is noticed by the conditions that change. What is to be told stands in the status, written together with these
conditions, so that neither is there without the other; and only what is written there is sent. So an operator that ends
between two writes neither forgets nor invents an event, and a job that has ended tells no more than what was noted at
its end. A notification never changes anything else of its job; one that fails is told of, and that is all.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, cast

from finetuning_api.base import Condition, ConditionType, StageState
from finetuning_api.finetuningjob import FineTuningJob, FineTuningJobStatus
from finetuning_api.notification import (
    MOST_NOTIFICATIONS,
    NotificationEvent,
    NotificationState,
    NotificationStatus,
    NotificationType,
)
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import NotifyConfig
from finetuning_operator.reconcile.afterwards import LOCAL_RETRIES, PATIENCE_SECONDS, RETRIES, identity, trouble
from finetuning_operator.reconcile.conditions import find_condition, headline, is_true, shorten
from finetuning_operator.reconcile.lifecycle import soonest
from finetuning_operator.reconcile.plan import Event, ImageRole, Observed, Plan, Settings, Step, StepPhase, StepState
from finetuning_operator.reconcile.stages import explain, seconds_left, sentences

_MOST_STALLS: Final = 8
"""Episodes of silence that one receiver is told of; a job that stalls more often is known to."""

_Target = tuple[NotificationType, str]
"""Format, and name of the Secret: whoever has the same of both is the same receiver."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What is seen of the notifications of a job."""

    job: FineTuningJob
    observed: Observed
    settings: Settings
    now: datetime

    @property
    def targets(self) -> dict[_Target, frozenset[NotificationEvent]]:
        """Who asks for which events."""
        found: dict[_Target, frozenset[NotificationEvent]] = {}
        for each in self.job.spec.notifications:
            target = (each.type, each.secret_ref.name)
            found[target] = found.get(target, frozenset()) | frozenset(each.events)
        return found

    def patience(self, state: StepState | None) -> float | None:
        """Return the seconds for which a step may still wait for its pod; None where it does not, or for ever."""
        if state is None or state.phase is not StepPhase.PENDING or self.settings.local:
            return None
        return seconds_left(PATIENCE_SECONDS, state.started_at, self.now)


def with_notifications(
    job: FineTuningJob, plan: Plan, *, observed: Observed, now: datetime, settings: Settings
) -> Plan:
    """Return the plan of a job with what its notifications need; the job is kept until all have been dealt with."""
    stored = job.status.notifications
    if not (stored or job.spec.notifications):
        return plan
    look = _Look(job, observed, settings, now)
    known = tuple(_after(record, look) for record in stored)
    status = cast("FineTuningJobStatus", plan.status)
    records = [*known, *_new_records(look, status, known)][:MOST_NOTIFICATIONS]
    if records != stored:
        status = status.model_copy(update={"notifications": records})
    waiting = [record for record in known if record.state is NotificationState.PENDING]
    waits = [look.patience(observed.steps.get(record.name)) for record in waiting]
    # What became of the last of them is written, and told, before the job goes.
    due = plan.expired and _is_waiting(stored)
    if due and not waiting:
        waits.append(0.0)
    return replace(
        plan,
        status=status,
        steps=(*plan.steps, *(_step(look, record) for record in waiting)),
        events=(*plan.events, *_failures(stored, known)),
        requeue_after=soonest(plan.requeue_after, *waits),
        expired=plan.expired and not due,
    )


def is_notifying(job: FineTuningJob) -> bool:
    """Return whether a notification of a job has been noted and neither delivered nor given up."""
    return _is_waiting(job.status.notifications)


def _is_waiting(records: Sequence[NotificationStatus]) -> bool:
    return any(record.state is NotificationState.PENDING for record in records)


def _after(record: NotificationStatus, look: _Look) -> NotificationStatus:
    """Return a record in the light of what its step has come to."""
    if record.state is not NotificationState.PENDING:
        return record
    if (record.type, record.secret_name) not in look.targets:
        return _ended(record, NotificationState.FAILED, "taken out of spec.notifications before it was delivered")
    state = look.observed.steps.get(record.name)
    return record if state is None else _by_step(record, state, look)


def _by_step(record: NotificationStatus, state: StepState, look: _Look) -> NotificationStatus:
    if state.phase is StepPhase.SUCCEEDED:
        return _ended(record, NotificationState.SENT, "")
    if state.phase is StepPhase.FAILED:
        return _ended(record, NotificationState.FAILED, explain(state.last_words)[1])
    hindered = trouble(state)
    if look.patience(state) == 0:
        told = sentences(f"its pod did not run for {PATIENCE_SECONDS} s", hindered)
        return _ended(record, NotificationState.FAILED, told)
    return record.model_copy(update={"message": shorten(hindered)}) if hindered else record


def _ended(record: NotificationStatus, state: NotificationState, message: str) -> NotificationStatus:
    return record.model_copy(update={"state": state, "message": shorten(message)})


def _failures(before: Sequence[NotificationStatus], after: Sequence[NotificationStatus]) -> Iterator[Event]:
    for old, new in zip(before, after, strict=True):
        if old.state is not new.state and new.state is NotificationState.FAILED:
            what = f"{new.event.value} was not told by {new.type.value} (Secret {new.secret_name})"
            yield Event(Reason.NOTIFICATION_FAILED, f"{what}: {new.message}", warning=True)


def _new_records(
    look: _Look, status: FineTuningJobStatus, known: Sequence[NotificationStatus]
) -> Iterator[NotificationStatus]:
    happened = tuple(_happened(look.job.status, status))
    taken = {record.name for record in known}
    for (kind, secret), wanted in look.targets.items():
        for event in happened:
            name = _name(kind, secret, event=event, taken=taken) if event in wanted else None
            if name is not None:
                yield NotificationStatus(name=name, event=event, type=kind, secret_name=secret, time=look.now)


def _happened(old: FineTuningJobStatus, new: FineTuningJobStatus) -> Iterator[NotificationEvent]:
    """Yield what became true by the change from one status to another."""
    if old.start_time is None and new.start_time is not None:
        yield NotificationEvent.STARTED
    if any(_begins_to_stall(condition, old) for condition in new.conditions):
        yield NotificationEvent.STALLED
    verdicts = [find_condition(status.conditions, ConditionType.GATE_PASSED) for status in (old, new)]
    if verdicts[1] is not None and (verdicts[0] is None or verdicts[0].reason is not verdicts[1].reason):
        yield NotificationEvent.GATE
    ends = {ConditionType.COMPLETE: NotificationEvent.SUCCEEDED, ConditionType.FAILED: NotificationEvent.FAILED}
    for end, event in ends.items():
        if is_true(new.conditions, end) and not is_true(old.conditions, end):
            yield event


def _begins_to_stall(condition: Condition, old: FineTuningJobStatus) -> bool:
    before = find_condition(old.conditions, condition.type)
    return condition.reason is Reason.STALLED and (before is None or before.reason is not Reason.STALLED)


def _name(kind: NotificationType, secret: str, *, event: NotificationEvent, taken: set[str]) -> str | None:
    """Return the name of the step that tells an event; None where it was told already, or often enough.

    It follows from receiver and event alone: whoever changes the order of ``spec.notifications`` changes no name.
    """
    mark = hashlib.sha256(f"{kind.value}/{secret}".encode()).hexdigest()[:8]
    name = f"notify-{mark}-{event.value.lower()}"
    names = (
        [f"{name}-{number}" for number in range(1, _MOST_STALLS + 1)] if event is NotificationEvent.STALLED else [name]
    )
    return next((each for each in names if each not in taken), None)


def _step(look: _Look, record: NotificationStatus) -> Step:
    return Step(
        name=record.name,
        image=ImageRole.RELOCATOR,
        config=_config(look.job, record),
        secret=record.secret_name,
        network=True,
        retries=LOCAL_RETRIES if look.settings.local else RETRIES,
    )


def _config(job: FineTuningJob, record: NotificationStatus) -> NotifyConfig:
    status = job.status
    failed = find_condition(status.conditions, ConditionType.FAILED)
    gate = find_condition(status.conditions, ConditionType.GATE_PASSED)
    messages = {
        NotificationEvent.FAILED: failed.message if failed else "",
        NotificationEvent.STALLED: _silence(status),
    }
    return NotifyConfig(
        job=identity(job),
        type=record.type,
        secret=record.secret_name,
        id=f"{job.metadata.uid}/{record.name}",
        event=record.event,
        time=record.time,
        phase=status.phase.value,
        reason=failed.reason if failed and record.event is NotificationEvent.FAILED else None,
        message=headline(messages.get(record.event, "")),
        evaluation=tuple(status.evaluation),
        verdict=status.verdict,
        gate=gate.message if gate else "",
        url=status.serving.url if status.serving else "",
    )


def _silence(status: FineTuningJobStatus) -> str:
    running = (stage for stage in status.stages if stage.state is StageState.RUNNING and stage.message)
    return next((f"{stage.name} {stage.message}" for stage in running), "")
