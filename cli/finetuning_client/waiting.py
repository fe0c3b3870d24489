"""What can be waited for, and whether it has come, may come, or never will. Pure: works on objects as they are sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from finetuning_api.base import ConditionStatus, ConditionType
from finetuning_client.errors import ClusterError

_DONE: Mapping[str, ConditionType] = {
    "FineTuningJob": ConditionType.COMPLETE,
    "EvaluationJob": ConditionType.COMPLETE,
    "Relocation": ConditionType.READY,
    "InferenceServer": ConditionType.READY,
}
"""The condition that says that an object is what it should be, by kind."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A condition and the status that it is to have; without a condition, whatever says that the object is done."""

    condition: ConditionType | None = None
    status: str = ConditionStatus.TRUE.value

    @classmethod
    def parse(cls, text: str) -> "Goal":
        """Read ``complete``, ``failed`` or ``condition=NAME[=STATUS]``. Raises ClusterError naming what there is."""
        word, _, rest = text.partition("=")
        if word.lower() == "complete" and not rest:
            return cls()
        name, _, status = rest.partition("=") if word.lower() == "condition" else (word, "", rest)
        known = {each.value.lower(): each for each in ConditionType}
        statuses = {each.value.lower(): each.value for each in ConditionStatus}
        if name.lower() not in known or (status or "true").lower() not in statuses:
            hint = f"Write complete, failed or condition=NAME[=STATUS] with NAME one of {', '.join(ConditionType)}."
            raise ClusterError(f"{text!r} cannot be waited for", hint)
        return cls(known[name.lower()], statuses[(status or "true").lower()])

    def type_for(self, kind: str) -> ConditionType:
        """Return the condition that is looked at, for an object of a kind."""
        return self.condition or _DONE[kind]

    def text_for(self, kind: str) -> str:
        """Return the goal as a person would say it."""
        return f"{self.type_for(kind).value}={self.status}"


class Standing(Enum):
    """Where an object stands in relation to a goal."""

    REACHED = "reached"
    OPEN = "open"
    NEVER = "never"


def condition_of(item: Mapping[str, Any], name: ConditionType) -> Mapping[str, Any]:
    """Return one condition of an object; an empty one where it is not set."""
    conditions = (item.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == name.value), {})


def has_ended(item: Mapping[str, Any]) -> bool:
    """Return whether an object is final: nothing but its exports and tracking will change any more."""
    return any(
        condition_of(item, name).get("status") == ConditionStatus.TRUE.value
        for name in (ConditionType.COMPLETE, ConditionType.FAILED)
    )


def standing(item: Mapping[str, Any], goal: Goal) -> Standing:
    """Return whether a goal is reached, still open, or out of reach because the object ended otherwise."""
    found = condition_of(item, goal.type_for(str(item.get("kind", ""))))
    if found.get("status") == goal.status:
        return Standing.REACHED
    return Standing.NEVER if has_ended(item) and not _goes_on(item, goal) else Standing.OPEN


def _goes_on(item: Mapping[str, Any], goal: Goal) -> bool:
    """Return whether a goal is about exports or tracking under way: they begin where everything else has ended."""
    if goal.condition is ConditionType.TRACKED and item["spec"].get("tracking"):
        return bool((item["status"].get("tracking") or {}).get("state", "Pending") == "Pending")
    if goal.condition is not ConditionType.EXPORTED or not item["spec"].get("exports"):
        return False
    told = {record["name"]: record.get("state", "") for record in item["status"].get("exports", [])}
    return any(told.get(each["name"], "Pending") == "Pending" for each in item["spec"]["exports"])


def outcome_text(item: Mapping[str, Any], goal: Goal) -> str:
    """Return why a goal is out of reach: the failure, or what the condition says instead."""
    failed = condition_of(item, ConditionType.FAILED)
    if failed.get("status") == ConditionStatus.TRUE.value:
        return f"Failed ({failed.get('reason', '')}): {failed.get('message', '')}"
    name = goal.type_for(str(item.get("kind", "")))
    found = condition_of(item, name)
    if not found:
        return f"it ended without the condition {name.value}"
    return f"{name.value} is {found.get('status')} ({found.get('reason', '')}): {found.get('message', '')}"
