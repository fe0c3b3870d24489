"""The folders of task files are relocated once, and told to those that read them."""

from typing import Any

import pytest
from tests.support.objects import World, job
from tests.support.own_sources import read_by_preflight_and_evaluation

from finetuning_api.base import ObjectMeta
from finetuning_api.evaluationjob import EvaluationJob, EvaluationJobSpec
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import EvaluateConfig
from finetuning_operator.reconcile.needs import Role, job_needs
from finetuning_operator.reconcile.plan import ClaimMount

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


def test_a_reference_answers_the_tasks_too() -> None:
    reference = {"source": "hf://acme/large", "revision": "v1"}
    gate = [{"metric": "capitals.acc", "nonInferior": 0.1, "against": "reference"}]

    _, _, evaluated = read_by_preflight_and_evaluation(OPTIONS | {"reference": reference, "gate": gate}, Role.TASK)

    assert [each.name for each in evaluated.candidates] == ["base", "tuned", "reference"]
    assert [each.name for each in evaluated.tasks] == ["capitals", "opposites", "own"]


def test_an_evaluation_job_asks_the_tasks_of_results_of_jobs() -> None:
    gate = [{"metric": "capitals.acc", "minDelta": 0.1, "against": "served"}]
    candidates = [{"name": "tuned", "jobRef": "demo"}, {"name": "served", "jobRef": "earlier"}]
    dataset = {"source": "s3://bucket/rows.jsonl", "revision": "7", "prompt": "{message}", "completion": "{triage}"}
    spec = OPTIONS | {"candidates": candidates, "dataset": dataset, "gate": gate}
    made = World()
    made.add(EvaluationJob(metadata=ObjectMeta(name="compare"), spec=EvaluationJobSpec.model_validate(spec)))
    for name in ("demo", "earlier"):
        made.add(job(name, evaluation={"enabled": False}))
    made.settle()
    made.finish_relocations()
    for name in ("demo", "earlier"):
        made.finish(("FineTuningJob", name), "preflight")
        made.finish(("FineTuningJob", name), "train")
    made.finish_relocations()
    (step,) = made.plans["EvaluationJob", "compare"].steps

    assert isinstance(step.config, EvaluateConfig)
    assert [(each.name, each.adapter_path) for each in step.config.candidates] == [
        ("tuned", "/volumes/demo-adapter/adapter"),
        ("served", "/volumes/earlier-adapter/adapter"),
    ]
    mounted = {mount.path: mount.read_only for mount in step.mounts if isinstance(mount, ClaimMount)}
    for task, name in zip(step.config.tasks, ("capitals", "opposites", "own"), strict=True):
        assert task.name == name
        assert mounted[task.path.removesuffix("/artifact")]


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
