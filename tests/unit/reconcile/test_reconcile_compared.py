"""A job whose evaluation compares its result with those of earlier jobs."""

from typing import Any

import pytest
from tests.support.objects import World, failed, job

from finetuning_api.base import ConditionStatus, ConditionType
from finetuning_api.dataset import DatasetSpec
from finetuning_api.finetuningjob import FineTuningJob, JobPhase
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import EvaluateConfig, PreflightConfig
from finetuning_api.sources import SourceRef
from finetuning_operator.reconcile.conditions import find_condition
from finetuning_operator.reconcile.plan import ClaimMount, StepPhase, StepState

EARLIER, LATER = ("FineTuningJob", "earlier"), ("FineTuningJob", "later")
EVALUATION = ("EvaluationJob", "later-evaluation")
RULES = [{"metric": "exact-match", "nonInferior": 0.01, "against": "earlier"}]
COMPARED: dict[str, Any] = {"metrics": ["exact-match"], "gate": RULES, "jobRefs": ["earlier"]}


def later(**spec: object) -> FineTuningJob:
    return job("later", **({"evaluation": COMPARED} | spec))


def finished(**spec: object) -> World:
    """Return a world in which the earlier job is complete."""
    made = World()
    made.add(job("earlier", **({"evaluation": {"enabled": False}} | spec)))
    made.settle()
    made.finish_relocations()
    made.finish(EARLIER, "preflight")
    made.finish(EARLIER, "train")
    return made


def started(made: World, **spec: object) -> World:
    made.add(later(**spec))
    made.settle()
    made.finish_relocations()
    return made


def refusal(made: World) -> tuple[Reason, str]:
    condition = find_condition(made.job("later").status.conditions, ConditionType.FAILED)
    assert condition is not None
    assert condition.status is ConditionStatus.TRUE
    return condition.reason, condition.message


def test_the_earlier_result_is_one_more_candidate_of_its_job_s_name() -> None:
    made = started(finished())
    preflight = made.plans[LATER].steps[0].config
    made.finish(LATER, "preflight")
    made.finish(LATER, "train")
    (step,) = made.plans[EVALUATION].steps

    assert isinstance(preflight, PreflightConfig)
    assert preflight.evaluation is not None
    assert [each.name for each in preflight.evaluation.candidates] == ["base", "tuned", "earlier"]
    assert [rule.against for rule in preflight.evaluation.gate] == ["earlier"]
    assert isinstance(step.config, EvaluateConfig)
    assert [(each.name, each.adapter_path, each.model.path) for each in step.config.candidates] == [
        ("base", None, preflight.model.path),
        ("tuned", "/volumes/later-adapter/adapter", preflight.model.path),
        ("earlier", "/volumes/earlier-adapter/adapter", preflight.model.path),
    ]
    assert ClaimMount("earlier-adapter", "/volumes/earlier-adapter", read_only=True) in step.mounts
    assert not [warning for warning in made.job("later").status.warnings if "earlier" in warning]


def test_nothing_is_trained_before_what_it_is_compared_with_is_there() -> None:
    made = World()
    made.add(later())
    made.settle()
    stage = made.job("later").status.stages[0]

    assert (stage.name, stage.message) == ("wait", "waits for FineTuningJob earlier (not there yet)")
    assert made.job("later").status.phase is JobPhase.PENDING
    assert made.wanted() == {}

    made.add(job("earlier", evaluation={"enabled": False}))
    made.settle()
    made.finish_relocations()
    assert made.job("later").status.stages[0].message == "waits for FineTuningJob earlier (Preparing)"
    made.finish(EARLIER, "preflight")
    made.finish(EARLIER, "train")

    assert made.job("later").status.stages[0].message == ""
    assert [step.name for step in made.plans[LATER].steps] == ["preflight"]


def test_a_job_that_failed_ends_the_comparison_before_it_costs_anything() -> None:
    made = World()
    made.add(job("earlier"))
    made.settle()
    made.finish_relocations()
    made.finish(EARLIER, "preflight", failed())
    made = started(made)

    assert refusal(made) == (
        Reason.DEPENDENCY_FAILED,
        "wait: FineTuningJob earlier failed: preflight: no route. Wait.",
    )


def test_a_result_whose_claim_is_gone_is_not_waited_for() -> None:
    made = finished()
    made.lost = frozenset({"earlier-adapter"})
    made = started(made)

    assert refusal(made) == (
        Reason.DEPENDENCY_FAILED,
        "wait: the claim earlier-adapter with the result of FineTuningJob earlier is gone",
    )


def test_a_result_that_goes_meanwhile_stops_no_training_and_ends_the_evaluation() -> None:
    made = started(finished())
    made.finish(LATER, "preflight")
    made.lost = frozenset({"earlier-adapter"})
    made.settle()
    assert [step.name for step in made.plans[LATER].steps] == ["train"]
    made.finish(LATER, "train")

    assert refusal(made) == (
        Reason.DEPENDENCY_FAILED,
        "evaluate: wait: the claim earlier-adapter with the result of FineTuningJob earlier is gone",
    )


def test_an_evaluation_that_runs_keeps_the_result_that_it_holds() -> None:
    made = started(finished())
    made.finish(LATER, "preflight")
    made.finish(LATER, "train")
    made.lost = frozenset({"earlier-adapter"})
    made.finish(EVALUATION, "evaluate", StepState(StepPhase.RUNNING, attempts=1))

    assert made.evaluation("later-evaluation").status.phase is JobPhase.EVALUATING
    assert [step.name for step in made.plans[EVALUATION].steps] == ["evaluate"]


@pytest.mark.parametrize(
    ("difference", "told"),
    [
        ({"model": SourceRef(source="hf://acme/other", revision="v1")}, "tuned another base model, hf://acme/other"),
        ({"tokenizer": SourceRef(source="hf://acme/words", revision="v1")}, "was trained with another tokenizer"),
        (
            {
                "dataset": DatasetSpec.model_validate(
                    {
                        "source": "s3://bucket/rows.jsonl",
                        "revision": "7",
                        "prompt": "{message}",
                        "completion": "{triage}",
                        "split": {"test": 0.3},
                    }
                )
            },
            "was trained on other data or another split",
        ),
    ],
)
def test_what_else_differs_from_an_earlier_job_is_said(difference: dict[str, object], told: str) -> None:
    made = started(finished(**difference))

    (warning,) = [each for each in made.job("later").status.warnings if "earlier" in each]
    assert warning.startswith(f"evaluation.jobRefs: earlier {told}")


def test_preflight_leaves_out_what_is_not_relocated_yet() -> None:
    made = started(finished(model=SourceRef(source="hf://acme/other", revision="v1")))
    config = made.plans[LATER].steps[0].config

    assert isinstance(config, PreflightConfig)
    assert config.evaluation is not None
    assert [each.name for each in config.evaluation.candidates] == ["base", "tuned"]
    assert config.evaluation.gate == ()
