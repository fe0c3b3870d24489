"""TensorBoard beside a job: there while something is to be seen, never in the way, gone when its time is over."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.support.objects import World, failed, job

from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.inferenceserver import HealthCheck, ServerVariant
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords, TrainConfig
from finetuning_api.tensorboard import TensorBoardStatus
from finetuning_operator.reconcile.plan import (
    ClaimMount,
    ImageRole,
    Server,
    ServerState,
    Settings,
    StepPhase,
    StepState,
)

KEY = ("FineTuningJob", "demo")
NAME = "demo-tensorboard"
URL = f"http://{NAME}.default.svc:6006"
RUNNING = StepState(StepPhase.RUNNING)
FULL = LastWords(reason=Reason.UNSCHEDULABLE, message="no node has room", hint="Wait.")
ANSWERS = {NAME: ServerState(replicas=1, ready=1, current=True)}
STANDS = Server(
    name=NAME,
    variant=ServerVariant.COMMAND,
    port=6006,
    replicas=1,
    health=HealthCheck(path="/data/environment", startup_seconds=300),
    role=ImageRole.TRAINER,
    component="tensorboard",
    command=(
        *("python", "-m", "tensorboard.main", "--logdir", "/volumes/demo-adapter/tensorboard"),
        *("--bind_all", "--port", "6006"),
    ),
    mounts=(ClaimMount("demo-adapter", "/volumes/demo-adapter"),),
)


def world(*, local: bool = False, tensorboard: dict[str, object] | None = None, **spec: Any) -> World:  # noqa: ANN401  (fields of the specification)
    """Return a world whose job is about to train."""
    made = World(Settings(local=local))
    made.add(job(tensorboard={} if tensorboard is None else tensorboard, **spec))
    made.settle()
    made.finish_relocations()
    made.finish(KEY, "preflight")
    return made


def complete(made: World) -> World:
    made.finish(KEY, "train")
    made.finish(("EvaluationJob", "demo-evaluation"), "evaluate")
    return made


def stands(made: World) -> bool:
    return made.plans[KEY].servers == (STANDS,)


def edit(made: World, **spec: object) -> None:
    old = made.job()
    new = old.model_copy(update={"spec": old.spec.model_copy(update=spec)})
    assert isinstance(new, FineTuningJob)
    made.objects[KEY] = new
    made.settle()


def test_it_stands_from_the_start_of_the_training_on() -> None:
    made = world()
    assert made.plans[KEY].servers == ()
    [step] = made.plans[KEY].steps
    assert isinstance(step.config, TrainConfig)
    assert step.config.tensorboard_path == "/volumes/demo-adapter/tensorboard"

    made.finish(KEY, "train", RUNNING)

    assert stands(made)
    assert made.job().status.tensorboard == TensorBoardStatus(message="waits for its pod")


def test_its_address_is_told_when_it_answers_and_stays_the_same() -> None:
    made = world()
    made.finish(KEY, "train", RUNNING)
    made.servers[KEY] = ANSWERS
    made.settle()
    assert made.job().status.tensorboard == TensorBoardStatus(url=URL)

    made.servers[KEY] = {NAME: replace(ANSWERS[NAME], ready=0, hindrance=FULL)}
    made.settle()

    assert made.job().status.tensorboard == TensorBoardStatus(url=URL, message="no node has room. Wait.")


@pytest.mark.parametrize("waiting", [StepState(StepPhase.PENDING, hindrance=FULL), StepState(StepPhase.PENDING)])
def test_it_steps_aside_while_the_training_waits_for_a_node(waiting: StepState) -> None:
    made = world()
    made.finish(KEY, "train", RUNNING)
    made.finish(KEY, "train", waiting)
    assert made.plans[KEY].servers == ()
    assert made.job().status.tensorboard is None

    made.finish(KEY, "train", RUNNING)

    assert stands(made)


def test_it_steps_aside_while_the_evaluation_waits_for_a_node() -> None:
    made = world()
    made.finish(KEY, "train")
    assert stands(made)

    made.finish(("EvaluationJob", "demo-evaluation"), "evaluate", StepState(StepPhase.PENDING, hindrance=FULL))
    assert made.plans[KEY].servers == ()
    made.finish(("EvaluationJob", "demo-evaluation"), "evaluate", RUNNING)

    assert stands(made)


def test_it_stops_with_a_suspended_job() -> None:
    made = world()
    made.finish(KEY, "train", RUNNING)

    edit(made, suspend=True)

    assert made.plans[KEY].servers == ()
    assert made.job().status.tensorboard is None


@pytest.mark.parametrize("end", ["complete", "failed"])
def test_it_stays_for_its_time_after_the_end_and_then_goes(end: str) -> None:
    made = world(tensorboard={"ttlSecondsAfterFinished": 600})
    made.finish(KEY, "train", RUNNING)
    made.servers[KEY] = ANSWERS
    if end == "complete":
        complete(made)
    else:
        made.finish(KEY, "train", failed())
    ended = made.job().status.completion_time
    assert ended is not None
    assert stands(made)
    made.now = ended + timedelta(seconds=599)
    made.apply(KEY)
    assert (stands(made), made.plans[KEY].requeue_after) == (True, 1.0)

    made.now = ended + timedelta(seconds=600)
    plan = made.apply(KEY)

    assert (plan.servers, plan.requeue_after) == ((), None)
    assert made.job().status.tensorboard is None


def test_a_job_that_never_trained_has_none() -> None:
    made = World(Settings())
    made.add(job(tensorboard={}))
    made.settle()
    made.finish_relocations()
    made.finish(KEY, "preflight", failed())

    assert made.plans[KEY].servers == ()


def test_nothing_is_planned_without_the_option_nor_on_one_machine() -> None:
    plain, local = world(), world(local=True)
    edit(plain, tensorboard=None)
    for made in (plain, local):
        made.finish(KEY, "train", RUNNING)
        assert made.plans[KEY].servers == ()
    assert local.job().status.warnings[0] == "spec.tensorboard: without effect on one machine"


def test_its_pod_goes_where_the_job_s_pods_go_with_nothing_of_what_they_work_with() -> None:
    pod = {
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "env": [{"name": "A", "value": "b"}],
        "volumes": [{"name": "mine", "mountPath": "/mnt/mine", "claimName": "mine"}],
    }
    made = world(pod=pod)
    made.finish(KEY, "train", RUNNING)

    [server] = made.plans[KEY].servers
    told = server.pod
    assert (told.node_selector, len(told.tolerations), told.env, told.volumes) == ({"gpu": "yes"}, 1, [], [])
