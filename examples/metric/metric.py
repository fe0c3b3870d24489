"""Metrics of one's own: each function scores every completion with one number."""

import json
from collections.abc import Mapping, Sequence


def score(predictions: Sequence[str], references: Sequence[str], _rows: Sequence[Mapping[str, object]]) -> list[float]:
    """Return the share of fields that are right: where json-match gives 0, three of four fields are 0.75."""
    return [_share(_fields(text), _fields(expected)) for text, expected in zip(predictions, references, strict=True)]


def characters(
    predictions: Sequence[str], _references: Sequence[str], _rows: Sequence[Mapping[str, object]]
) -> list[float]:
    """Return how long each completion is: a model that goes on and on is slow and dear."""
    return [float(len(text)) for text in predictions]


def _fields(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _share(found: Mapping[str, object], expected: Mapping[str, object]) -> float:
    right = sum(name in found and found[name] == value for name, value in expected.items())
    return right / len(expected) if expected else 0.0
