"""Held-out rows that training has seen are found, word by word or nearly, and templates do not pass for them."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from finetuning_evaluator.overlap import NEAR, WORDS, Overlap, measure
from finetuning_workload.data import RenderedRow, Segment

REPOSITORY = Path(__file__).resolve().parents[3]


def row(row_id: str, prompt: str, completion: str = "yes") -> RenderedRow:
    return RenderedRow(row_id, (Segment(prompt, supervised=False), Segment(completion, supervised=True)))


def sentence(number: int) -> str:
    return " ".join(f"word{number}x{place}" for place in range(30))


def counts(found: Overlap) -> tuple[int, int]:
    return found.exact, found.near


def test_the_same_words_are_an_exact_duplicate_whatever_case_and_punctuation() -> None:
    training = [row("t1", "Where is my parcel?", "shipping"), row("t2", "Another one altogether", "other")]

    found = measure([row("h1", "where is MY parcel  ", "Shipping."), row("h2", "Nothing like it", "other")], training)

    assert counts(found) == (1, 0)
    assert found.share == 0.5
    assert [(pair.row_id, pair.training_row_id) for pair in found.examples] == [("h1", "t1")]


def test_one_word_changed_in_thirty_is_nearly_the_same_and_five_are_not() -> None:
    training = [row("t1", sentence(1)), row("t2", sentence(2))]
    once = sentence(2).replace("word2x9", "changed")
    often = sentence(2)
    for place in (3, 9, 15, 21, 27):
        often = often.replace(f"word2x{place} ", "changed ")

    assert counts(measure([row("h", once)], training)) == (0, 1)
    assert counts(measure([row("h", often)], training)) == (0, 0)


def test_a_template_that_all_rows_share_is_no_overlap() -> None:
    template = "Read the message below and answer with the product that it is about and how urgent it is:"
    training = [row(str(number), f"{template} message{number}") for number in range(40)]

    assert counts(measure([row("h", f"{template} message99")], training)) == (0, 0)
    assert counts(measure([row("h", f"{template} message7")], training)) == (1, 0)


def test_what_is_nearly_the_same_is_found_within_a_template() -> None:
    template = "Read the message below and answer with the product that it is about and how urgent it is:"
    training = [row(str(number), f"{template} {sentence(number)}") for number in range(40)]
    changed = sentence(7).replace("word7x9", "changed")

    assert counts(measure([row("h", f"{template} {changed}")], training)) == (0, 1)


def test_rows_of_fewer_words_than_a_shingle_and_rows_without_words_are_compared_whole() -> None:
    training = [row("t1", "yes", ""), row("t2", "🙂", "")]

    found = measure([row("h1", "yes", ""), row("h2", "no", ""), row("h3", "🙂", ""), row("h4", "🙁", "")], training)

    assert [pair.row_id for pair in found.examples] == ["h1", "h3"]


def test_text_without_spaces_is_compared_character_by_character() -> None:
    text = "请帮我查询一下我的订单什么时候可以送到我的家里谢谢你们的帮助"

    assert counts(measure([row("h", text.replace("订单", "包裹"), "")], [row("t", text, "")])) == (0, 0)
    assert counts(measure([row("h", f"你好{text}", "")], [row("t", text, "")])) == (0, 1)


def paragraphs(*names: str) -> list[str]:
    text = "\n\n".join((REPOSITORY / name).read_text(encoding="utf-8") for name in names)
    return [part for part in re.split(r"\n\s*\n", text) if len(part.split()) >= 20]


def test_containment_in_real_text_is_that_of_a_count_matrix_of_sklearn() -> None:
    whole = paragraphs("LICENSE", "docs/evaluation.md", "docs/data.md", "CONTRIBUTING.md")
    training = whole[::2]
    # Every held-out text is a paragraph that is not there, or one that is there with a stretch of another in it.
    held_out = [
        text if place % 3 else f"{' '.join(training[place % len(training)].split()[: 40 + place])} {text[:80]}"
        for place, text in enumerate(whole[1::2])
    ]
    vectorizer = CountVectorizer(ngram_range=(WORDS, WORDS), token_pattern=r"[^\W]+", binary=True)
    matrix = vectorizer.fit_transform(training + held_out).toarray()
    there, asked = matrix[: len(training)], matrix[len(training) :]
    asked = asked * (there.sum(axis=0) <= 10)
    containment = (asked @ there.T) / np.maximum(asked.sum(axis=1, keepdims=True), 1)
    expected = int((containment.max(axis=1) >= NEAR).sum())

    found = measure(
        [row(str(place), text, "") for place, text in enumerate(held_out)],
        [row(str(place), text, "") for place, text in enumerate(training)],
    )

    assert expected > 0
    assert found.exact + found.near == expected
    for pair in found.examples:
        assert pair.containment == pytest.approx(containment[int(pair.row_id)].max())
