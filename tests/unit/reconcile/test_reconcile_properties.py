"""Whatever happens, in whatever order: one stage at a time, ends are final, plans come to rest."""

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.objects import World, failed, job, succeeded

from finetuning_api.base import StageState
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.relocation import Relocation
from finetuning_operator.reconcile import reconcile
from finetuning_operator.reconcile.conditions import is_terminal
from finetuning_operator.reconcile.plan import Observed, Settings, StepPhase, StepState

EVENTS = ("start", "succeed", "succeed", "succeed", "fail", "interrupt", "forget", "lose", "suspend", "wait")
STAGE_OF = {"measure": "relocate", "convert": "relocate", "verify": "relocate"}
events = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 7)), min_size=1, max_size=40)


def happen(world: World, event: str, choice: int) -> None:
    """Let one thing happen to one of the steps or objects."""
    steps = [(key, step.name) for key, plan in sorted(world.plans.items()) for step in plan.steps]
    children = [key for key in world.objects if key[0] != "FineTuningJob"]
    states = {
        "start": StepState(StepPhase.RUNNING),
        "interrupt": StepState(StepPhase.PENDING),
        "fail": failed(),
    }
    if event in {"start", "succeed", "fail", "interrupt"} and steps:
        key, step = steps[choice % len(steps)]
        world.steps.setdefault(key, {})[step] = succeeded(step) if event == "succeed" else states[event]
    elif event == "forget" and world.steps:
        world.steps.pop(sorted(world.steps)[choice % len(world.steps)])
    elif event == "lose" and children:
        lost = sorted(children)[choice % len(children)]
        world.objects.pop(lost)
        world.plans.pop(lost, None)
        world.steps.pop(lost, None)
    elif event == "suspend":
        demo = world.job()
        spec = demo.spec.model_copy(update={"suspend": not demo.spec.suspend})
        world.objects["FineTuningJob", "demo"] = demo.model_copy(update={"spec": spec})
    elif event == "wait":
        world.now += timedelta(seconds=30)


def check_one_stage_at_a_time(world: World) -> None:
    demo = world.job()
    running = [stage.name for stage in demo.status.stages if stage.state is StageState.RUNNING]
    wanted = {STAGE_OF.get(step.name, step.name) for step in world.plans["FineTuningJob", "demo"].steps}
    assert len(running) <= 1
    assert len(wanted) <= 1
    names = [stage.name for stage in demo.status.stages]
    done = [stage.state in {StageState.SUCCEEDED, StageState.SKIPPED} for stage in demo.status.stages]
    assert done == sorted(done, reverse=True), f"a stage is done before an earlier one: {names} {done}"


def check_rest(world: World) -> None:
    """A plan that was applied changes nothing when it is made again, at any later time before a deadline."""
    for key, resource in world.objects.items():
        before = getattr(resource, "status", None)
        observed = Observed(steps=world.steps.get(key, {}), resources=dict(world.objects))
        once = reconcile(resource, observed=observed, now=world.now, settings=world.settings)
        again = reconcile(
            resource.model_copy(update={"status": once.status}),
            observed=observed,
            now=world.now + timedelta(seconds=1),
            settings=world.settings,
        )
        assert once.status == before
        assert (again.status, again.steps, again.volumes, again.children) == (
            once.status,
            once.steps,
            once.volumes,
            once.children,
        )
        assert again.events == ()


def run_events(world: World, happened: list[tuple[str, int]]) -> None:
    world.settle()
    for event, choice in happened:
        ended = {
            key: resource
            for key, resource in world.objects.items()
            if isinstance(resource, FineTuningJob | EvaluationJob | Relocation)
            and is_terminal(resource.status.conditions)
        }
        happen(world, event, choice)
        world.settle()
        check_one_stage_at_a_time(world)
        check_rest(world)
        for key, resource in ended.items():
            now = world.objects.get(key)
            if isinstance(now, FineTuningJob | EvaluationJob | Relocation) and event != "lose":
                assert now.status == resource.status
        if is_terminal(world.job().status.conditions):
            assert world.plans["FineTuningJob", "demo"].steps == ()


@settings(max_examples=60)
@given(happened=events)
def test_any_course_of_events_keeps_the_promises(happened: list[tuple[str, int]]) -> None:
    world = World(Settings())
    world.add(job(serving={"replicas": 1, "afterGate": True}))

    run_events(world, happened)


@settings(max_examples=30)
@given(happened=events)
def test_any_course_of_events_on_one_machine_keeps_the_promises(happened: list[tuple[str, int]]) -> None:
    world = World(Settings(local=True))
    world.add(job(model={"source": "/m.gguf", "revision": "v1"}, active_deadline_seconds=3600))

    run_events(world, happened)
