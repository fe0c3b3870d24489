"""Intervals cover what they promise, and comparisons agree with independent implementations."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test
from sklearn.metrics import matthews_corrcoef

from finetuning_evaluator.aggregates import FloatArray, Statistic, aggregate
from finetuning_evaluator.statistics import (
    IntArray,
    Interval,
    Observations,
    PairedComparison,
    PairedTest,
    Side,
    bonett_price_interval,
    bootstrap,
    compare,
    effective_rows,
    level_interval,
    mcnemar_p_value,
    permutation_p_value,
    wilson_interval,
)


def mean_of(values: FloatArray) -> Observations:
    return Observations(Statistic.MEAN, np.stack([values, np.ones_like(values)], axis=1))


def share_of(right: FloatArray) -> Observations:
    return Observations(Statistic.PROPORTION, np.stack([right, np.ones_like(right)], axis=1))


def perplexity_of(nll: FloatArray, tokens: FloatArray) -> Observations:
    return Observations(Statistic.PERPLEXITY, np.stack([nll, tokens], axis=1))


def judgements_of(actual: FloatArray, predicted: FloatArray) -> Observations:
    cells = [actual * predicted, (1 - actual) * predicted, actual * (1 - predicted), (1 - actual) * (1 - predicted)]
    return Observations(Statistic.MATTHEWS, np.stack(cells, axis=1))


def clustered(observations: Observations, clusters: IntArray) -> Observations:
    return replace(observations, clusters=clusters)


def side(observations: Observations, *, samples: int = 2000, seed: int = 0) -> Side:
    (draws,) = bootstrap([observations], samples=samples, seed=seed)
    return Side(observations, draws)


def covers(interval: Interval | None, truth: float) -> bool:
    assert interval is not None
    return interval.low <= truth <= interval.high


def test_a_perplexity_is_a_ratio_of_sums_and_not_a_mean_of_ratios() -> None:
    observations = perplexity_of(np.array([3.0, 100.0]), np.array([3.0, 50.0]))

    assert observations.value() == pytest.approx(math.exp(103 / 53))


def test_bits_per_byte_counts_in_powers_of_two() -> None:
    observations = Observations(Statistic.BITS_PER_BYTE, np.array([[math.log(2) * 8, 4.0]]))

    assert observations.value() == pytest.approx(2.0)


def test_matthews_correlation_agrees_with_sklearn() -> None:
    generator = np.random.default_rng(3)
    for _ in range(50):
        actual, predicted = generator.integers(0, 2, (2, 40)).astype(np.float64)
        assert judgements_of(actual, predicted).value() == pytest.approx(matthews_corrcoef(actual, predicted))


@pytest.mark.parametrize("predicted", [0.0, 1.0])
def test_matthews_correlation_of_one_answer_for_everything_is_zero(predicted: float) -> None:
    actual = np.array([0.0, 1.0, 1.0])

    assert judgements_of(actual, np.full(3, predicted)).value() == 0.0


def test_a_bootstrap_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    observations = mean_of(np.random.default_rng(0).normal(size=50))
    first, again, other = (bootstrap([observations], samples=200, seed=seed)[0] for seed in (1, 1, 2))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_resamples_of_several_observations_hold_the_same_rows() -> None:
    values = np.random.default_rng(0).normal(size=50)
    first, shifted = bootstrap([mean_of(values), mean_of(values + 2.5)], samples=500, seed=1)

    assert shifted - first == pytest.approx(np.full(500, 2.5))


def test_a_bootstrap_in_many_chunks_has_the_right_spread() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    (draws,) = bootstrap([mean_of(values)], samples=2500, seed=1)

    assert draws.shape == (2500,)
    assert draws.std() == pytest.approx(values.std() / math.sqrt(5000), rel=0.1)


@pytest.mark.parametrize(("name", "least"), [("mean", 0.91), ("perplexity", 0.91), ("matthews", 0.91)])
def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_promise(name: str, least: float) -> None:
    generator, rows, runs, hits = np.random.default_rng(7), 80, 400, 0
    for run in range(runs):
        if name == "mean":
            observations, truth = mean_of(generator.beta(2, 5, rows)), 2 / 7
        elif name == "perplexity":
            tokens = generator.integers(5, 60, rows).astype(np.float64)
            observations, truth = perplexity_of(tokens * generator.normal(2.0, 0.5, rows), tokens), math.exp(2.0)
        else:
            actual = generator.integers(0, 2, rows).astype(np.float64)
            predicted = np.where(generator.random(rows) < 0.75, actual, 1 - actual)
            observations, truth = judgements_of(actual, predicted), 0.5
        found = side(observations, samples=600, seed=run)
        hits += covers(level_interval(observations, found.draws), truth)

    assert least <= hits / runs <= 0.985


@pytest.mark.parametrize("share", [0.02, 0.3, 0.97])
def test_the_interval_of_a_share_covers_the_truth(share: float) -> None:
    generator = np.random.default_rng(5)
    hits = [covers(wilson_interval(float(generator.binomial(60, share)), 60), share) for _ in range(2000)]

    assert 0.92 <= np.mean(hits) <= 0.995


@pytest.mark.parametrize(("first", "second"), [(0.3, 0.1), (0.05, 0.05), (0.0, 0.4)])
def test_the_interval_of_a_difference_of_paired_shares_covers_the_truth(first: float, second: float) -> None:
    generator = np.random.default_rng(5)
    counts = generator.multinomial(80, [first, second, 1 - first - second], size=2000)
    hits = [covers(bonett_price_interval(int(won), int(lost), 80), first - second) for won, lost, _ in counts]

    assert 0.93 <= np.mean(hits) <= 0.995


def test_a_share_that_every_row_agrees_on_still_has_an_interval_of_some_width() -> None:
    observations = share_of(np.ones(20))
    interval = level_interval(observations, side(observations).draws)

    assert interval is not None
    assert interval.high == pytest.approx(1.0)
    assert interval.low == pytest.approx(0.8389, abs=1e-3)


def test_one_row_has_no_interval() -> None:
    observations = mean_of(np.array([0.5]))

    assert level_interval(observations, side(observations).draws) is None
    assert compare(side(observations), side(observations), lower_is_better=False, samples=10, seed=0).interval is None


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (3, 9), (40, 12), (700, 650)])
def test_the_mcnemar_p_value_is_that_of_the_binomial_test(won: int, lost: int) -> None:
    expected = binomtest(won, won + lost, 0.5).pvalue if won + lost else 1.0

    assert mcnemar_p_value(won, lost) == pytest.approx(expected)


def test_the_permutation_p_value_agrees_with_scipy() -> None:
    generator = np.random.default_rng(2)
    first, second = generator.normal(0.2, 1, 30), generator.normal(0, 1, 30)
    expected = permutation_test(
        (first, second),
        lambda one, two: one.mean() - two.mean(),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).pvalue

    found = permutation_p_value(mean_of(first), mean_of(second), samples=20_000, seed=1)

    assert found == pytest.approx(expected, abs=0.015)


def test_p_values_are_spread_evenly_when_nothing_differs() -> None:
    generator = np.random.default_rng(4)
    found = []
    for run in range(300):
        first, second = generator.normal(size=(2, 25))
        found.append(permutation_p_value(mean_of(first), mean_of(second), samples=199, seed=run))

    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.09


def test_equal_candidates_have_a_p_value_of_one() -> None:
    observations = mean_of(np.random.default_rng(0).normal(size=20))

    assert permutation_p_value(observations, observations, samples=100, seed=0) == 1.0


def test_a_comparison_counts_wins_from_the_side_of_the_better_value() -> None:
    tokens = np.full(4, 10.0)
    tuned, base = (perplexity_of(np.array(nll), tokens) for nll in ([10.0, 10, 30, 20], [20.0, 20, 20, 20]))
    drawn = bootstrap([tuned, base], samples=100, seed=0)

    found = compare(Side(tuned, drawn[0]), Side(base, drawn[1]), lower_is_better=True, samples=100, seed=0)

    assert (found.wins, found.ties, found.losses, found.rows) == (2, 1, 1, 4)
    assert found.delta == pytest.approx(math.exp(70 / 40) - math.exp(2))
    assert found.test is PairedTest.PERMUTATION


def test_a_comparison_of_right_and_wrong_rows_uses_the_paired_formulas() -> None:
    tuned, base = share_of(np.array([1.0] * 8 + [0.0] * 2)), share_of(np.array([0.0] * 7 + [1.0] * 2 + [0.0]))

    found = compare(side(tuned), side(base), lower_is_better=False, samples=100, seed=0)

    assert (found.wins, found.ties, found.losses) == (7, 2, 1)
    assert found.interval == bonett_price_interval(7, 1, 10)
    assert found.p_value == mcnemar_p_value(7, 1)
    assert found.test is PairedTest.MCNEMAR


def test_sums_over_nothing_have_no_value() -> None:
    assert math.isnan(float(aggregate(Statistic.PERPLEXITY, np.array([0.0, 0.0]))))


GROUPS, GROUP_ROWS = 40, 6
GROUP_OF_ROW = np.repeat(np.arange(GROUPS), GROUP_ROWS)


def coverage(runs: list[Interval | None], truth: float) -> float:
    return float(np.mean([covers(interval, truth) for interval in runs]))


def correlated_shares(generator: np.random.Generator, share: float) -> FloatArray:
    """Return right and wrong rows of which nine in ten follow their group."""
    group = np.repeat(generator.random(GROUPS) < share, GROUP_ROWS)
    own = generator.random(GROUPS * GROUP_ROWS) < share
    follows = generator.random(GROUPS * GROUP_ROWS) < 0.9
    return np.where(follows, group, own).astype(np.float64)


def paired(tuned: Observations, base: Observations, *, samples: int = 300, seed: int = 0) -> PairedComparison:
    drawn = bootstrap([tuned, base], samples=samples, seed=seed)
    sides = Side(tuned, drawn[0]), Side(base, drawn[1])
    return compare(*sides, lower_is_better=False, samples=samples, seed=seed)


@pytest.mark.parametrize("make", [mean_of, share_of])
def test_groups_of_one_row_give_exactly_the_numbers_of_independent_rows(make: Callable[..., Observations]) -> None:
    generator = np.random.default_rng(3)
    tuned, base = (make(values) for values in generator.integers(0, 2, (2, 25)).astype(np.float64))
    distinct = generator.permutation(25)
    grouped = clustered(tuned, distinct), clustered(base, distinct)

    assert level_interval(grouped[0], side(grouped[0]).draws) == level_interval(tuned, side(tuned).draws)
    assert paired(*grouped) == paired(tuned, base)


def test_every_row_of_a_group_is_resampled_with_it() -> None:
    values = np.array([0.0, 4.0, 1.0, 6.0, 2.0])
    clusters = np.array([7, 3, 7, 3, 9])
    (draws,) = bootstrap([clustered(mean_of(values), clusters)], samples=500, seed=0)
    sums, rows = np.array([10.0, 1.0, 2.0]), np.array([2, 2, 1])
    times = [(a, b, 3 - a - b) for a in range(4) for b in range(4 - a)]

    assert {round(draw, 9) for draw in draws} == {round(float(sums @ n) / float(rows @ n), 9) for n in times}


@pytest.mark.parametrize("kind", ["mean", "share"])
def test_an_interval_over_groups_covers_the_truth_where_one_over_rows_does_not(kind: str) -> None:
    generator = np.random.default_rng(11)
    by_group, by_row = [], []
    for run in range(800):
        if kind == "share":
            rows, truth = share_of(correlated_shares(generator, 0.3)), 0.3
        else:
            noise = generator.normal(size=GROUPS * GROUP_ROWS)
            rows, truth = mean_of(np.repeat(generator.normal(size=GROUPS), GROUP_ROWS) + 0.3 * noise), 0.0
        grouped = clustered(rows, GROUP_OF_ROW)
        by_group.append(level_interval(grouped, side(grouped, samples=400, seed=run).draws))
        by_row.append(level_interval(rows, side(rows, samples=400, seed=run).draws))

    assert 0.92 <= coverage(by_group, truth) <= 0.975
    assert coverage(by_row, truth) < 0.75


@pytest.mark.parametrize("kind", ["mean", "share"])
def test_a_comparison_over_groups_is_as_sure_as_it_may_be_and_one_over_rows_too_sure(kind: str) -> None:
    generator = np.random.default_rng(12)
    by_group, by_row = [], []
    for run in range(300):
        if kind == "share":
            tuned, base = (share_of(correlated_shares(generator, 0.4)) for _ in range(2))
        else:
            effects = np.repeat(generator.normal(size=(2, GROUPS)), GROUP_ROWS, axis=1)
            tuned, base = (mean_of(effect + 0.3 * generator.normal(size=effect.size)) for effect in effects)
        grouped = clustered(tuned, GROUP_OF_ROW), clustered(base, GROUP_OF_ROW)
        by_group.append(paired(*grouped, seed=run))
        by_row.append(paired(tuned, base, seed=run))

    assert 0.91 <= coverage([found.interval for found in by_group], 0.0) <= 0.985
    assert coverage([found.interval for found in by_row], 0.0) < 0.75
    assert 0.015 <= np.mean([found.p_value < 0.05 for found in by_group]) <= 0.09
    assert np.mean([found.p_value < 0.05 for found in by_row]) > 0.25
    counts = [[(found.wins, found.ties, found.losses, found.rows) for found in side] for side in (by_group, by_row)]
    assert counts[0] == counts[1]
    assert {found.test for found in by_group} == {PairedTest.PERMUTATION}


def test_a_share_counts_as_many_rows_as_it_is_worth() -> None:
    copies = np.repeat(np.random.default_rng(0).integers(0, 2, GROUPS), GROUP_ROWS).astype(np.float64)
    even = np.tile([1.0, 1.0, 0.0], GROUPS * GROUP_ROWS // 3)
    worth = {}
    for name, right in (("copies", copies), ("even", even), ("agreeing", np.ones(GROUPS * GROUP_ROWS))):
        observations = clustered(share_of(right), GROUP_OF_ROW)
        worth[name] = effective_rows(observations, side(observations).draws)

    assert worth["copies"] == pytest.approx(GROUPS, rel=0.1)
    assert worth["even"] == GROUPS * GROUP_ROWS
    assert worth["agreeing"] == GROUPS


def test_shares_that_never_differ_have_an_interval_as_wide_as_the_groups_are_few() -> None:
    right = clustered(share_of(np.ones(90)), np.repeat(np.arange(15), 6))

    found = paired(right, right)

    assert found.interval == bonett_price_interval(0, 0, 15)
    assert found.p_value == 1.0


def test_one_group_has_no_interval_however_many_rows_it_has() -> None:
    tuned, base = (clustered(share_of(right), np.zeros(50, dtype=np.int64)) for right in (np.ones(50), np.zeros(50)))

    found = paired(tuned, base)

    assert level_interval(tuned, side(tuned).draws) is None
    assert (found.interval, found.p_value, found.wins) == (None, 1.0, 50)
