"""The folders of task files are relocated once, and told to those that read them."""

from typing import Any

import pytest
from tests.support.objects import World, job

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import EvaluateConfig, PreflightConfig, TrainConfig
from finetuning_operator.reconcile.needs import Role, job_needs

KEY, EVALUATION = ("FineTuningJob", "demo"), ("EvaluationJob", "demo-evaluation")
SOURCE = {"source": "git+https://host/evals", "revision": "v1"}
OPTIONS: dict[str, Any] = {
    "metrics": ["tasks"],
    "tasks": [
        {"name": "capitals", **SOURCE},
        {"name": "opposites", **SOURCE},
        {"name": "own", "source": "configmap://t"},
    ],
    "gate": [{"metric": "capitals.acc", "minDelta": 0.1}],
}


def test_a_folder_is_relocated_once_and_told_to_preflight_and_evaluation_but_not_to_training() -> None:
    made = World()
    made.add(job(evaluation=OPTIONS))
    made.settle()
    made.finish_relocations()
    wanted, other = [each for each in job_needs(made.job().spec) if each.role is Role.TASK]
    preflight = made.plans[KEY].steps[0]
    made.finish(KEY, "preflight")
    train = made.plans[KEY].steps[0]
    made.finish(KEY, "train")
    evaluate = made.plans[EVALUATION].steps[0]

    assert wanted.ref.include == ["*"]
    assert isinstance(preflight.config, PreflightConfig)
    assert preflight.config.evaluation is not None
    assert isinstance(evaluate.config, EvaluateConfig)
    assert evaluate.config.tasks == preflight.config.evaluation.tasks
    here, there = f"/volumes/{wanted.name}/artifact", f"/volumes/{other.name}/artifact"
    assert [(each.name, each.path) for each in evaluate.config.tasks] == [
        ("capitals", here),
        ("opposites", here),
        ("own", there),
    ]
    assert isinstance(train.config, TrainConfig)
    claims = [
        {mount.path.rsplit("/", 1)[-1]: mount.read_only for mount in step.mounts if hasattr(mount, "read_only")}
        for step in (preflight, train, evaluate)
    ]
    for needed in (wanted, other):
        assert [each.get(needed.name) for each in claims] == [True, None, True]


def test_nothing_is_relocated_where_nothing_is_evaluated() -> None:
    spec = job(evaluation=OPTIONS | {"enabled": False, "gate": []}).spec

    assert Role.TASK not in {wanted.role for wanted in job_needs(spec)}


@pytest.mark.parametrize("source", ["tasks", "./tasks"])
def test_a_path_of_one_machine_is_refused_by_its_field(source: str) -> None:
    made = World()
    made.add(job(evaluation=OPTIONS | {"tasks": [{"name": "capitals", "source": source}]}))
    made.settle()

    told = next(each for each in made.job().status.conditions if each.type == "Accepted")
    assert told.reason == Reason.INVALID_SPEC
    assert "spec.evaluation.tasks[0].source" in told.message
