"""A fake: the wall clock of a Python process is wrong by TEST_CLOCK_SKEW seconds; all other clocks are right.

Python loads this by itself where the folder is on PYTHONPATH. It shifts what Python code asks, not what C code asks.
"""

import datetime as dt
import os
import time
from typing import Self

_SKEW = float(os.environ.get("TEST_CLOCK_SKEW", "0"))
_real_time = time.time
_RealDatetime = dt.datetime


class _Meta(type):
    """Lets true moments pass as moments of the wrong clock."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _RealDatetime)


class _Datetime(_RealDatetime, metaclass=_Meta):
    """Moments as ever, but for the present one."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        return super().now(tz) + dt.timedelta(seconds=_SKEW)

    @classmethod
    def utcnow(cls) -> Self:
        return super().utcnow() + dt.timedelta(seconds=_SKEW)


def _shifted_time() -> float:
    return _real_time() + _SKEW


time.time = _shifted_time
dt.datetime = _Datetime  # type: ignore[misc]
