"""How numbers and outcomes are said, the same in every report."""

from finetuning_api.metrics import Verdict, facts_of, is_built_in, is_of_a_task
from finetuning_evaluator.results import (
    CandidateSummary,
    DatasetSummary,
    MetricComparison,
    MetricResult,
    MetricValue,
    Results,
)

SIGNIFICANT = 0.05
_DASH = "\N{EN DASH}"
COMPARISON_NOTE = (
    "p (Holm): two-sided, in parentheses adjusted for all metrics of the gate. detectable: the smallest true difference"
    " that this many rows find in 80 % of cases; a smaller one may be there and unseen."
)


def number(value: float) -> str:
    """Return a value for a table: four significant digits, no exponent for ordinary sizes."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e6):  # noqa: PLR2004  (beyond these a fixed number of digits misleads)
        return f"{value:.3g}"
    digits = 4 if size < 1 else 3 if size < 100 else 1  # noqa: PLR2004  (about four significant digits)
    return f"{value:.{digits}f}"


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def interval(low: float | None, high: float | None) -> str:
    """Return a 95 % interval, or a dash where there are too few rows for one."""
    return _DASH if low is None or high is None else f"[{number(low)}, {number(high)}]"


def with_interval(value: MetricValue | None) -> str:
    """Return a value and its interval."""
    return _DASH if value is None else f"{number(value.value)} {interval(value.ci_low, value.ci_high)}"


def p_value(value: float) -> str:
    """Return a p-value for a table."""
    return "< 0.001" if value < 1e-3 else f"{value:.3f}"  # noqa: PLR2004  (what readers of p-values expect)


def p_values(comparison: MetricComparison) -> str:
    """Return the p-value, and in parentheses the one adjusted for all gated metrics, where the gate looks at it."""
    plain, corrected = p_value(comparison.p_value), comparison.p_value_holm
    return plain if corrected is None else f"{plain} ({p_value(corrected)})"


def detectable(comparison: MetricComparison) -> str:
    """Return the smallest difference that as many rows would find, or a dash where that cannot be told."""
    effect = comparison.minimum_detectable_effect
    return _or_dash(effect)


def outcome(result: MetricResult, comparison: MetricComparison) -> str:
    """Return better or worse when the interval leaves out zero and the p-value agrees, else unclear.

    Where few rows differ, a bootstrap interval alone is too sure of itself; the permutation test is not. Among the
    metrics of a gate Holm's p-value counts: with many metrics one would look better by chance.
    """
    low, high = comparison.ci_low, comparison.ci_high
    certain = comparison.p_value if comparison.p_value_holm is None else comparison.p_value_holm
    if low is None or high is None or low <= 0 <= high or certain >= SIGNIFICANT:
        return "unclear"
    return "better" if (comparison.delta < 0) == result.lower_is_better else "worse"


def shown(text: str) -> str:
    """Return a text as a sample shows it: white space alone is told from text."""
    return text.rstrip() if text.strip() else "(nothing)"


def evaluated(dataset: DatasetSummary) -> str:
    """Return how many rows were evaluated, and in how many groups where they have any."""
    rows = f"{dataset.rows} held-out rows"
    return rows if dataset.groups is None else f"{rows} in {dataset.groups} groups"


def resampled(dataset: DatasetSummary) -> str:
    """Return what intervals and tests resample."""
    return "rows" if dataset.groups is None else "groups"


def overlap(dataset: DatasetSummary) -> str:
    """Return how many of the rows training may have seen, as a sentence; empty where nothing was compared."""
    found = dataset.overlap
    if found is None:
        return ""
    return (
        f"{found.exact} of {dataset.rows} rows stand word by word in the {found.training_rows} rows of the training"
        f" side, {found.near} more nearly."
    )


COST_HEADER = (
    "load s",
    "scored tokens/s",
    "generated tokens/s",
    "one at a time",
    "tokens per output",
    "length ratio",
    "empty",
    "cut",
    "refusals",
)
COST_NOTE = (
    "Tokens per second are of whole batches, but for one at a time. length ratio: characters of all outputs over"
    " those of all references. cut: ended by the limit. refusals: begin with one of a list of English phrases, a rough"
    " count."
)


def costs(candidate: CandidateSummary) -> tuple[str, ...]:
    """Return what a candidate took and how its outputs look, in the order of COST_HEADER."""
    speed, outputs = candidate.speed, candidate.outputs
    rates = tuple(map(_or_dash, (candidate.load_seconds, speed.scored, speed.generated, speed.alone)))
    if outputs is None:
        return (*rates, *[_DASH] * 5)
    lengths = _or_dash(outputs.mean_tokens), _or_dash(outputs.length_ratio)
    return (*rates, *lengths, str(outputs.empty), str(outputs.cut), str(outputs.refused))


ORIGIN_HEADER = ("candidate", "metrics", "computed")
ORIGIN_NOTE = (
    "What was there already was computed with the same model, rows, settings and code. Intervals, comparisons and the"
    " gate are of this evaluation."
)


def origins(results: Results) -> tuple[tuple[str, str, str], ...]:
    """Return which scores of which candidate were computed when and by whom, in the order of ORIGIN_HEADER."""
    told: dict[tuple[str, str], list[str]] = {}
    for candidate in results.candidates:
        for metric in results.metrics:
            told.setdefault((candidate.name, _origin(candidate, metric.metric)), []).append(metric.metric)
    return tuple((name, ", ".join(metrics), when) for (name, when), metrics in told.items())


def _origin(candidate: CandidateSummary, metric: str) -> str:
    origin = candidate.reused.get(facts_of(metric).task)
    # What a user's own code makes of outputs is never kept, though the outputs are.
    if origin is None or not (is_built_in(metric) or is_of_a_task(metric)):
        return "by this evaluation"
    return f"{origin.computed_at:%Y-%m-%d %H:%M} UTC by {origin.job.kind} {origin.job.name}"


def _or_dash(value: float | None) -> str:
    return _DASH if value is None else number(value)


def headline(results: Results) -> str:
    """Return the first sentence of a report."""
    if results.verdict is None:
        return "No gate was set: read the table."
    return {
        Verdict.PASS: "Passed: the tuned model satisfies every gate rule.",
        Verdict.FAIL: "Failed: a gate rule is violated.",
        Verdict.INCONCLUSIVE: "Inconclusive: the rows do not suffice to decide every gate rule.",
    }[results.verdict]
