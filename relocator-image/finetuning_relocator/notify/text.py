"""What a notification says, for people: a title, some sentences, and the numbers of the evaluation as a table."""

from datetime import UTC
from typing import Final

from finetuning_api.metrics import EvaluationRow, Verdict
from finetuning_api.notification import NotificationEvent
from finetuning_api.runconfig import NotifyConfig

_HEAD: Final = ("metric", "base", "tuned", "delta", "95 % interval", "rows")
_VERBS: Final = {
    NotificationEvent.STARTED: "started",
    NotificationEvent.SUCCEEDED: "succeeded",
    NotificationEvent.FAILED: "failed",
    NotificationEvent.STALLED: "has stalled",
}
_VERDICTS: Final = {
    Verdict.PASS: "passed its gate",
    Verdict.FAIL: "did not pass its gate",
    Verdict.INCONCLUSIVE: "met a gate that could not decide",
}


def title(config: NotifyConfig) -> str:
    """Return what happened, in a line."""
    happened = _VERBS.get(config.event, "was evaluated")
    if config.event is NotificationEvent.GATE and config.verdict is not None:
        happened = _VERDICTS[config.verdict]
    return f"{config.job.kind} {config.job.namespace}/{config.job.name} {happened}"


def sentences(config: NotifyConfig) -> tuple[str, ...]:
    """Return what is worth knowing besides the title and the numbers, a paragraph each."""
    reason = f"{config.reason.value}: " if config.reason else ""
    verdict = f"Gate: {config.verdict.value}" if config.verdict else ""
    return tuple(
        text
        for text in (
            f"{reason}{config.message}",
            f"{verdict} ({config.gate})" if verdict and config.gate else verdict,
            f"Served at {config.url}" if config.url else "",
        )
        if text
    )


def table(rows: tuple[EvaluationRow, ...]) -> str:
    """Return the numbers in columns of equal width; empty where nothing was evaluated."""
    if not rows:
        return ""
    with_reference = any(row.reference is not None for row in rows)
    head = [*_HEAD[:3], *(("reference",) if with_reference else ()), *_HEAD[3:]]
    lines = [head, *(_cells(row, with_reference=with_reference) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def plain(config: NotifyConfig) -> str:
    """Return the whole notification as plain text."""
    told = f"{config.time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return "\n\n".join(part for part in (title(config), *sentences(config), table(config.evaluation), told) if part)


def _cells(row: EvaluationRow, *, with_reference: bool) -> list[str]:
    known = row.ci_low is not None and row.ci_high is not None
    interval = f"[{_number(row.ci_low, sign=True)}, {_number(row.ci_high, sign=True)}]" if known else "-"
    reference = [_number(row.reference)] if with_reference else []
    delta = _number(row.delta, sign=True)
    return [row.metric, _number(row.base), _number(row.tuned), *reference, delta, interval, str(row.samples)]


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.4g}" if sign else f"{value:.4g}"
