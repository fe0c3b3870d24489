"""Intervals and paired comparisons, by resampling rows or whole clusters of rows: vectorised and seeded.

Every metric is a function of sums over rows, see aggregates. So one matrix of resampling weights serves all metrics and
all candidates at once, and differences between candidates are paired by construction: each resample holds the same rows
for everyone.

Rows of one cluster are not independent; what is resampled and swapped is the *unit*: a cluster, or a row where there
are none. Sums over rows are sums over units, so only the matrix of components changes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from finetuning_evaluator.aggregates import FloatArray, Statistic, aggregate, row_values

IntArray = NDArray[np.int64]

Z_95 = 1.959963984540054
_TIE = 1e-9
_CELLS_PER_CHUNK = 1 << 22
"""Resampling weights held in memory at once (32 MB of float64)."""


@dataclass(frozen=True, slots=True)
class Observations:
    """What one candidate scored on every row: ``components`` has the shape [rows, components of the statistic].

    ``clusters``, of shape [rows], numbers the cluster of every row. None or all distinct: rows are independent.
    """

    statistic: Statistic
    components: FloatArray
    clusters: IntArray | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.components.shape[0])

    @property
    def units(self) -> int:
        """Number of independent units: clusters, or rows where there are none."""
        return self.rows if self.clusters is None else int(np.unique(self.clusters).size)

    @property
    def is_clustered(self) -> bool:
        """Whether any two rows share a cluster."""
        return self.units < self.rows

    def unit_sums(self) -> FloatArray:
        """Return the components summed over every unit: [units, components of the statistic]."""
        if self.clusters is None or not self.is_clustered:
            return self.components
        _, unit_of_row = np.unique(self.clusters, return_inverse=True)
        sums = np.zeros((self.units, self.components.shape[1]))
        np.add.at(sums, unit_of_row, self.components)
        return sums

    def value(self) -> float:
        """Return the metric over all rows."""
        return float(aggregate(self.statistic, self.components.sum(axis=0)))

    def row_values(self) -> FloatArray:
        """Return a value per row for win and loss counts: the metric itself, or 1 for a right judgement."""
        return row_values(self.statistic, self.components)


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


class PairedTest(StrEnum):
    """Which test a p-value comes from; all are two-sided."""

    PERMUTATION = "paired permutation"
    MCNEMAR = "exact McNemar"


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """``delta`` = first - second over the same rows; wins and losses count rows from the first candidate's side."""

    delta: float
    interval: Interval | None
    p_value: float
    test: PairedTest
    wins: int
    ties: int
    losses: int
    rows: int


def _weight_chunks(units: int, *, samples: int, seed: int) -> Iterator[FloatArray]:
    """Yield multinomial weights of shape [chunk, units] that add up to ``samples`` resamples."""
    generator = np.random.default_rng(seed)
    chunk = max(1, _CELLS_PER_CHUNK // units)
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        drawn = generator.integers(0, units, size=(size, units)) + np.arange(size)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=size * units)
        yield counts.reshape(size, units).astype(np.float64)


def bootstrap(observations: Sequence[Observations], *, samples: int, seed: int) -> list[FloatArray]:
    """Return ``samples`` resampled values for each of several observations of the same units.

    Draw i of every result is over the same resampled units, so the difference of two results is a paired bootstrap.
    """
    if not observations:
        return []
    edges = np.cumsum([0, *(item.components.shape[1] for item in observations)])
    stacked = np.concatenate([item.unit_sums() for item in observations], axis=1)
    draws: list[list[FloatArray]] = [[] for _ in observations]
    for weights in _weight_chunks(observations[0].units, samples=samples, seed=seed):
        sums = weights @ stacked
        for index, item in enumerate(observations):
            draws[index].append(aggregate(item.statistic, sums[:, edges[index] : edges[index + 1]]))
    return [np.concatenate(parts) for parts in draws]


def percentile_interval(draws: FloatArray) -> Interval | None:
    """Return the central 95 % of resampled values; None when a resample has no finite value."""
    if not np.isfinite(draws).all():
        return None
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(low), float(high))


def wilson_interval(successes: float, rows: float) -> Interval:
    """Return Wilson's score interval of a proportion; ``rows`` may be an effective number.

    Unlike a bootstrap it does not shrink to a point when every row agrees. E. B. Wilson, JASA 22 (1927).
    """
    share = successes / rows
    denominator = 1 + Z_95**2 / rows
    centre = (share + Z_95**2 / (2 * rows)) / denominator
    half = Z_95 / denominator * math.sqrt(share * (1 - share) / rows + Z_95**2 / (4 * rows**2))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def effective_rows(observations: Observations, draws: FloatArray) -> float:
    """Return how many independent rows would make a proportion as precise as its clustered rows do.

    L. Kish, Survey Sampling (1965): p (1 - p) / variance, here of resampled clusters. Never fewer than the clusters nor
    more than the rows; the clusters where every row agrees and the variance says nothing.
    """
    share, variance = observations.value(), float(draws.var())
    if share in {0.0, 1.0}:
        return observations.units
    if variance == 0:
        return observations.rows
    return min(max(share * (1 - share) / variance, observations.units), observations.rows)


