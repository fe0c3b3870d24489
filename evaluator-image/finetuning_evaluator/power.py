"""What an evaluation of this size can decide: the smallest effect that it would see, and how many more rows it lacks.

Everything is read from 95 % intervals, whatever they were made by: paired bootstrap, Wilson, or Bonett and Price.
"""

import math
from collections.abc import Sequence

from finetuning_evaluator.statistics import Z_95, Interval

POWER = 0.8
Z_POWER = 0.8416212335729143
"""The quantile of the standard normal distribution at ``POWER``."""
MOST_UNITS = 1_000_000_000
"""No data set of this project is larger: beyond, no number of rows decides."""


def minimum_detectable_effect(interval: Interval | None) -> float | None:
    """Return the smallest true difference that an evaluation of this size finds in 80 % of cases, at level 0.05.

    (z(0.975) + z(0.8)) x standard error: H. S. Bloom, "Minimum Detectable Effects", Evaluation Review 19 (1995). The
    standard error is the width of the 95 % interval over 2 x 1.96. None without an interval of some width.
    """
    if interval is None or interval.high <= interval.low:
        return None
    return (Z_95 + Z_POWER) * (interval.high - interval.low) / (2 * Z_95)


def more_units(value: float, interval: Interval | None, *, bound: float, units: int) -> int | None:
    """Return how many more independent units would move the interval off ``bound``; None where no number would.

    If the true value is the measured one, n units decide in 80 % of cases, where n = ((z(0.975) + z(0.8)) x s /
    |value - bound|)^2 and s is the standard deviation of one unit: the sample size of a comparison with a margin (S.-C.
    Chow, J. Shao, H. Wang, "Sample Size Calculations in Clinical Research", 2008, 3.1.2). Here s^2 / ``units`` is the
    square of the standard error on the side of the interval that reaches over the bound.
    """
    if interval is None or not interval.low < bound <= interval.high or value == bound:
        return None
    reach = value - interval.low if value > bound else interval.high - value
    needed = units * ((Z_95 + Z_POWER) * reach / (Z_95 * abs(value - bound))) ** 2
    return None if needed > MOST_UNITS else max(1, math.ceil(needed - units))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that all that stay below a level are right together with that level's certainty.

    S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statist. 6 (1979): the k-th smallest
    of m is multiplied by m - k + 1, and none may fall below one before it.
    """
    adjusted = [0.0] * len(p_values)
    greatest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = greatest
    return adjusted
