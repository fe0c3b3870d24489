"""The gate: three-state rules on intervals, because a point estimate alone decides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetuning_api.metrics import DEFAULT_AGAINST, GateResult, GateRule, Verdict
from finetuning_evaluator import power
from finetuning_evaluator.statistics import Interval


@dataclass(frozen=True, slots=True)
class Measured:
    """A number and its 95 % interval; None where there are too few rows for one."""

    value: float
    interval: Interval | None
    units: int | None = None
    """Independent units behind the interval; None where a user cannot add any: the metric has a fixed set."""
    unit: str = "rows"
    """What the units are."""


def decide(rule: GateRule, measured: Measured) -> GateResult:
    """Judge one rule.

    ``measured`` is the tuned candidate's value for ``min`` and ``max``, and its improvement over ``against`` (positive
    is better, also where lower values are) for ``minDelta`` and ``nonInferior``. The verdict is Pass when the whole
    interval satisfies the rule, Fail when the whole interval violates it, and Inconclusive otherwise.
    """
    bound, interval = _bound_and_interval(rule, measured)
    verdict = _verdict(bound, interval)
    return GateResult(metric=rule.metric, verdict=verdict, message=_message(rule, measured, verdict))


def more_units(rule: GateRule, measured: Measured) -> int | None:
    """Return how many more units would probably decide an inconclusive rule; None where it is decided or none would."""
    bound, interval = _bound_and_interval(rule, measured)
    if measured.units is None or _verdict(bound, interval) is not Verdict.INCONCLUSIVE:
        return None
    value = measured.value if rule.max is None else -measured.value
    return power.more_units(value, interval, bound=bound, units=measured.units)


def overall(gates: Sequence[GateResult]) -> Verdict | None:
    """Return Fail if any rule fails, else Inconclusive if any is, else Pass; None without rules."""
    if not gates:
        return None
    verdicts = {gate.verdict for gate in gates}
    return next(verdict for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS) if verdict in verdicts)


def _bound_and_interval(rule: GateRule, measured: Measured) -> tuple[float, Interval | None]:
    """Return the rule as a lower bound, and the interval on the same scale."""
    if rule.max is not None:
        return -rule.max, _negated(measured.interval)
    return _lower_bound(rule), measured.interval


def _lower_bound(rule: GateRule) -> float:
    if rule.min is not None:
        return rule.min
    if rule.min_delta is not None:
        return rule.min_delta
    return -(rule.non_inferior or 0.0)


def _negated(interval: Interval | None) -> Interval | None:
    return None if interval is None else Interval(-interval.high, -interval.low)


def _verdict(bound: float, interval: Interval | None) -> Verdict:
    if interval is None:
        return Verdict.INCONCLUSIVE
    if interval.low >= bound:
        return Verdict.PASS
    return Verdict.FAIL if interval.high < bound else Verdict.INCONCLUSIVE


def _message(rule: GateRule, measured: Measured, verdict: Verdict) -> str:
    because = _because(verdict) if verdict is not Verdict.INCONCLUSIVE else _undecided(rule, measured)
    return f"{_subject(rule, measured)}{_span(measured.interval)}; {_condition(rule)}: {because}"


def _subject(rule: GateRule, measured: Measured) -> str:
    if rule.is_relative:
        return f"{rule.metric} improved by {measured.value:.4g} over {rule.against or DEFAULT_AGAINST}"
    return f"{rule.metric} is {measured.value:.4g}"


def _span(interval: Interval | None) -> str:
    return "" if interval is None else f" [{interval.low:.4g}, {interval.high:.4g}]"


def _condition(rule: GateRule) -> str:
    if rule.min is not None:
        return f"min {rule.min:g}"
    if rule.max is not None:
        return f"max {rule.max:g}"
    if rule.min_delta is not None:
        return f"minDelta {rule.min_delta:g}"
    return f"nonInferior {rule.non_inferior:g}"


def _because(verdict: Verdict) -> str:
    return "the whole interval satisfies it" if verdict is Verdict.PASS else "the whole interval violates it"


def _undecided(rule: GateRule, measured: Measured) -> str:
    """Return why nothing is decided, and what would decide it."""
    if measured.interval is None:
        return "too few rows or groups for an interval"
    reaches = "the interval reaches both sides"
    if measured.units is None:
        return f"{reaches}; {rule.metric} is measured on a fixed set, so more rows do not narrow it"
    lacking = more_units(rule, measured)
    if lacking is None:
        return f"{reaches}, and the value lies so near the bound that no number of {measured.unit} decides"
    return f"{reaches}; about {_rounded_up(lacking)} more {measured.unit} would decide it (80 % power)"


def _rounded_up(count: int) -> int:
    """Return a count with two significant digits, never smaller."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step
