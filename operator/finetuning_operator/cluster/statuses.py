"""When a changed status is written, and as which patch: writes are dear, what somebody awaits must not come late."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from finetuning_api.base import ConditionType

Wire = Mapping[str, Any]

PROGRESS_SHARE = 1 / 16
"""Part of the write rate that mere progress may use."""
_PROGRESS_SECONDS = 15.0
"""Progress of less than one percent is written this often."""
_AWAITED = frozenset({ConditionType.COMPLETE, ConditionType.FAILED, ConditionType.READY})
"""Conditions that other objects and people wait for."""
_MOVING = frozenset({"percent", "progress"})
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


class Urgency(Enum):
    """How soon a change of a status must be seen."""

    NONE = "none"
    PROGRESS = "progress"
    ORDINARY = "ordinary"
    AT_ONCE = "at once"


def urgency(old: Wire, new: Wire) -> Urgency:
    """Return how soon a change from one status to another must be seen."""
    if old == new:
        return Urgency.NONE
    if _held(new) - _held(old) or _adapter(old) != _adapter(new) or old.get("idle") != new.get("idle"):
        return Urgency.AT_ONCE
    return Urgency.PROGRESS if _without_progress(old) == _without_progress(new) else Urgency.ORDINARY


@dataclass(slots=True)
class StatusClock:
    """Decides when the status of one object is written."""

    changed_at: float | None = None
    """When the first change was seen that is not written yet."""
    written_at: float | None = None
    turn: float | None = None
    """When mere progress may be written, by the budget that all objects share."""

    def wait(self, old: Wire, new: Wire, *, now: float, delay: float) -> float | None:
        """Return the seconds until a change is to be written, None where there is none."""
        kind = urgency(old, new)
        if kind is Urgency.NONE:
            self.changed_at = self.turn = None
            return None
        if self.changed_at is None:
            self.changed_at = now
        if kind is Urgency.AT_ONCE:
            return 0.0
        # Whoever has a turn for mere progress was not looked at before it, so the change may be older than it seems.
        moves = kind is Urgency.PROGRESS
        due = self.turn if moves and self.turn is not None else self.changed_at + delay
        if moves and _percent(old) == _percent(new):
            due = max(due, (self.written_at or self.changed_at) + _PROGRESS_SECONDS)
        return max(0.0, due - now)

    def wrote(self, now: float) -> None:
        """Note that the status was written."""
        self.changed_at = self.turn = None
        self.written_at = now


@dataclass(slots=True)
class ProgressBudget:
    """Spreads the writes of mere progress of all objects evenly over time."""

    per_second: float
    _next: float = 0.0

    def wait(self, held: StatusClock, now: float) -> float:
        """Return the seconds until an object's turn, 0 when it is there.

        Each object is given a turn of its own, once for a write: if all came back for the next free moment, a thousand
        reporting jobs would be looked at thousands of times a second.
        """
        if held.turn is None:
            held.turn = max(now, self._next)
            self._next = held.turn + 1.0 / self.per_second
        return max(0.0, held.turn - now)


def _held(status: Wire) -> frozenset[str]:
    conditions = status.get("conditions") or ()
    return frozenset(each["type"] for each in conditions if each["status"] == "True") & _AWAITED


def _adapter(status: Wire) -> object:
    """Return what a status tells of an adapter: whoever is made next reads its digest from there."""
    return (status.get("artifacts") or {}).get("adapter")


def _percent(status: Wire) -> object:
    return [stage.get("percent") for stage in status.get("stages") or ()], (status.get("progress") or {}).get("percent")


def _without_progress(status: Wire) -> dict[str, Any]:
    rest = {name: value for name, value in status.items() if name not in _MOVING}
    for part in ("stages", "conditions"):
        rest[part] = [_still(each) for each in status.get(part) or ()]
    return rest


def _still(part: Wire) -> dict[str, Any]:
    """Return a stage or condition without what moves; messages tell of percentages and bytes, too."""
    rest = {name: value for name, value in part.items() if name not in _MOVING}
    return rest | {"message": _NUMBER.sub("#", part.get("message", ""))}
