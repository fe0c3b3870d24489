"""Every event of a job is told once to everybody who asked for it, whatever becomes of the job and its Jobs."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.support.objects import NOW, World, failed, job, succeeded

from finetuning_api.base import ConditionType
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.notification import NotificationEvent, NotificationState, NotificationStatus, NotificationType
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import JobIdentity, LastWords, NotifyConfig, NotifyResult, TrainerStatus
from finetuning_operator.reconcile import reconcile
from finetuning_operator.reconcile.plan import ImageRole, Observed, Plan, Settings, Step, StepPhase, StepState

KEY = ("FineTuningJob", "demo")
EVERY = [event.value for event in NotificationEvent]
SENT = StepState(
    StepPhase.SUCCEEDED, last_words=LastWords(reason=Reason.SUCCEEDED, result=NotifyResult(host="hooks.example"))
)
REFUSED = failed(Reason.NOTIFICATION_FAILED, "hooks.example answered HTTP 404", "Check url of the Secret.")
GATED = {"metrics": ["exact-match"], "gate": [{"metric": "exact-match", "min": 0.5}]}


def told(*events: str, to: str = "hook", kind: str = "slack") -> dict[str, object]:
    return {"type": kind, "secretRef": {"name": to}, "events": list(events)}


def world(*notifications: dict[str, object], local: bool = False, **spec: Any) -> World:  # noqa: ANN401  (fields of the specification)
    made = World(Settings(local=local))
    made.add(job(notifications=list(notifications), evaluation=GATED, **spec))
    made.settle()
    return made


def notices(made: World) -> list[Step]:
    """Return the notifications that are wanted now."""
    return [step for step in made.plans[KEY].steps if isinstance(step.config, NotifyConfig)]


def deliver(made: World, state: StepState = SENT) -> list[NotificationEvent]:
    """Let every notification that is wanted end; return what they told."""
    events = []
    for step in notices(made):
        assert isinstance(step.config, NotifyConfig)
        events.append(step.config.event)
        made.finish(KEY, step.name, state)
    return events


def complete(made: World) -> World:
    made.finish_relocations()
    made.finish(KEY, "preflight")
    made.finish(KEY, "train")
    made.finish(("EvaluationJob", "demo-evaluation"), "evaluate")
    return made


def states(made: World) -> dict[NotificationEvent, NotificationState]:
    return {record.event: record.state for record in made.job().status.notifications}


def edit(made: World, **spec: object) -> None:
    """Change the specification as a user would."""
    old = made.job()
    fields = old.spec.model_dump(by_alias=True, exclude_none=True) | spec
    metadata = old.metadata.model_copy(update={"generation": old.metadata.generation + 1})
    new = FineTuningJob.model_validate({"metadata": metadata, "spec": fields})
    made.objects[KEY] = new.model_copy(update={"status": old.status})
    made.settle()


def test_every_event_of_a_life_is_told_once() -> None:
    made = world(told(*EVERY))
    heard = deliver(made)
    complete(made)
    heard += deliver(made)
    for _ in range(3):
        made.settle()
        heard += deliver(made)

    assert heard == [NotificationEvent.STARTED, NotificationEvent.GATE, NotificationEvent.SUCCEEDED]
    assert set(states(made).values()) == {NotificationState.SENT}
    assert (made.plans[KEY].steps, made.plans[KEY].events) == ((), ())


def test_a_failure_is_told_from_the_terminal_state_with_its_reason_and_hint() -> None:
    made = world(told("Failed"))
    made.finish_relocations()
    made.finish(KEY, "preflight", failed(Reason.COLUMN_NOT_FOUND, "no column triage", "Set spec.dataset.completion."))

    [step] = notices(made)
    name = step.name
    assert name.startswith("notify-")
    assert name.endswith("-failed")
    assert (step.image, step.secret, step.network, step.mounts) == (ImageRole.RELOCATOR, "hook", True, ())
    assert step.config == NotifyConfig(
        job=JobIdentity(kind="FineTuningJob", name="demo", uid="uid-1"),
        type=NotificationType.SLACK,
        secret="hook",
        id=f"uid-1/{name}",
        event=NotificationEvent.FAILED,
        time=made.job().status.notifications[0].time,
        phase="Failed",
        reason=Reason.COLUMN_NOT_FOUND,
        message="preflight: no column triage. Set spec.dataset.completion.",
    )


def test_the_end_is_told_with_the_numbers_of_the_evaluation() -> None:
    made = complete(world(told("Succeeded")))

    [step] = notices(made)
    status = made.job().status
    assert isinstance(step.config, NotifyConfig)
    assert (step.config.evaluation, step.config.verdict) == (tuple(status.evaluation), status.verdict)
    assert step.config.gate == "0.8 >= 0.1"


def test_only_what_is_written_is_sent() -> None:
    made = World(Settings())
    made.add(job(notifications=[told("Started")]))

    first, second = made.apply(KEY), made.apply(KEY)

    assert [step.name for step in first.steps] == []
    assert [step.name for step in second.steps] == [record.name for record in made.job().status.notifications]


def test_an_operator_that_ends_before_it_wrote_the_end_notices_it_again() -> None:
    made = world(told("Succeeded"))
    made.finish_relocations()
    made.finish(KEY, "preflight")
    made.finish(KEY, "train")
    before = made.job()
    made.steps["EvaluationJob", "demo-evaluation"] = {"evaluate": succeeded("evaluate")}
    made.settle()
    [step] = notices(made)
    made.objects[KEY] = before  # as if nothing had been written

    made.settle()

    assert [each.name for each in notices(made)] == [step.name]


def test_a_failed_notification_is_told_of_and_changes_nothing_of_the_job() -> None:
    made = complete(world(told("Succeeded")))
    before = made.job().status
    [step] = notices(made)
    made.steps[KEY][step.name] = REFUSED
    plan = made.apply(KEY)
    after = made.job().status

    assert made.holds(ConditionType.COMPLETE)
    assert [(event.reason, event.warning, event.message) for event in plan.events] == [
        (
            Reason.NOTIFICATION_FAILED,
            True,
            "Succeeded was not told by slack (Secret hook): hooks.example answered HTTP 404. Check url of the Secret.",
        )
    ]
    assert after.notifications[0].state is NotificationState.FAILED
    assert after.notifications[0].message == "hooks.example answered HTTP 404. Check url of the Secret."
    assert after.model_copy(update={"notifications": []}) == before.model_copy(update={"notifications": []})


def test_jobs_of_notifications_that_were_cleared_away_are_not_made_again() -> None:
    made = complete(world(told(*EVERY)))
    deliver(made)
    made.steps.clear()

    made.settle()

    assert made.plans[KEY].steps == ()


def test_a_notification_whose_job_vanished_before_its_end_was_seen_is_sent_again() -> None:
    made = complete(world(told("Succeeded")))
    [step] = notices(made)
    made.finish(KEY, step.name, StepState(StepPhase.RUNNING))
    made.steps.clear()

    made.settle()

    assert notices(made) == [step]


def test_adding_a_receiver_tells_nothing_of_the_past_and_all_of_the_future() -> None:
    made = world()
    made.finish_relocations()
    edit(made, notifications=[told(*EVERY)])
    assert notices(made) == []

    made.finish(KEY, "preflight", failed())
    assert deliver(made) == [NotificationEvent.FAILED]
    edit(made, notifications=[told(*EVERY), told(*EVERY, to="other")])

    assert notices(made) == []


def test_the_order_of_receivers_means_nothing() -> None:
    one, two = told("Started", "Succeeded", to="one"), told("Started", "Succeeded", to="two")
    made = world(one, two)
    deliver(made)
    edit(made, notifications=[two, one])

    assert notices(made) == []
    assert len(deliver(complete(made))) == 2


def test_a_receiver_that_is_named_twice_is_told_once() -> None:
    made = world(told("Started"), told("Started", "Failed"))

    assert [step.name for step in notices(made)] == [made.job().status.notifications[0].name]


def test_a_receiver_that_was_taken_out_is_not_told_any_more() -> None:
    made = world(told("Started"))
    assert len(notices(made)) == 1

    edit(made, notifications=[])

    assert notices(made) == []
    assert states(made) == {NotificationEvent.STARTED: NotificationState.FAILED}


def test_a_suspended_job_tells_its_start_when_it_starts_and_what_is_under_way_while_it_waits() -> None:
    made = world(told("Started"), suspend=True)
    assert notices(made) == []
    edit(made, suspend=False)
    [step] = notices(made)

    edit(made, suspend=True)

    assert [each.name for each in notices(made)] == [step.name]


def silent(made: World, *, reported: bool = False) -> None:
    """Let training be silent for long, or report again."""
    at = made.now if reported else made.now - timedelta(seconds=made.settings.stalled_after_seconds + 1)
    report = TrainerStatus(last_updated_time=at, progress_percentage=10)
    made.finish(KEY, "train", StepState(StepPhase.RUNNING, started_at=at, progress=report))


def test_each_episode_of_silence_is_told_once() -> None:
    made = world(told("Stalled"))
    made.finish_relocations()
    made.finish(KEY, "preflight")
    names, messages = [], []
    for _ in range(2):
        silent(made)
        made.settle()
        [step] = notices(made)
        assert isinstance(step.config, NotifyConfig)
        names.append(step.name.rpartition("stalled")[2])
        messages.append(step.config.message)
        assert deliver(made) == [NotificationEvent.STALLED]
        silent(made, reported=True)

    assert names == ["-1", "-2"]
    assert all(message.startswith("train has not reported since 2026-") for message in messages)


def test_a_job_that_stalls_on_and_on_is_told_of_eight_times() -> None:
    made = world(told("Stalled"))
    made.finish_relocations()
    made.finish(KEY, "preflight")
    heard = []
    for _ in range(10):
        silent(made)
        heard += deliver(made)
        silent(made, reported=True)

    assert heard == [NotificationEvent.STALLED] * 8


def waits(made: World, *, for_seconds: int) -> StepState:
    missing = LastWords(reason=Reason.CONFIGURATION_MISSING, message="the Secret hook is not there", hint="Create it.")
    since = made.now - timedelta(seconds=for_seconds)
    return StepState(StepPhase.PENDING, attempts=0, started_at=since, hindrance=missing)


def test_a_finished_job_with_a_time_to_live_waits_for_its_notifications() -> None:
    made = complete(world(told("Succeeded"), ttl_seconds_after_finished=0))
    [step] = notices(made)
    assert not made.plans[KEY].expired

    made.finish(KEY, step.name, waits(made, for_seconds=60))
    assert not made.plans[KEY].expired
    assert made.job().status.notifications[0].message == "the Secret hook is not there. Create it."
    assert made.plans[KEY].requeue_after == 3600 - 60 - (made.now - NOW).total_seconds() % 1 - 1

    made.finish(KEY, step.name, SENT)
    assert made.plans[KEY].expired


def test_a_notification_that_never_gets_to_run_is_given_up() -> None:
    made = complete(world(told("Succeeded"), ttl_seconds_after_finished=0))
    [step] = notices(made)

    made.finish(KEY, step.name, waits(made, for_seconds=3600))

    record = made.job().status.notifications[0]
    assert record.state is NotificationState.FAILED
    assert record.message == "its pod did not run for 3600 s. the Secret hook is not there. Create it."
    assert (made.plans[KEY].steps, made.plans[KEY].expired) == ((), True)


def test_a_try_that_failed_is_told_while_the_next_is_awaited() -> None:
    made = world(told("Started"))
    [step] = notices(made)
    words = LastWords(
        reason=Reason.NETWORK_UNREACHABLE, message="cannot reach hooks.example", hint="Check the network."
    )

    made.finish(KEY, step.name, StepState(StepPhase.PENDING, attempts=1, last_words=words))

    assert made.job().status.notifications == [
        NotificationStatus(
            name=step.name,
            event=NotificationEvent.STARTED,
            type=NotificationType.SLACK,
            secret_name="hook",
            time=NOW,
            message="cannot reach hooks.example. Check the network.",
        )
    ]


@pytest.mark.parametrize(("local", "retries"), [(False, 5), (True, 2)])
def test_the_same_plan_is_made_on_one_machine_with_fewer_retries(*, local: bool, retries: int) -> None:
    made = world(told("Started"), local=local)

    assert [step.retries for step in notices(made)] == [retries]


def test_a_job_without_receivers_is_planned_as_ever() -> None:
    made = complete(world())
    plan = made.plans[KEY]
    observed = Observed(resources=dict(made.objects))
    again: Plan = reconcile(made.job(), observed=observed, now=made.now, settings=made.settings)

    assert again.status is made.job().status
    assert replace(again, status=plan.status) == plan
