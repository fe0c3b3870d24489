"""Says in plain words what a field needs and what it got."""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping

from finetuning_api.patterns import PATTERNS

_LONGEST_VALUE = 60

_WORDS = {pattern.regex: pattern.words for pattern in PATTERNS}

_NEEDS: Mapping[str, Callable[[Mapping[str, object]], str]] = {
    "string_type": lambda _: "needs text",
    "int_type": lambda _: "needs a whole number",
    "int_from_float": lambda _: "needs a whole number",
    "int_parsing_size": lambda _: "needs a smaller number",
    "float_type": lambda _: "needs a number",
    "finite_number": lambda _: "needs a finite number",
    "bool_type": lambda _: "needs true or false",
    "list_type": lambda _: "needs a list",
    "dict_type": lambda _: "needs a mapping of names to values",
    "model_type": lambda _: "needs a mapping of fields",
    "greater_than": lambda c: f"needs more than {_number(c['gt'])}",
    "greater_than_equal": lambda c: f"needs at least {_number(c['ge'])}",
    "less_than": lambda c: f"needs less than {_number(c['lt'])}",
    "less_than_equal": lambda c: f"needs at most {_number(c['le'])}",
    "string_too_short": lambda c: f"needs at least {_count(c['min_length'], 'character')}",
    "string_too_long": lambda c: f"needs at most {_count(c['max_length'], 'character')}",
    "too_short": lambda c: f"needs at least {_count(c['min_length'], 'item')}",
    "too_long": lambda c: f"needs at most {_count(c['max_length'], 'item')}",
    "string_pattern_mismatch": lambda c: f"needs {_WORDS[str(c['pattern'])]}",
    "enum": lambda c: f"needs one of {_plain(c['expected'])}",
    "literal_error": lambda c: f"needs {_plain(c['expected'])}",
    "datetime_from_date_parsing": lambda _: "needs a time such as 2030-01-31T12:00:00Z",
    "datetime_parsing": lambda _: "needs a time such as 2030-01-31T12:00:00Z",
    "datetime_type": lambda _: "needs a time such as 2030-01-31T12:00:00Z",
}
"""What a field needs, by pydantic's name of the mistake."""


def need(kind: str, context: Mapping[str, object]) -> str:
    """Return what a field needs, in words, for one of pydantic's kinds of mistakes and its context."""
    words = _NEEDS.get(kind)
    return words(context) if words else "needs another value"


def got(kind: str, context: Mapping[str, object], *, value: object) -> str:
    """Return what the field got instead: its value, or how long it is where that is the point."""
    if kind in {"string_too_short", "string_too_long"} and isinstance(value, str):
        return f"got {_count(len(value), 'character')}"
    if kind in {"too_short", "too_long"}:
        return f"got {context['actual_length']}"
    return f"got {shown(value)}"


def shown(value: object) -> str:
    """Return a value as a person would write it into a manifest, shortened where it is long."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {_count(len(value), 'item')}"
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)
    # One line, whatever it holds: a message must not break a terminal or a log.
    text = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def suggestion(word: object, known: Iterable[str]) -> str:
    """Return ``did you mean X?`` for the known word nearest to a misspelt one, or nothing."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean {by_lower[close[0]]}?" if close else ""


def _plain(expected: object) -> str:
    return str(expected).replace("'", "")


def _number(bound: object) -> str:
    return f"{bound:g}" if isinstance(bound, float) and abs(bound) < 1e6 else f"{bound}"  # noqa: PLR2004


def _count(number: object, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
