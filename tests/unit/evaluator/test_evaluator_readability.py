"""Readability, against examples that others published with their numbers."""

import math

import numpy as np
import pytest

from finetuning_api.metrics import Metric
from finetuning_evaluator.metrics.readability import READABILITY_METRICS, count, observe, syllables

CAT = "The cat sat on the mat."
POINT = "This sentence, taken as a reading passage unto itself, is being used to prove a point."
PLATYPUS = "The Australian platypus is seemingly a hybrid of a mammal and reptilian creature."
# Counts and values as the article "Flesch-Kincaid readability tests" of Wikipedia has them.
PUBLISHED = [(CAT, (6, 1, 6), 116.1, -1.45), (POINT, (16, 1, 23), 69.0, 7.6), (PLATYPUS, (13, 1, 24), 37.5, 11.3)]
# As dictionaries divide them.
DIVIDED = """
the a i cat house times walked called loved stopped eyes makes through strength rhythms
ta-ble lit-tle want-ed need-ed box-es church-es pag-es hap-py go-ing be-ing peo-ple mid-dle hand-led i-deas
an-i-mal dif-fer-ent im-por-tant va-ri-ous ra-di-o ac-tu-al sit-u-a-ted crit-i-cis-m
in-for-ma-tion u-ni-ver-si-ty ne-ces-sa-ry con-sid-er-a-tion re-spon-si-bil-i-ty
"""


@pytest.mark.parametrize(("text", "counts", "ease", "grade"), PUBLISHED)
def test_published_examples_have_their_published_values(
    text: str, counts: tuple[int, int, int], ease: float, grade: float
) -> None:
    assert count(text) == counts
    assert [observe(metric, [text]).value() for metric in READABILITY_METRICS] == [
        pytest.approx(ease, abs=0.06),
        pytest.approx(grade, abs=0.06),
    ]


def test_syllables_are_those_of_a_dictionary() -> None:
    wrong = {word: syllables(word.replace("-", "")) for word in DIVIDED.split() if word != "rhythms"}

    assert {word: found for word, found in wrong.items() if found != word.count("-") + 1} == {}


def test_the_value_is_that_of_all_texts_in_a_row_and_texts_without_words_add_nothing() -> None:
    texts = [CAT, "", POINT, " \n", "42 %", PLATYPUS]

    found = observe(Metric.READING_EASE, texts)

    assert found.value() == pytest.approx(observe(Metric.READING_EASE, [" ".join(texts)]).value())
    rows = found.row_values()
    assert [math.isnan(value) for value in rows] == [False, True, False, True, True, False]
    assert rows[0] == pytest.approx(116.145)
    assert np.isnan(observe(Metric.READING_GRADE, ["", "?"]).value())


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ('He said: "Go!" Then he went.', (6, 2, 6)),
        ("a list\nof two lines", (5, 2, 5)),
        ("Version 1.5 costs 3.20 dollars", (3, 1, 5)),
        ("don't wait... no", (3, 2, 3)),
        ("\u00dcber-owners\u2019 rights", (3, 1, 5)),
    ],
)
def test_words_and_sentences(text: str, counts: tuple[int, int, int]) -> None:
    assert count(text) == counts
