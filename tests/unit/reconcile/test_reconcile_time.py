"""What waits, what keeps silent and what has ended is told with its cause, and the clock is asked in time."""

from datetime import datetime, timedelta

import pytest
from tests.support.objects import NOW, World, failed, job, relocation

from finetuning_api.base import Condition, ConditionStatus, ConditionType, ObjectMeta, OwnerReference, Stage, StageState
from finetuning_api.evaluationjob import EvaluationJob, EvaluationJobSpec
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation
from finetuning_api.runconfig import LastWords, TrainerStatus
from finetuning_operator.reconcile.conditions import MESSAGE_LENGTH, find_condition
from finetuning_operator.reconcile.plan import Event, Plan, StepPhase, StepState

KEY = ("FineTuningJob", "demo")
EVALUATION = ("EvaluationJob", "demo-evaluation")
RELOCATION = ("Relocation", "reloc-0")
FULL = LastWords(reason=Reason.UNSCHEDULABLE, message="0/3 nodes have a free nvidia.com/gpu", hint="Free one.")


def world(resource: FineTuningJob | None = None, *, until: str = "train") -> World:
    """A job that is about to start one of its steps."""
    made = World()
    made.add(resource or job())
    made.settle()
    made.finish_relocations()
    for step in ("preflight", "train")[: ("preflight", "train", "evaluate").index(until)]:
        made.finish(KEY, step)
    return made


def told(made: World, condition: ConditionType, key: tuple[str, str] = KEY) -> Condition:
    resource = made.objects[key]
    assert isinstance(resource, FineTuningJob | EvaluationJob | Relocation)
    found = find_condition(resource.status.conditions, condition)
    assert found is not None
    return found


def stage(made: World, name: str) -> Stage:
    return next(each for each in made.job().status.stages if each.name == name)


def settle_once(made: World, key: tuple[str, str], step: str, state: StepState) -> Plan:
    """Let a step change and return the first plan that knows of it."""
    made.steps.setdefault(key, {})[step] = state
    return made.apply(key)


@pytest.mark.parametrize("step", ["preflight", "train"])
def test_what_hinders_a_pending_step_is_reason_and_message_of_its_stage_and_one_event(step: str) -> None:
    made = world(until=step)
    waiting = StepState(StepPhase.PENDING, attempts=0, started_at=made.now, hindrance=FULL)
    plan = settle_once(made, KEY, step, waiting)
    again = made.apply(KEY)

    message = "0/3 nodes have a free nvidia.com/gpu. Free one."
    assert (stage(made, step).state, stage(made, step).message) == (StageState.PENDING, message)
    trained = told(made, ConditionType.TRAINED)
    assert (trained.status, trained.reason, trained.message) == (ConditionStatus.FALSE, Reason.UNSCHEDULABLE, message)
    assert plan.events == (Event(Reason.UNSCHEDULABLE, message, warning=True),)
    assert again.events == ()
    assert [each.name for each in plan.steps] == [step]


def test_a_second_try_that_waits_tells_both() -> None:
    made = world()
    words = LastWords(reason=Reason.EVICTED, message="the node was short of memory")
    settle_once(made, KEY, "train", StepState(StepPhase.PENDING, hindrance=FULL, last_words=words))

    assert stage(made, "train").message == (
        "0/3 nodes have a free nvidia.com/gpu. Free one. tries again after: the node was short of memory"
    )


def test_what_hinders_an_evaluation_is_told_of_its_job() -> None:
    made = world(until="evaluate")
    waiting = StepState(StepPhase.PENDING, attempts=0, started_at=made.now, hindrance=FULL)
    made.finish(EVALUATION, "evaluate", waiting)

    evaluated = told(made, ConditionType.EVALUATED)
    assert (evaluated.reason, evaluated.message) == (Reason.UNSCHEDULABLE, stage(made, "evaluate").message)
    assert told(made, ConditionType.EVALUATED, EVALUATION).reason is Reason.UNSCHEDULABLE


