"""The gate decides by whole intervals, in three states."""

import pytest

from finetuning_api.metrics import GateResult, GateRule, Metric, Verdict
from finetuning_evaluator.gate import Measured, decide, overall
from finetuning_evaluator.statistics import Interval

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


def rule(**condition: float | str) -> GateRule:
    return GateRule.model_validate({"metric": Metric.ROUGE_L, **condition})


def measured(low: float, high: float) -> Measured:
    return Measured((low + high) / 2, Interval(low, high))


@pytest.mark.parametrize(
    ("condition", "low", "high", "expected"),
    [
        ({"min": 0.5}, 0.5, 0.7, PASS),
        ({"min": 0.5}, 0.4, 0.7, INCONCLUSIVE),
        ({"min": 0.5}, 0.2, 0.4, FAIL),
        ({"max": 20.0}, 15, 20, PASS),
        ({"max": 20.0}, 15, 21, INCONCLUSIVE),
        ({"max": 20.0}, 21, 25, FAIL),
        ({"min_delta": 0.02}, 0.02, 0.1, PASS),
        ({"min_delta": 0.02}, 0.01, 0.1, INCONCLUSIVE),
        ({"min_delta": 0.02}, -0.1, 0.01, FAIL),
        ({"min_delta": -0.05}, -0.04, 0.0, PASS),
        ({"non_inferior": 0.03}, -0.03, 0.0, PASS),
        ({"non_inferior": 0.03}, -0.04, 0.1, INCONCLUSIVE),
        ({"non_inferior": 0.03}, -0.2, -0.04, FAIL),
        ({"non_inferior": 0.0}, -0.01, 0.5, INCONCLUSIVE),
    ],
)
def test_a_rule_passes_or_fails_only_with_the_whole_interval(
    condition: dict[str, float], low: float, high: float, expected: Verdict
) -> None:
    assert decide(rule(**condition), measured(low, high)).verdict is expected


@pytest.mark.parametrize("condition", [{"min": 0.0}, {"max": 9.0}, {"min_delta": 0.0}, {"non_inferior": 9.0}])
def test_without_an_interval_nothing_is_decided(condition: dict[str, float]) -> None:
    result = decide(rule(**condition), Measured(1.0, None))

    assert result.verdict is INCONCLUSIVE
    assert "too few rows" in result.message


def test_the_message_names_the_numbers() -> None:
    result = decide(rule(min_delta=0.02, against="reference"), measured(0.05, 0.15))

    assert result.message == (
        "rougeL improved by 0.1 over reference [0.05, 0.15]; minDelta 0.02: the whole interval satisfies it"
    )


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], None),
        ([PASS, PASS], PASS),
        ([PASS, INCONCLUSIVE], INCONCLUSIVE),
        ([INCONCLUSIVE, FAIL, PASS], FAIL),
    ],
)
def test_the_overall_verdict_is_the_worst(verdicts: list[Verdict], expected: Verdict | None) -> None:
    assert overall([GateResult(metric=Metric.COLA, verdict=verdict) for verdict in verdicts]) is expected
