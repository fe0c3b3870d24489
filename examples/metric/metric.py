"""Metrics of one's own: each function scores every completion with one number, and more is better."""

import json
import re
from collections.abc import Mapping, Sequence


def score(predictions: Sequence[str], references: Sequence[str], _rows: Sequence[Mapping[str, object]]) -> list[float]:
    """Return the share of fields that are right: where json-match gives 0, three of four fields are 0.75."""
    return [_share(_fields(text), _fields(expected)) for text, expected in zip(predictions, references, strict=True)]


def easy_to_read(
    predictions: Sequence[str], _references: Sequence[str], _rows: Sequence[Mapping[str, object]]
) -> list[float]:
    """Return the Automated Readability Index of each completion with a minus sign: years of school that it takes.

    4.71 characters per word + 0.5 words per sentence - 21.43 (E. A. Smith, R. J. Senter, 1967). A text without words
    counts as the hardest of its kind.
    """
    return [-_grade(text) for text in predictions]


_NOTHING = 20.0


def _grade(text: str) -> float:
    words: list[str] = re.findall(r"\w+(?:['-]\w+)*", text)
    if not words:
        return _NOTHING
    sentences = max(1, len(re.findall(r"[.!?]+(?:\s|$)", text)))
    characters = sum(letter.isalnum() for word in words for letter in word)
    return 4.71 * characters / len(words) + 0.5 * len(words) / sentences - 21.43


def _fields(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _share(found: Mapping[str, object], expected: Mapping[str, object]) -> float:
    right = sum(name in found and found[name] == value for name, value in expected.items())
    return right / len(expected) if expected else 0.0
