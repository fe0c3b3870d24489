"""The files of metrics of one's own are relocated like everything else, and told to those that read them."""

from typing import Any

from tests.support.objects import job
from tests.support.own_sources import read_by_preflight_and_evaluation

from finetuning_operator.reconcile.needs import Role, job_needs

SOURCE = {"source": "git+https://host/metrics", "revision": "v1", "allowCode": True}
OPTIONS: dict[str, Any] = {
    "metrics": ["custom"],
    "custom": [
        {"name": "tone", **SOURCE, "file": "tone.py"},
        {"name": "slang", **SOURCE, "file": "tone.py", "function": "slang", "lowerIsBetter": True},
        {"name": "length", "source": "configmap://length", "allowCode": True},
    ],
}


def test_files_are_relocated_once_and_told_to_preflight_and_evaluation_but_not_to_training() -> None:
    (wanted, other), checked, evaluated = read_by_preflight_and_evaluation(OPTIONS, Role.METRIC)

    assert wanted.ref.include == ["*"]
    told = evaluated.custom
    assert told == checked.custom
    here, there = f"/volumes/{wanted.name}/artifact", f"/volumes/{other.name}/artifact"
    assert [(each.name, each.path, each.file, each.function, each.lower_is_better) for each in told] == [
        ("tone", here, "tone.py", "score", False),
        ("slang", here, "tone.py", "slang", True),
        ("length", there, "metric.py", "score", False),
    ]


def test_nothing_is_relocated_where_nothing_is_evaluated() -> None:
    spec = job(evaluation=OPTIONS | {"enabled": False}).spec

    assert Role.METRIC not in {wanted.role for wanted in job_needs(spec)}