def test_what_hinders_a_relocation_is_told_of_its_job() -> None:
    made = World()
    made.add(job())
    made.settle()
    model = next(
        key for key, each in made.objects.items() if isinstance(each, Relocation) and "hf:" in each.spec.source
    )
    made.finish(model, "measure", StepState(StepPhase.PENDING, attempts=0, hindrance=FULL))

    assert told(made, ConditionType.READY, model).reason is Reason.UNSCHEDULABLE
    relocated = told(made, ConditionType.RELOCATED)
    assert relocated.reason is Reason.UNSCHEDULABLE
    assert "model pending: 0/3 nodes have a free nvidia.com/gpu. Free one." in relocated.message


def test_what_hinders_two_relocations_is_told_in_one_sentence() -> None:
    made = World()
    made.add(job())
    made.settle()
    for key in [key for key, each in made.objects.items() if isinstance(each, Relocation)]:
        made.finish(key, "measure", StepState(StepPhase.PENDING, attempts=0, hindrance=FULL))

    message = told(made, ConditionType.RELOCATED).message
    assert "Free one, model pending" in message
    assert message.endswith("Free one.")


def test_stage_of_relocations_runs_only_while_one_of_them_does() -> None:
    made = World()
    made.add(job())
    made.settle()
    data, model = sorted(
        (key for key, each in made.objects.items() if isinstance(each, Relocation)),
        key=lambda key: "hf:" in str(getattr(made.objects[key], "spec", "")),
    )
    seen = [stage(made, "relocate")]
    for key, step, state in (
        (model, "measure", StepState(StepPhase.PENDING, attempts=0)),
        (model, "measure", StepState(StepPhase.RUNNING)),
        (model, "measure", None),
        (data, "measure", StepState(StepPhase.RUNNING)),
    ):
        made.finish(key, step, state)
        seen.append(stage(made, "relocate"))

    assert [(each.state.value, each.attempts, each.start_time is not None) for each in seen] == [
        ("Pending", 0, False),
        ("Pending", 0, False),
        ("Running", 1, True),
        ("Pending", 1, True),
        ("Running", 1, True),
    ]
    assert told(made, ConditionType.RELOCATED).reason is Reason.RELOCATING


def test_stage_of_an_evaluation_that_waits_for_its_pod_is_pending() -> None:
    made = world(until="evaluate")
    seen = []
    for state in (StepState(StepPhase.PENDING, attempts=0, hindrance=FULL), StepState(StepPhase.RUNNING)):
        made.finish(EVALUATION, "evaluate", state)
        found = stage(made, "evaluate")
        seen.append((found.state, found.attempts, told(made, ConditionType.EVALUATED).reason))

    assert seen == [(StageState.PENDING, 0, Reason.UNSCHEDULABLE), (StageState.RUNNING, 1, Reason.EVALUATING)]


def test_why_a_job_waits_or_failed_is_its_reason_and_what_gets_on_has_none() -> None:
    made = world()
    states = {
        "queued": StepState(StepPhase.PENDING, attempts=0),
        "full": StepState(StepPhase.PENDING, attempts=0, hindrance=FULL),
        "running": StepState(StepPhase.RUNNING),
        "leaving": StepState(StepPhase.RUNNING, leaving_claims=("demo-adapter",)),
        "failed": failed(),
    }
    seen: dict[str, Reason | None] = {}
    for name, state in states.items():
        made.finish(KEY, "train", state)
        seen[name] = made.job().status.reason

    assert seen == {
        "queued": Reason.PENDING,
        "full": Reason.UNSCHEDULABLE,
        "running": None,
        "leaving": Reason.VOLUME_UNAVAILABLE,
        "failed": Reason.NETWORK_UNREACHABLE,
    }


def test_what_a_suspended_job_waited_for_is_no_longer_told() -> None:
    made = world()
    made.finish(KEY, "train", StepState(StepPhase.PENDING, attempts=0, hindrance=FULL))
    waiting = made.job()
    made.add(waiting.model_copy(update={"spec": waiting.spec.model_copy(update={"suspend": True})}))
    made.settle()

    relocated, trained = told(made, ConditionType.RELOCATED), told(made, ConditionType.TRAINED)
    assert (relocated.status, relocated.reason) == (ConditionStatus.TRUE, Reason.SUCCEEDED)
    assert (trained.status, trained.reason, trained.message) == (ConditionStatus.FALSE, Reason.SUSPENDED, "")
    assert made.job().status.reason is None


