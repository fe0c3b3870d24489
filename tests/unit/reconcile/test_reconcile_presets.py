from dataclasses import replace
from typing import Any

import pytest
from tests.support.objects import World, job

from finetuning_api.base import ConditionType
from finetuning_api.finetuningjob import FineTuningJob, JobPhase, MethodType, Preset
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import PreflightConfig, TrainConfig
from finetuning_operator.reconcile.conditions import find_condition
from finetuning_operator.reconcile.plan import Settings
from finetuning_operator.reconcile.policy import Bounds

KEY = ("FineTuningJob", "demo")
SMALL: dict[str, Any] = {
    "method": {"rank": 8},
    "training": {"epochs": 1, "batchSize": 4, "maxLength": 512},
    "resources": {"requests": {"cpu": "2"}, "limits": {"nvidia.com/gpu": 1, "memory": "16Gi"}},
    "pod": {"nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]},
    "storage": {"profile": "fast"},
    "priorityClassName": "batch",
    "queueName": "gpus",
}


def preset(**fields: object) -> Preset:
    return Preset.model_validate(SMALL | fields, extra="forbid")


def world(resource: FineTuningJob, *, local: bool = False, bounds: Bounds | None = None, **presets: Preset) -> World:
    made = World(Settings(local=local, presets=presets or {"small": preset()}, bounds=bounds or Bounds()))
    made.add(resource)
    made.settle()
    return made


def refusal(made: World) -> tuple[Reason, str]:
    told = find_condition(made.job().status.conditions, ConditionType.ACCEPTED)
    assert told is not None
    assert made.holds(ConditionType.FAILED)
    assert made.job().status.phase is JobPhase.FAILED
    return told.reason, told.message


def test_a_preset_gives_what_a_job_leaves_at_its_defaults() -> None:
    made = world(job(preset="small"))
    made.finish_relocations()

    (step,) = made.plans[KEY].steps
    assert isinstance(step.config, PreflightConfig)
    assert (step.config.training.epochs, step.config.training.batch_size, step.config.method.rank) == (1, 4, 8)
    assert step.config.training.learning_rate == 2e-4
    assert step.pod.node_selector == {"pool": "gpu"}
    assert (step.priority_class, step.queue) == ("batch", "gpus")
    assert {each.profile for each in made.plans[KEY].volumes} == {"fast"}

    made.finish(KEY, "preflight")
    (step,) = made.plans[KEY].steps
    assert step.resources.to_wire() == {
        "requests": {"cpu": "2"},
        "limits": {"nvidia.com/gpu": "1", "memory": "16Gi"},
    }


def test_what_a_job_says_itself_goes_before_its_preset() -> None:
    own: dict[str, Any] = {
        "training": {"epochs": 5, "maxLength": 64},
        "resources": {"limits": {"nvidia.com/gpu": "2"}},
        "pod": {"nodeSelector": {"zone": "a"}, "labels": {"team": "ml"}},
        "queueName": "mine",
    }
    made = world(job(preset="small", **own))

    applied = made.job().status.preset
    assert applied is not None
    assert (applied.training.epochs, applied.training.max_length, applied.training.batch_size) == (5, 64, 4)
    assert applied.resources.limits == {"nvidia.com/gpu": "2", "memory": "16Gi"}
    assert applied.pod.node_selector == {"zone": "a", "pool": "gpu"}
    assert (applied.queue_name, applied.priority_class_name) == ("mine", "batch")
    made.finish_relocations()
    (step,) = made.plans[KEY].steps
    assert (step.pod.labels, step.pod.node_selector) == ({"team": "ml"}, {"zone": "a", "pool": "gpu"})


def test_the_specification_of_a_job_is_never_touched() -> None:
    wanted = job(preset="small")

    assert world(wanted).job().spec == wanted.spec


def test_a_preset_that_is_changed_or_removed_changes_no_job_that_exists() -> None:
    made = world(job(preset="small"))
    made.finish_relocations()
    before = made.job().status.preset

    made.settings = replace(made.settings, presets={})
    made.finish(KEY, "preflight")

    (step,) = made.plans[KEY].steps
    assert isinstance(step.config, TrainConfig)
    assert step.config.training.epochs == 1
    assert made.job().status.preset == before


def test_evaluation_and_server_of_a_job_have_its_preset_as_well() -> None:
    made = world(job(preset="small", serving={"afterGate": False}))
    made.finish_relocations()
    made.finish(KEY, "preflight")
    made.finish(KEY, "train")

    server = made.server()
    assert server is not None
    for spec in (made.evaluation().spec, server.spec):
        assert spec.resources.limits == {"nvidia.com/gpu": "1", "memory": "16Gi"}
        assert (spec.pod.node_selector, spec.storage.profile) == ({"pool": "gpu"}, "fast")


def test_a_preset_may_say_that_whole_models_are_trained() -> None:
    made = world(job(preset="whole"), whole=preset(method={"type": "full"}))

    assert made.job().trains_whole_model
    assert made.job().spec.method.type is MethodType.LORA


@pytest.mark.parametrize(
    ("presets", "local", "message"),
    [
        ({"big": preset(), "small": preset()}, False, "no such preset; choose one of big, small"),
        ({}, False, "spec.preset is tiny: this installation has no presets; remove it"),
        ({}, True, "spec.preset is tiny: presets belong to the installation of a cluster; give a file with them by"),
    ],
)
def test_a_preset_that_is_not_known_is_refused_with_those_that_are(
    presets: dict[str, Preset], *, local: bool, message: str
) -> None:
    made = World(Settings(local=local, presets=presets))
    made.add(job(preset="tiny"))
    made.settle()

    reason, told = refusal(made)
    assert reason is Reason.INVALID_SPEC
    assert message in told


def test_what_is_right_alone_and_wrong_together_is_refused() -> None:
    made = world(job(preset="small", training={"microBatchSize": 8}))

    told = "spec with preset small: training: microBatchSize is a part of batchSize and cannot be larger"
    assert refusal(made) == (Reason.INVALID_SPEC, told)


def test_an_installation_may_want_a_preset_picked() -> None:
    bounds = Bounds(preset_required=True)

    reason, message = refusal(world(job(), bounds=bounds))
    assert (reason, message) == (
        Reason.NOT_ALLOWED,
        "spec.preset is not set, but this installation wants one picked (bounds.presetRequired): small",
    )
    assert not world(job(preset="small"), bounds=bounds).holds(ConditionType.FAILED)


def test_a_preset_is_bound_like_everything_else() -> None:
    bounds = Bounds(resources={"nvidia.com/gpu": "0"})

    reason, message = refusal(world(job(preset="small"), bounds=bounds))
    assert reason is Reason.NOT_ALLOWED
    assert message.startswith("spec.resources.limits.nvidia.com/gpu is 1, but this installation gives at most 0")
