"""Spans of time as kubectl reads them."""

import math
import re

from finetuning_api.reasons import Reason
from finetuning_workload.errors import UserError

_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "d": 86_400.0}
_SPAN = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+|\d+(?:\.\d+)?")
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms]?)")


def seconds_of(text: str | None) -> float:
    """Return the seconds of ``90``, ``90s``, ``10m`` or ``1h30m``; None is for ever. Raises UserError."""
    if text is None:
        return math.inf
    if not _SPAN.fullmatch(text.strip()):
        raise UserError(Reason.INVALID_SPEC, f"{text!r} is no span of time", "Write it like 90s, 10m or 1h30m.")
    return sum(float(number) * _SECONDS[unit or "s"] for number, unit in _PART.findall(text))