def bonett_price_interval(only_first: float, only_second: float, rows: int) -> Interval:
    """Return the interval of a difference of paired proportions.

    ``only_first`` and ``only_second`` count the rows that one side alone got right. D. G. Bonett and R. M. Price,
    J. Educ. Behav. Stat. 37 (2012): Wald's interval after one row is added to each discordant cell.
    """
    first, second = (only_first + 1) / (rows + 2), (only_second + 1) / (rows + 2)
    half = Z_95 * math.sqrt((first + second - (first - second) ** 2) / (rows + 2))
    return Interval(max(-1.0, first - second - half), min(1.0, first - second + half))


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test: a fair coin decides each discordant row."""
    discordant = only_first + only_second
    term, tail = 1, 0
    for wins in range(min(only_first, only_second) + 1):
        tail += term
        term = term * (discordant - wins) // (wins + 1)
    return min(1.0, 2 * tail / (1 << discordant))


def permutation_p_value(first: Observations, second: Observations, *, samples: int, seed: int) -> float:
    """Return the p-value of a paired permutation test of the difference: (k + 1) / (samples + 1).

    Under the null hypothesis a unit's two results may be swapped; for a mean this is the sign-flip test.
    """
    generator = np.random.default_rng(seed)
    units, statistic = first.units, first.statistic
    gained = second.unit_sums() - first.unit_sums()
    totals = first.components.sum(axis=0), second.components.sum(axis=0)
    observed = abs(float(aggregate(statistic, totals[0]) - aggregate(statistic, totals[1])))
    at_least = 0
    chunk = max(1, _CELLS_PER_CHUNK // units)
    for start in range(0, samples, chunk):
        swapped = generator.integers(0, 2, size=(min(chunk, samples - start), units), dtype=np.int8)
        moved = swapped.astype(np.float64) @ gained
        difference = aggregate(statistic, totals[0] + moved) - aggregate(statistic, totals[1] - moved)
        at_least += int((np.abs(difference) >= observed * (1 - 1e-9)).sum())
    return (at_least + 1) / (samples + 1)


def level_interval(observations: Observations, draws: FloatArray) -> Interval | None:
    """Return the 95 % interval of one candidate's value; None with fewer than two units."""
    if observations.units < 2:  # noqa: PLR2004  (one unit says nothing about the spread of units)
        return None
    if observations.statistic is Statistic.PROPORTION:
        right = float(observations.components[:, 0].sum())
        if not observations.is_clustered:
            return wilson_interval(right, observations.rows)
        effective = effective_rows(observations, draws)
        return wilson_interval(right / observations.rows * effective, effective)
    return percentile_interval(draws)


@dataclass(frozen=True, slots=True)
class Side:
    """One candidate in a comparison: what it scored and its resampled values."""

    observations: Observations
    draws: FloatArray


def compare(first: Side, second: Side, *, lower_is_better: bool, samples: int, seed: int) -> PairedComparison:
    """Compare two candidates that scored the same rows; ``delta`` is first - second."""
    one, two = first.observations, second.observations
    better = (two.row_values() - one.row_values()) * (1 if lower_is_better else -1)
    wins, losses = int((better > _TIE).sum()), int((better < -_TIE).sum())
    # McNemar's coin decides every discordant row by itself: wrong where rows hang together.
    exact = one.statistic is Statistic.PROPORTION and not one.is_clustered
    return PairedComparison(
        delta=one.value() - two.value(),
        interval=_difference_interval(first, second, wins=wins, losses=losses),
        p_value=mcnemar_p_value(wins, losses) if exact else permutation_p_value(one, two, samples=samples, seed=seed),
        test=PairedTest.MCNEMAR if exact else PairedTest.PERMUTATION,
        wins=wins,
        ties=one.rows - wins - losses,
        losses=losses,
        rows=one.rows,
    )


def _difference_interval(first: Side, second: Side, *, wins: int, losses: int) -> Interval | None:
    """Return the 95 % interval of first - second; None with fewer than two units."""
    observations, difference = first.observations, first.draws - second.draws
    if observations.units < 2:  # noqa: PLR2004  (one unit says nothing about the spread of units)
        return None
    if observations.statistic is not Statistic.PROPORTION:
        return percentile_interval(difference)
    if observations.is_clustered and float(np.ptp(difference)) > _TIE:
        return percentile_interval(difference)
    # Clusters that all agree are no better than as many rows: the counts of rows shrink to that size.
    weight = observations.units / observations.rows
    return bonett_price_interval(wins * weight, losses * weight, observations.units)
