"""The files of metrics of one's own are relocated like everything else, and told to those that read them."""

from typing import Any

from tests.support.objects import World, job

from finetuning_api.runconfig import EvaluateConfig, PreflightConfig, TrainConfig
from finetuning_operator.reconcile.needs import Role, job_needs

KEY, EVALUATION = ("FineTuningJob", "demo"), ("EvaluationJob", "demo-evaluation")
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
    made = World()
    made.add(job(evaluation=OPTIONS))
    made.settle()
    made.finish_relocations()
    wanted, other = [each for each in job_needs(made.job().spec) if each.role is Role.METRIC]
    preflight = made.plans[KEY].steps[0]
    made.finish(KEY, "preflight")
    train = made.plans[KEY].steps[0]
    made.finish(KEY, "train")
    evaluate = made.plans[EVALUATION].steps[0]

    assert wanted.ref.include == ["*"]
    assert isinstance(preflight.config, PreflightConfig)
    assert preflight.config.evaluation is not None
    assert isinstance(evaluate.config, EvaluateConfig)
    told = evaluate.config.custom
    assert told == preflight.config.evaluation.custom
    here, there = f"/volumes/{wanted.name}/artifact", f"/volumes/{other.name}/artifact"
    assert [(each.name, each.path, each.file, each.function, each.lower_is_better) for each in told] == [
        ("tone", here, "tone.py", "score", False),
        ("slang", here, "tone.py", "slang", True),
        ("length", there, "metric.py", "score", False),
    ]
    assert isinstance(train.config, TrainConfig)
    claims = [
        {mount.path.rsplit("/", 1)[-1]: mount.read_only for mount in step.mounts if hasattr(mount, "read_only")}
        for step in (preflight, train, evaluate)
    ]
    for needed in (wanted, other):
        assert [each.get(needed.name) for each in claims] == [True, None, True]


def test_nothing_is_relocated_where_nothing_is_evaluated() -> None:
    spec = job(evaluation=OPTIONS | {"enabled": False}).spec

    assert Role.METRIC not in {wanted.role for wanted in job_needs(spec)}
