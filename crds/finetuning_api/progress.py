"""Reading progress reports: what both endpoints, of a cluster and of one machine, accept and what they make of it.

Reports come from any program, among them scripts that know nothing of this project. What arithmetic yields on the way
(no number, infinity, a percentage beyond 100) is made harmless; what is of another shape is refused with a message.
"""

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from finetuning_api.runconfig import ProgressMetric, TrainerMetric, TrainerStatus

REPORT_BYTES = 65536
"""Size of the largest report that is read."""
_METRICS = 64
_NAME_LENGTH = 128
_VALUE_LENGTH = 64
_GREATEST = 1e15
"""Beyond it nothing counts steps or tokens, and the whole numbers of a status would overflow."""
_LONGEST_SECONDS = 10 * 365 * 24 * 3600
_ALIASES = {"current_step": ProgressMetric.STEP}
"""Names of Hugging Face Transformers' KubeflowCallback for what our programs call otherwise."""

_StrictNumber = Annotated[float, Field(strict=True)]


class UnreadableReportError(ValueError):
    """A body is no progress report. The message names the field and what is wrong with it."""


class _Loose(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class _Metric(_Loose):
    name: str
    value: str | _StrictNumber


class _Status(_Loose):
    progress_percentage: _StrictNumber | None = None
    estimated_remaining_seconds: _StrictNumber | None = None
    metrics: list[_Metric] | None = None


class _Report(_Loose):
    trainer_status: _Status


def parse_report(body: bytes, *, now: datetime) -> TrainerStatus:
    """Return the status in the body of a POST, as of ``now``: clocks of other machines do not count here.

    Raises UnreadableReportError for a body that is no report.
    """
    try:
        told = _Report.model_validate_json(body).trainer_status
    except ValidationError as error:
        raise UnreadableReportError(_wrong(error)) from None
    return TrainerStatus(
        last_updated_time=now,
        progress_percentage=_bounded(told.progress_percentage, most=100),
        estimated_remaining_seconds=_bounded(told.estimated_remaining_seconds, most=_LONGEST_SECONDS),
        metrics=tuple(_metrics(told.metrics or ())),
    )


def _bounded(value: float | None, *, most: int) -> int | None:
    """Return a whole number from 0 to ``most``; None for what is no number of anything."""
    return None if value is None or not math.isfinite(value) else int(min(max(value, 0), most))


def _metrics(told: Iterable[_Metric]) -> Iterable[TrainerMetric]:
    """Return each name once, as far as name and value can be kept; the first metrics win where there are too many."""
    kept: dict[str, str] = {}
    for metric in told:
        name, value = _ALIASES.get(metric.name, metric.name), str(metric.value)
        if len(kept) < _METRICS and _is_short(name, _NAME_LENGTH) and _is_short(value, _VALUE_LENGTH):
            kept.setdefault(name, value)
    return (TrainerMetric(name=name, value=value) for name, value in kept.items() if _is_sane(value))


def _is_short(text: str, length: int) -> bool:
    return 0 < len(text) <= length and text.isprintable()


def _is_sane(value: str) -> bool:
    """Whether a value is text, or a number that a status can hold."""
    try:
        return abs(float(value)) <= _GREATEST
    except ValueError:
        return True


def _wrong(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