def test_log_lines_of_a_final_failure_end_its_message_and_nothing_else() -> None:
    made = world()
    plan = settle_once(made, KEY, "train", StepState(StepPhase.FAILED, log_tail=("loading", "Killed")))

    sentence = "the program ended without a word; its log has the details"
    assert told(made, ConditionType.FAILED).message == f"train: {sentence}\nlast log lines:\nloading\nKilled"
    assert told(made, ConditionType.TRAINED).message == stage(made, "train").message == sentence
    assert plan.events == (Event(Reason.BACKOFF_LIMIT_EXCEEDED, f"train: {sentence}", warning=True),)


def test_of_a_long_log_the_latest_whole_lines_are_kept() -> None:
    made = world()
    settle_once(made, KEY, "train", StepState(StepPhase.FAILED, log_tail=tuple(f"line {n:04}" for n in range(2000))))

    message = told(made, ConditionType.FAILED).message
    lines = message.partition("last log lines:\n")[2].split("\n")
    assert len(message) <= MESSAGE_LENGTH
    assert lines == [f"line {n:04}" for n in range(2000 - len(lines), 2000)]
    assert len(lines) > 300


def test_one_endless_log_line_is_cut_and_a_message_that_fills_the_field_gets_none() -> None:
    endless, full = world(), world()
    settle_once(endless, KEY, "train", StepState(StepPhase.FAILED, log_tail=("x" * 100_000,)))
    words = LastWords(reason=Reason.INTERNAL, message="m" * 5000)
    settle_once(full, KEY, "train", StepState(StepPhase.FAILED, last_words=words, log_tail=("line",)))

    assert len(told(endless, ConditionType.FAILED).message) <= MESSAGE_LENGTH
    assert told(endless, ConditionType.FAILED).message.endswith("xxx")
    assert len(told(full, ConditionType.FAILED).message) == MESSAGE_LENGTH
    assert "last log lines" not in told(full, ConditionType.FAILED).message


@pytest.mark.parametrize("step", ["preflight", "train"])
def test_deadline_of_a_pending_step_names_the_cause(step: str) -> None:
    made = world(job(pending_deadline_seconds=600), until=step)
    waiting = StepState(StepPhase.PENDING, attempts=0, started_at=made.now, hindrance=FULL)
    first = settle_once(made, KEY, step, waiting)
    made.now += timedelta(seconds=599)
    almost = made.apply(KEY)
    made.now += timedelta(seconds=1)
    plan = made.apply(KEY)

    assert (first.requeue_after, almost.requeue_after) == (600, 1)
    cause = "waited 600 s: Unschedulable: 0/3 nodes have a free nvidia.com/gpu. Free one."
    ended = told(made, ConditionType.FAILED)
    assert (ended.reason, ended.message) == (Reason.DEADLINE_EXCEEDED, f"{step}: {cause}")
    assert (stage(made, step).state, stage(made, step).message) == (StageState.FAILED, cause)
    assert (plan.steps, plan.requeue_after) == ((), None)


def test_deadline_without_a_known_cause_names_the_field() -> None:
    made = world(job(pending_deadline_seconds=60))
    settle_once(made, KEY, "train", StepState(StepPhase.PENDING, attempts=0, started_at=made.now))
    made.now += timedelta(seconds=60)
    made.apply(KEY)

    assert told(made, ConditionType.FAILED).message == (
        "train: waited 60 s for its pod to run (pendingDeadlineSeconds)"
    )


def test_a_step_that_cannot_be_made_waits_like_one_whose_pod_does_not_run() -> None:
    made = world(job(pending_deadline_seconds=60))
    refused = LastWords(reason=Reason.QUOTA_EXCEEDED, message="pods: 10 of 10 are used")
    state = StepState(StepPhase.PENDING, attempts=0, started_at=made.now, hindrance=refused)
    plan = settle_once(made, KEY, "train", state)
    made.now += timedelta(seconds=60)
    made.apply(KEY)

    assert plan.requeue_after == 60
    assert told(made, ConditionType.FAILED).message == "train: waited 60 s: QuotaExceeded: pods: 10 of 10 are used"


