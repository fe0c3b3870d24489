"""The folders of task files are relocated once, and told to those that read them."""

from typing import Any

import pytest
from tests.support.objects import World, job
from tests.support.own_sources import read_by_preflight_and_evaluation

from finetuning_api.reasons import Reason
from finetuning_operator.reconcile.needs import Role, job_needs

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
    (wanted, other), checked, evaluated = read_by_preflight_and_evaluation(OPTIONS, Role.TASK)

    assert wanted.ref.include == ["*"]
    assert evaluated.tasks == checked.tasks
    here, there = f"/volumes/{wanted.name}/artifact", f"/volumes/{other.name}/artifact"
    assert [(each.name, each.path) for each in evaluated.tasks] == [
        ("capitals", here),
        ("opposites", here),
        ("own", there),
    ]


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
