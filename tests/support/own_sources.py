"""A job whose evaluation reads sources of the user's own, from its relocations to its evaluation."""

from collections.abc import Sequence
from typing import Any

from tests.support.objects import World, job

from finetuning_api.runconfig import EvaluateConfig, EvaluationInputs, PreflightConfig, TrainConfig
from finetuning_operator.reconcile.needs import Need, Role, job_needs

KEY, EVALUATION = ("FineTuningJob", "demo"), ("EvaluationJob", "demo-evaluation")


def read_by_preflight_and_evaluation(
    options: dict[str, Any], role: Role
) -> tuple[Sequence[Need], EvaluationInputs, EvaluateConfig]:
    """Return what is needed in a role, and what preflight and evaluation are told.

    Asserts that both mount all of it, read-only, and that the training mounts none of it.
    """
    made = World()
    made.add(job(evaluation=options))
    made.settle()
    made.finish_relocations()
    needs = [each for each in job_needs(made.job().spec) if each.role is role]
    preflight = made.plans[KEY].steps[0]
    made.finish(KEY, "preflight")
    train = made.plans[KEY].steps[0]
    made.finish(KEY, "train")
    evaluate = made.plans[EVALUATION].steps[0]

    assert isinstance(preflight.config, PreflightConfig)
    assert preflight.config.evaluation is not None
    assert isinstance(train.config, TrainConfig)
    assert isinstance(evaluate.config, EvaluateConfig)
    claims = [
        {mount.path.rsplit("/", 1)[-1]: mount.read_only for mount in step.mounts if hasattr(mount, "read_only")}
        for step in (preflight, train, evaluate)
    ]
    for needed in needs:
        assert [each.get(needed.name) for each in claims] == [True, None, True]
    return needs, preflight.config.evaluation, evaluate.config