def test_neither_a_step_that_is_gone_nor_one_that_is_being_stopped_waits_for_its_pod() -> None:
    made = world(job(pending_deadline_seconds=60))
    long_ago = made.now
    settle_once(made, KEY, "train", StepState(StepPhase.RUNNING, started_at=long_ago))
    made.now += timedelta(hours=1)
    stopping = LastWords(reason=Reason.STOPPING, message="it saves and ends")
    settle_once(made, KEY, "train", StepState(StepPhase.PENDING, started_at=long_ago, hindrance=stopping))
    del made.steps[KEY]["train"]
    made.apply(KEY)

    assert not made.holds(ConditionType.FAILED)
    assert [step.name for step in made.plans[KEY].steps] == ["train"]


@pytest.mark.parametrize(
    ("reason", "failed"),
    [pytest.param(Reason.QUEUED, False, id="turn"), pytest.param(Reason.QUEUE_INADMISSIBLE, True, id="never")],
)
def test_time_in_a_queue_is_not_waiting_unless_the_queue_does_not_admit(reason: Reason, *, failed: bool) -> None:
    made = world(job(pending_deadline_seconds=60, queue_name="team"))
    queued = LastWords(reason=reason, message="the queue speaks")
    settle_once(made, KEY, "train", StepState(StepPhase.PENDING, started_at=made.now, hindrance=queued))
    made.now += timedelta(hours=1)
    made.apply(KEY)

    assert made.holds(ConditionType.FAILED) is failed


def test_waiting_for_a_relocations_pod_counts_as_waiting() -> None:
    made = World()
    made.add(job(pending_deadline_seconds=60))
    made.settle()
    model = next(
        key for key, each in made.objects.items() if isinstance(each, Relocation) and "hf:" in each.spec.source
    )
    made.steps = {
        key: {"measure": StepState(StepPhase.RUNNING)}
        for key in made.objects
        if key[0] == "Relocation" and key != model
    }
    made.finish(model, "measure", StepState(StepPhase.PENDING, attempts=0, hindrance=FULL))
    made.now = NOW + timedelta(seconds=62)
    made.settle()

    ended = told(made, ConditionType.FAILED)
    assert ended.reason is Reason.DEADLINE_EXCEEDED
    assert ended.message.startswith("relocate: waited 60 s: Unschedulable: ")


def test_time_in_suspension_is_not_waiting() -> None:
    made = world(job(pending_deadline_seconds=60))
    waits_since = made.now
    made.finish(KEY, "train", StepState(StepPhase.PENDING, attempts=0, started_at=waits_since))
    spec = made.job().spec
    made.add(made.job().model_copy(update={"spec": spec.model_copy(update={"suspend": True})}))
    made.settle()
    made.now += timedelta(hours=1)
    made.add(made.job().model_copy(update={"spec": spec}))
    made.settle()

    assert not made.holds(ConditionType.FAILED)
    assert (made.plans[KEY].requeue_after or 0) > 50


def report(made: World) -> TrainerStatus:
    return TrainerStatus(last_updated_time=made.now, progress_percentage=30)


def test_stage_that_keeps_silent_is_stalled_until_it_reports_again() -> None:
    made = world()
    running = StepState(StepPhase.RUNNING, started_at=made.now, progress=report(made))
    first = settle_once(made, KEY, "train", running)
    since = f"{made.now:%Y-%m-%dT%H:%M:%SZ}"
    made.now += timedelta(seconds=600)
    stalled = made.apply(KEY)
    message = f"has not reported since {since}. Its log and the load of its node tell whether it still works"

    assert first.requeue_after == 600
    assert stalled.events == (Event(Reason.STALLED, message, warning=True),)
    assert (stage(made, "train").state, stage(made, "train").message) == (StageState.RUNNING, message)
    assert stalled.requeue_after is None
    assert [step.name for step in stalled.steps] == ["train"]

    made.now += timedelta(seconds=900)
    assert (made.apply(KEY).status, made.plans[KEY].events) == (stalled.status, ())

    settle_once(made, KEY, "train", StepState(StepPhase.RUNNING, progress=report(made)))
    trained = told(made, ConditionType.TRAINED)
    assert (trained.reason, trained.message, stage(made, "train").message) == (Reason.TRAINING, "", "")
    assert made.plans[KEY].events == ()


