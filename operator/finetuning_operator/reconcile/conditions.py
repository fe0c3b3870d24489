"""Conditions as values: found, set and compared without a clock of their own."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from finetuning_api.base import Condition, ConditionStatus, ConditionType
from finetuning_api.reasons import LIFE_CYCLE_REASONS, Reason
from finetuning_operator.reconcile.plan import Event

MESSAGE_LENGTH = 4096
"""Characters that a message of a condition or a stage may have."""
_EVENT_LENGTH = 1024
_LOG_MARK = "\nlast log lines:\n"
_PREFIX_LENGTH = 256
"""Room for the names of stages and roles that are put in front of a message on its way up."""
_ENDS = frozenset({ConditionType.COMPLETE, ConditionType.READY})


def shorten(text: str, length: int = MESSAGE_LENGTH) -> str:
    """Return a text that fits into a field of the API."""
    return text if len(text) <= length else text[: length - 4] + " ..."


def with_log(message: str, lines: Sequence[str]) -> str:
    """Return a message followed by the last log lines, of which the latest are kept where not all have room."""
    if not lines:
        return message
    room = MESSAGE_LENGTH - _PREFIX_LENGTH - len(message) - len(_LOG_MARK)
    tail = "\n".join(lines)
    if room <= 0:
        return message
    return message + _LOG_MARK + (tail if len(tail) <= room else tail[-room:].partition("\n")[2] or tail[-room:])


def headline(message: str) -> str:
    """Return a message without the log lines that follow it."""
    return message.partition(_LOG_MARK)[0]


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
    """Return what is worth an event: every new trouble and every good end, each reason once.

    Ordinary transitions stand in the status; as events they would be a write each. Where an object failed, the event
    is about that, not about the stage that failed first. A gate that is passed is told with the end.
    """
    changed = [new for new in after if _is_news(find_condition(before, new.type), new)]
    ordered = sorted(changed, key=lambda each: each.type is not ConditionType.FAILED)
    by_reason: dict[Reason, Condition] = {}
    for each in ordered:
        by_reason.setdefault(each.reason, each)
    return tuple(
        Event(
            reason,
            shorten(_told(each, after), _EVENT_LENGTH),
            warning=reason not in LIFE_CYCLE_REASONS,
        )
        for reason, each in by_reason.items()
    )


def _told(condition: Condition, after: Sequence[Condition]) -> str:
    """Return what an event says of a condition; of the end also by what the gate was passed."""
    told = headline(condition.message) or _plainly(condition)
    gate = find_condition(after, ConditionType.GATE_PASSED) if condition.type is ConditionType.COMPLETE else None
    if gate is None or gate.status is not ConditionStatus.TRUE:
        return told
    return f"{told} ({gate.type}: {headline(gate.message) or _plainly(gate)})"


def _plainly(condition: Condition) -> str:
    """Return what a condition without a message says of its object."""
    holds = condition.status is ConditionStatus.TRUE
    return f"it is {condition.type.value.lower()}" if holds else f"{condition.type} is {condition.status}"


def _is_news(old: Condition | None, new: Condition) -> bool:
    if old is not None and (old.status, old.reason) == (new.status, new.reason):
        return False
    if new.reason not in LIFE_CYCLE_REASONS:
        return True
    return new.type in _ENDS and new.status is ConditionStatus.TRUE
