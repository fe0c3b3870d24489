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


def test_simple_words_read_easier_than_long_ones_and_nothing_reads_hardest() -> None:
    plain = "We have sent it to you. It will be there on Monday."
    heavy = "Notwithstanding aforementioned considerations, organisational responsibilities necessitate reconsideration"

    easy, hard, nothing = METRIC["easy_to_read"]([plain, heavy, " \n"], ["", "", ""], [{}, {}, {}])

    # 38 characters, 12 words, 2 sentences.
    assert easy == pytest.approx(-(4.71 * 38 / 12 + 0.5 * 12 / 2 - 21.43))
    assert easy > hard
    assert nothing == -20.0
