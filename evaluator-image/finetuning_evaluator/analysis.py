"""From observations to results: values with intervals, paired comparisons, and the gate's decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetuning_api.metrics import DEFAULT_AGAINST, GateRule, facts_of
from finetuning_evaluator.gate import Measured, decide, more_units
from finetuning_evaluator.observations import Observed, ObservedByMetric
from finetuning_evaluator.power import holm, minimum_detectable_effect
from finetuning_evaluator.results import GateDecision, MetricComparison, MetricResult, MetricValue
from finetuning_evaluator.statistics import Interval, Side, bootstrap, compare, level_interval
from finetuning_workload.evaluated import TUNED, CandidateInputs, comparable, is_per_row

FEW_ROWS = 30
"""Independent rows, or groups of rows, below which intervals are rough."""
ANALYSIS_VERSION = 3
"""Raised when the same parts give other intervals or p-values, so that older results are not taken for current ones."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made."""

    samples: int
    seed: int


def analyse(
    observed: ObservedByMetric, inputs: Sequence[CandidateInputs], resampling: Resampling
) -> tuple[MetricResult, ...]:
    """Return every metric with intervals and comparisons. Metrics over the same number of units share resamples."""
    sides = _resampled(observed, resampling)
    return tuple(
        MetricResult(
            metric=metric,
            lower_is_better=next(iter(by_candidate.values())).lower_is_better,
            unit=facts_of(metric).unit,
            signature=next(iter(by_candidate.values())).signature,
            values=tuple(_value(name, found, sides[metric][name]) for name, found in by_candidate.items()),
            comparisons=_comparisons(metric, inputs, by_candidate, sides=sides[metric], resampling=resampling),
            units=next(iter(by_candidate.values())).observations.units,
        )
        for metric, by_candidate in observed.items()
    )


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return who is compared with whom: tuned with every other, or without a tuned every other with the first."""
    if TUNED in names:
        return [(TUNED, other) for other in names if other != TUNED]
    return [(other, names[0]) for other in names[1:]]


def judge(rules: Sequence[GateRule], metrics: Sequence[MetricResult]) -> tuple[GateDecision, ...]:
    """Return the decision of every rule."""
    by_name = {result.metric: result for result in metrics}
    measured = [_measured(rule, by_name[rule.metric]) for rule in rules]
    return tuple(
        GateDecision(rule=rule, result=decide(rule, found), more_units=more_units(rule, found))
        for rule, found in zip(rules, measured, strict=True)
    )


def adjusted(rules: Sequence[GateRule], metrics: Sequence[MetricResult]) -> tuple[MetricResult, ...]:
    """Return the metrics with Holm's p-values in the comparisons that the gate looks at.

    The family is every gated metric once for each candidate that its rules compare with; an absolute rule counts as a
    comparison with the base. The verdict itself needs no correction: it passes only if every rule passes, and then no
    rule is a further chance (R. L. Berger, "Multiparameter Hypothesis Testing and Acceptance Sampling", Technometrics
    24, 1982).
    """
    wanted = {(rule.metric, rule.against or DEFAULT_AGAINST) for rule in rules}
    family = {
        (result.metric, item.against): item.p_value
        for result in metrics
        for item in result.comparisons
        if item.candidate == TUNED and (result.metric, item.against) in wanted
    }
    corrected = dict(zip(family, holm(list(family.values())), strict=True))
    return tuple(
        result.model_copy(
            update={
                "comparisons": tuple(
                    item.model_copy(update={"p_value_holm": corrected.get((result.metric, item.against))})
                    if item.candidate == TUNED
                    else item
                    for item in result.comparisons
                )
            }
        )
        for result in metrics
    )


def _resampled(observed: ObservedByMetric, resampling: Resampling) -> dict[str, dict[str, Side]]:
    """Return values with their draws. Observations of equally many units are resampled together, hence paired."""
    populations: dict[int, list[tuple[str, str]]] = {}
    for metric, by_candidate in observed.items():
        for name, found in by_candidate.items():
            populations.setdefault(found.observations.units, []).append((metric, name))
    sides: dict[str, dict[str, Side]] = {metric: {} for metric in observed}
    for keys in populations.values():
        group = [observed[metric][name].observations for metric, name in keys]
        drawn = bootstrap(group, samples=resampling.samples, seed=resampling.seed)
        for (metric, name), observations, draws in zip(keys, group, drawn, strict=True):
            sides[metric][name] = Side(observations, draws)
    return sides


def _value(name: str, found: Observed, side: Side) -> MetricValue:
    interval = level_interval(side.observations, side.draws)
    return MetricValue(
        candidate=name,
        value=side.observations.value(),
        ci_low=None if interval is None else interval.low,
        ci_high=None if interval is None else interval.high,
        samples=side.observations.rows,
        details=found.details,
    )


def _comparisons(
    metric: str,
    inputs: Sequence[CandidateInputs],
    observed: Mapping[str, Observed],
    *,
    sides: Mapping[str, Side],
    resampling: Resampling,
) -> tuple[MetricComparison, ...]:
    by_name = {found.candidate.name: found for found in inputs}
    return tuple(
        _comparison(first, second, lower_is_better=observed[first].lower_is_better, sides=sides, resampling=resampling)
        for first, second in pairs(list(by_name))
        if comparable(metric, by_name[first], by_name[second])
    )


def _comparison(
    first: str, second: str, *, lower_is_better: bool, sides: Mapping[str, Side], resampling: Resampling
) -> MetricComparison:
    found = compare(
        sides[first],
        sides[second],
        lower_is_better=lower_is_better,
        samples=resampling.samples,
        seed=resampling.seed,
    )
    against = sides[second].observations.value()
    return MetricComparison(
        candidate=first,
        against=second,
        delta=found.delta,
        ci_low=None if found.interval is None else found.interval.low,
        ci_high=None if found.interval is None else found.interval.high,
        relative=found.delta / against if against else None,
        p_value=found.p_value,
        minimum_detectable_effect=minimum_detectable_effect(found.interval),
        test=found.test,
        wins=found.wins,
        ties=found.ties,
        losses=found.losses,
        samples=found.rows,
    )


def _measured(rule: GateRule, result: MetricResult) -> Measured:
    """Return the tuned value, or for a relative rule its improvement: positive is better."""
    if not rule.is_relative:
        value = result.value(TUNED)
        if value is None:
            raise LookupError(rule.metric)
        return _with_units(result, value.value, _interval(value.ci_low, value.ci_high))
    comparison = result.comparison(TUNED, rule.against or DEFAULT_AGAINST)
    if comparison is None:
        raise LookupError(rule.metric)
    interval = _interval(comparison.ci_low, comparison.ci_high)
    if not result.lower_is_better:
        return _with_units(result, comparison.delta, interval)
    improvement = None if interval is None else Interval(-interval.high, -interval.low)
    return _with_units(result, -comparison.delta, improvement)


def _with_units(result: MetricResult, value: float, interval: Interval | None) -> Measured:
    if not is_per_row(result.metric):
        return Measured(value, interval)
    grouped = result.units is not None and result.units < max(value.samples for value in result.values)
    return Measured(value, interval, units=result.units, unit="groups" if grouped else "rows")


def _interval(low: float | None, high: float | None) -> Interval | None:
    return None if low is None or high is None else Interval(low, high)
