"""What an evaluation can decide: Holm's correction, the smallest detectable effect, the rows that a rule lacks."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from finetuning_api.metrics import GateRule, Metric, Verdict
from finetuning_evaluator.analysis import adjusted, judge
from finetuning_evaluator.gate import Measured, decide, more_units
from finetuning_evaluator.power import POWER, Z_POWER, holm, minimum_detectable_effect
from finetuning_evaluator.results import MetricComparison, MetricResult, MetricValue
from finetuning_evaluator.statistics import Interval


def closed_testing(p_values: list[float]) -> list[float]:
    """Holm's procedure as what it abbreviates: Bonferroni in every set of hypotheses that holds the one in question."""
    everyone = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in combinations(everyone, size)]
    return [
        max(min(1.0, len(chosen) * min(p_values[index] for index in chosen)) for chosen in sets if member in chosen)
        for member in everyone
    ]


@given(st.lists(st.floats(min_value=0, max_value=1), max_size=7))
def test_holm_is_bonferroni_in_every_set_of_hypotheses(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(closed_testing(p_values), abs=1e-12)


def normal_interval(values: np.ndarray, critical: float = 1.959963984540054) -> Interval:
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(mean - critical * error, mean + critical * error)


def test_a_difference_of_the_detectable_size_is_found_in_four_of_five_evaluations() -> None:
    generator = np.random.default_rng(7)
    effect = minimum_detectable_effect(normal_interval(generator.normal(0.0, 2.0, 4000)))
    assert effect is not None
    runs = [normal_interval(generator.normal(effect, 2.0, 4000)) for _ in range(600)]

    assert sum(not run.low <= 0 <= run.high for run in runs) / len(runs) == pytest.approx(POWER, abs=0.05)


def test_the_quantile_of_the_power_is_that_of_scipy() -> None:
    assert pytest.approx(stats.norm.ppf(POWER), abs=1e-12) == Z_POWER


@pytest.mark.parametrize("interval", [None, Interval(0.2, 0.2)])
def test_without_a_spread_no_detectable_difference_is_told(interval: Interval | None) -> None:
    assert minimum_detectable_effect(interval) is None


@pytest.mark.parametrize(
    ("condition", "truth", "verdict"),
    [
        ({"min": 0.5}, 0.6, Verdict.PASS),
        ({"min": 0.5}, 0.4, Verdict.FAIL),
        ({"max": 0.5}, 0.4, Verdict.PASS),
        ({"max": 0.5}, 0.6, Verdict.FAIL),
        ({"min_delta": 0.5}, 0.6, Verdict.PASS),
        ({"non_inferior": 0.5}, -0.4, Verdict.PASS),
    ],
)
def test_with_the_rows_that_were_lacking_a_rule_is_decided_in_four_of_five_evaluations(
    condition: dict[str, float], truth: float, verdict: Verdict
) -> None:
    rule = GateRule.model_validate({"metric": Metric.ROUGE_L, **condition})
    half = 1.959963984540054 / math.sqrt(50)
    lacking = more_units(rule, Measured(truth, Interval(truth - half, truth + half), units=50))
    assert lacking is not None
    generator = np.random.default_rng(3)
    rows = 50 + lacking
    means = generator.normal(truth, 1 / math.sqrt(rows), 2000)
    error = 1.959963984540054 / math.sqrt(rows)
    verdicts = [decide(rule, Measured(mean, Interval(mean - error, mean + error))).verdict for mean in means]

    assert verdicts.count(verdict) / len(verdicts) == pytest.approx(POWER, abs=0.04)


def test_a_decided_rule_lacks_nothing() -> None:
    rule = GateRule(metric=Metric.ROUGE_L, min=0.5)

    assert more_units(rule, Measured(0.7, Interval(0.6, 0.8), units=10)) is None
    assert more_units(rule, Measured(0.7, None, units=1)) is None


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (Measured(0.6, Interval(0.45, 0.75), units=100), "about 360 more rows would decide it (80 % power)"),
        (Measured(0.6, Interval(0.45, 0.61), units=100), "about 360 more rows would decide it (80 % power)"),
        (Measured(0.4, Interval(0.39, 0.55), units=100), "about 360 more rows would decide it (80 % power)"),
        (Measured(0.6, Interval(0.45, 0.75), units=101), "about 370 more rows would decide it (80 % power)"),
        (
            Measured(0.6, Interval(0.45, 0.75), units=100, unit="groups"),
            "about 360 more groups would decide it (80 % power)",
        ),
        (Measured(0.5, Interval(0.45, 0.55), units=100), "so near the bound that no number of rows decides"),
        (Measured(0.6, Interval(0.45, 0.75)), "is measured on a fixed set, so more rows do not narrow it"),
        (Measured(0.6, None, units=1), "too few rows or groups for an interval"),
    ],
)
def test_an_inconclusive_rule_says_what_would_decide_it(measured: Measured, words: str) -> None:
    result = decide(GateRule(metric=Metric.COLA, min=0.5), measured)

    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.message.endswith(words)


def metric_result(metric: Metric, *, p_value: float, units: int = 20) -> MetricResult:
    comparisons = tuple(
        MetricComparison(
            candidate="tuned",
            against=against,
            delta=0.1,
            ci_low=-0.1,
            ci_high=0.3,
            p_value=p_value,
            test="paired permutation",
            wins=1,
            ties=0,
            losses=0,
            samples=20,
        )
        for against in ("base", "reference")
    )
    value = MetricValue(candidate="tuned", value=0.1, ci_low=0.0, ci_high=0.2, samples=20)
    return MetricResult(
        metric=metric, lower_is_better=False, signature="s", values=(value,), comparisons=comparisons, units=units
    )


def test_only_the_comparisons_of_the_gate_are_corrected_and_only_for_each_other() -> None:
    metrics = [
        metric_result(metric, p_value=p) for metric, p in zip(list(Metric)[3:6], (0.01, 0.04, 0.03), strict=True)
    ]
    rules = [
        GateRule(metric=metrics[0].metric, min_delta=0.0),
        GateRule(metric=metrics[0].metric, non_inferior=0.1),
        GateRule(metric=metrics[1].metric, min=0.5),
    ]

    found = [[item.p_value_holm for item in result.comparisons] for result in adjusted(rules, metrics)]

    assert found == [[0.02, None], [0.04, None], [None, None]]


@pytest.mark.parametrize(("units", "unit"), [(20, "rows"), (6, "groups")])
def test_a_decision_tells_rows_or_groups_as_the_intervals_count_them(units: int, unit: str) -> None:
    rule = GateRule(metric=Metric.ROUGE_L, min_delta=0.05)

    (decision,) = judge([rule], [metric_result(Metric.ROUGE_L, p_value=0.3, units=units)])

    assert decision.more_units is not None
    assert f"more {unit} would decide it" in decision.result.message