def test_stage_that_never_reported_or_has_just_started_again_is_not_stalled() -> None:
    silent, again = world(), world()
    settle_once(silent, KEY, "train", StepState(StepPhase.RUNNING, started_at=silent.now))
    old = report(again)
    again.now += timedelta(hours=1)
    settle_once(again, KEY, "train", StepState(StepPhase.RUNNING, attempts=2, started_at=again.now, progress=old))
    silent.now += timedelta(hours=1)
    silent.apply(KEY)

    assert told(silent, ConditionType.TRAINED).reason is Reason.TRAINING
    assert told(again, ConditionType.TRAINED).reason is Reason.TRAINING


def test_stalled_evaluation_is_told_of_its_job_as_well() -> None:
    made = world(until="evaluate")
    made.finish(EVALUATION, "evaluate", StepState(StepPhase.RUNNING, started_at=made.now, progress=report(made)))
    made.now += timedelta(seconds=601)
    made.settle()

    assert told(made, ConditionType.EVALUATED, EVALUATION).reason is Reason.STALLED
    assert told(made, ConditionType.EVALUATED).reason is Reason.STALLED
    assert stage(made, "evaluate").percent == 30


@pytest.mark.parametrize("well", [True, False])
def test_finished_job_expires_when_its_time_is_over(*, well: bool) -> None:
    made = world(job(ttl_seconds_after_finished=300, evaluation={"enabled": False}))
    made.finish(KEY, "train", None if well else failed())
    ended = made.job().status.completion_time
    assert ended is not None
    made.now = ended + timedelta(seconds=299)
    waiting = made.apply(KEY)
    made.now += timedelta(seconds=1)
    over = made.apply(KEY)

    assert (waiting.expired, waiting.requeue_after) == (False, 1)
    assert (over.expired, over.requeue_after, over.status) == (True, None, waiting.status)


def test_job_without_a_time_to_live_stays() -> None:
    made = world(job(evaluation={"enabled": False}))
    made.finish(KEY, "train")
    made.now += timedelta(days=365)

    assert (made.apply(KEY).expired, made.plans[KEY].requeue_after) == (False, None)


def test_edit_of_what_has_ended_is_seen_and_changes_nothing_else() -> None:
    made = world(job(evaluation={"enabled": False}))
    made.finish(KEY, "train")
    before = {key: plan.status for key, plan in made.plans.items()}
    for key, each in list(made.objects.items()):
        made.objects[key] = each.model_copy(update={"metadata": each.metadata.model_copy(update={"generation": 2})})
    made.settle()

    assert {key[0] for key in before} == {"FineTuningJob", "Relocation"}
    assert {key: plan.status for key, plan in made.plans.items()} == {
        key: status.model_copy(update={"observed_generation": 2}) for key, status in before.items()
    }


def test_evaluation_of_a_job_is_deleted_with_the_job_only() -> None:
    data = {"source": "s3://bucket/rows.jsonl", "prompt": "{a}", "completion": "{b}"}
    fields = {"candidates": [{"name": "base", "model": {"source": "hf://a/b"}}], "dataset": data}
    spec = EvaluationJobSpec.model_validate(fields | {"ttlSecondsAfterFinished": 0, "suspend": True})
    owner = OwnerReference(api_version="finetuning.dev/v1alpha1", kind="FineTuningJob", name="demo", uid="uid-1")
    done = Condition(
        type=ConditionType.COMPLETE, status=ConditionStatus.TRUE, reason=Reason.SUCCEEDED, last_transition_time=NOW
    )
    made = World()
    for name, owners in (("alone", []), ("owned", [owner])):
        each = EvaluationJob(metadata=ObjectMeta(name=name, owner_references=owners), spec=spec)
        status = each.status.model_copy(update={"conditions": [done], "completion_time": NOW})
        made.add(each.model_copy(update={"status": status}))

    assert made.apply(("EvaluationJob", "alone")).expired
    assert not made.apply(("EvaluationJob", "owned")).expired


