"""Conditions as values: found, set and compared without a clock of their own."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from finetuning_api.base import Condition, ConditionStatus, ConditionType
from finetuning_api.reasons import LIFE_CYCLE_REASONS, Reason
from finetuning_operator.reconcile.plan import Event

MESSAGE_LENGTH = 4096
"""Characters that a message of a condition or a stage may have."""


def shorten(text: str, length: int = MESSAGE_LENGTH) -> str:
    """Return a text that fits into a field of the API."""
    return text if len(text) <= length else text[: length - 4] + " ..."


def short_list(texts: Iterable[str]) -> list[str]:
    """Return distinct texts as a list of warnings, no longer than the API allows."""
    return [shorten(text, 1024) for text in dict.fromkeys(texts)][:32]


def find_condition(conditions: Sequence[Condition], condition_type: ConditionType) -> Condition | None:
    """Return the condition of a type, None where it was never set."""
    return next((condition for condition in conditions if condition.type is condition_type), None)


def is_true(conditions: Sequence[Condition], condition_type: ConditionType) -> bool:
    """Return whether a condition is set and holds."""
    condition = find_condition(conditions, condition_type)
    return condition is not None and condition.status is ConditionStatus.TRUE


def is_terminal(conditions: Sequence[Condition]) -> bool:
    """Return whether an object has ended for good: nothing runs for it any more."""
    return is_true(conditions, ConditionType.COMPLETE) or is_true(conditions, ConditionType.FAILED)


def set_condition(conditions: Sequence[Condition], condition: Condition) -> tuple[Condition, ...]:
    """Return the conditions with one of them set; its transition time stays when its status stays."""
    old = find_condition(conditions, condition.type)
    if old is None:
        return (*conditions, condition)
    if old.status is condition.status:
        condition = condition.model_copy(update={"last_transition_time": old.last_transition_time})
    return tuple(condition if other.type is condition.type else other for other in conditions)


def condition(
    condition_type: ConditionType,
    *,
    holds: bool,
    reason: Reason,
    message: str = "",
    generation: int,
    now: datetime,
) -> Condition:
    """Return a condition that was observed now."""
    return Condition(
        type=condition_type,
        status=ConditionStatus.TRUE if holds else ConditionStatus.FALSE,
        reason=reason,
        message=shorten(message),
        last_transition_time=now,
        observed_generation=generation,
    )


def events_between(before: Sequence[Condition], after: Sequence[Condition]) -> tuple[Event, ...]:
    """Return one event for each condition whose status or reason changed."""
    return tuple(
        Event(new.reason, new.message or f"{new.type} is {new.status}", warning=new.reason not in LIFE_CYCLE_REASONS)
        for new in after
        if (old := find_condition(before, new.type)) is None or (old.status, old.reason) != (new.status, new.reason)
    )
