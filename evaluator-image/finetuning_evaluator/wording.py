"""How numbers and outcomes are said, the same in every report."""

from finetuning_api.metrics import Verdict
from finetuning_evaluator.results import DatasetSummary, MetricComparison, MetricResult, MetricValue, Results

SIGNIFICANT = 0.05


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
    return "–" if low is None or high is None else f"[{number(low)}, {number(high)}]"  # noqa: RUF001  (a dash for a person)


def with_interval(value: MetricValue | None) -> str:
    """Return a value and its interval."""
    return "–" if value is None else f"{number(value.value)} {interval(value.ci_low, value.ci_high)}"  # noqa: RUF001


def p_value(value: float) -> str:
    """Return a p-value for a table."""
    return "< 0.001" if value < 1e-3 else f"{value:.3f}"  # noqa: PLR2004  (what readers of p-values expect)


def outcome(result: MetricResult, comparison: MetricComparison) -> str:
    """Return better or worse when the interval leaves out zero and the p-value agrees, else unclear.

    Where few rows differ, a bootstrap interval alone is too sure of itself; the permutation test is not.
    """
    low, high = comparison.ci_low, comparison.ci_high
    if low is None or high is None or low <= 0 <= high or comparison.p_value >= SIGNIFICANT:
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


def headline(results: Results) -> str:
    """Return the first sentence of a report."""
    if results.verdict is None:
        return "No gate was set: read the table."
    return {
        Verdict.PASS: "Passed: the tuned model satisfies every gate rule.",
        Verdict.FAIL: "Failed: a gate rule is violated.",
        Verdict.INCONCLUSIVE: "Inconclusive: the rows do not suffice to decide every gate rule.",
    }[results.verdict]