def artifact(ttl: int | None = None) -> World:
    """A Relocation that is ready, and the jobs that use it by a test's word."""
    made = World()
    made.add(relocation("hf://acme/tiny", ttl_seconds_after_unused=ttl))
    made.settle()
    made.finish_relocations()
    return made


def test_unused_artifact_is_kept_for_its_time_and_no_longer() -> None:
    made = artifact(ttl=60)
    assert last_used(made) is not None
    made.users[RELOCATION] = ("FineTuningJob/demo",)
    in_use = made.apply(RELOCATION)
    assert (in_use.expired, in_use.requeue_after, last_used(made)) == (False, None, None)

    made.now += timedelta(days=1)
    assert not made.apply(RELOCATION).expired
    made.users.clear()
    unused = made.now
    first = made.apply(RELOCATION)
    made.now += timedelta(seconds=59)
    later = made.apply(RELOCATION)
    made.now += timedelta(seconds=1)

    assert (first.expired, first.requeue_after, last_used(made)) == (False, 60, unused)
    assert (later.expired, later.requeue_after) == (False, 1)
    assert made.apply(RELOCATION).expired


def test_artifact_without_a_time_to_live_is_never_written_again() -> None:
    made = artifact()
    before = made.plans[RELOCATION].status
    made.now += timedelta(days=365)

    assert made.apply(RELOCATION) == Plan(status=before)


def last_used(made: World) -> datetime | None:
    found = made.objects[RELOCATION]
    assert isinstance(found, Relocation)
    return found.status.last_used_time


def model_of(made: World) -> tuple[str, str]:
    return next(key for key, each in made.objects.items() if isinstance(each, Relocation) and "hf:" in each.spec.source)


def test_failure_that_was_made_for_a_job_makes_room_for_the_next_job() -> None:
    made = World()
    made.add(job())
    made.settle()
    model = model_of(made)
    made.finish(model, "measure", failed())
    assert made.holds(ConditionType.FAILED)
    assert not made.apply(model).expired

    made.add(job("later"))
    made.settle()
    made.users[model] = ("FineTuningJob/later",)
    waits = made.job("later").status
    assert "model failed earlier and is tried again" in waits.stages[0].message
    assert find_condition(waits.conditions, ConditionType.FAILED) is None
    made.now += timedelta(seconds=10)
    assert made.apply(model).expired

    del made.objects[model], made.steps[model], made.plans[model]
    made.settle()
    made.finish_relocations()
    assert [step.name for step in made.plans["FineTuningJob", "later"].steps] == ["preflight"]


@pytest.mark.parametrize("users", [(), ("InferenceServer/chat",)])
def test_failure_that_no_job_waits_for_can_be_looked_at_for_a_while(users: tuple[str, ...]) -> None:
    made = World()
    made.add(job())
    made.settle()
    model = model_of(made)
    made.users[model] = users
    made.finish(model, "measure", failed())
    plan = made.apply(model)

    assert not plan.expired
    assert (plan.requeue_after or 0) > 60
    made.now += timedelta(seconds=plan.requeue_after or 0)
    assert made.apply(model).expired


def test_failure_of_a_users_own_relocation_stays_and_is_named() -> None:
    made = World()
    made.add(job())
    made.settle()
    model = model_of(made)
    own = made.objects[model]
    made.objects[model] = own.model_copy(update={"metadata": own.metadata.model_copy(update={"labels": {}})})
    made.finish(model, "measure", failed())
    made.add(job("later"))
    made.settle()

    ended = find_condition(made.job("later").status.conditions, ConditionType.FAILED)
    assert ended is not None
    assert ended.message == (
        f"relocate: model: measure: no route. Wait. That was before this job; delete Relocation {model[1]} to have it"
        " tried again"
    )
    made.now += timedelta(days=365)
    assert not made.apply(model).expired
