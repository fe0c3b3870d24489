"""The metrics of the example score every text, whatever a model writes."""

import runpy
from pathlib import Path

import pytest

METRIC = runpy.run_path(str(Path(__file__).resolve().parents[3] / "examples" / "metric" / "metric.py"))


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ('{"product": "app", "severity": "high"}', 1.0),
        ('{"severity": "high", "product": "billing", "more": 1}', 0.5),
        ("[]", 0.0),
        ("", 0.0),
        ('{"product": ', 0.0),
    ],
)
def test_fields_that_are_right_count(text: str, share: float) -> None:
    assert METRIC["score"]([text], ['{"product": "app", "severity": "high"}'], [{}]) == [share]


def test_lengths_are_those_of_the_texts() -> None:
    assert METRIC["characters"](["", "four"], ["", ""], [{}, {}]) == [0.0, 4.0]
