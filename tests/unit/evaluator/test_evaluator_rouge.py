"""ROUGE equals the rouge_score package text by text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from finetuning_api.metrics import Metric
from finetuning_evaluator.metrics.rouge import (
    ROUGE_METRICS,
    RougeScores,
    RougeTokenizer,
    choose_tokenizer,
    observe,
    score_text,
)

WORDS = st.sampled_from(["a", "b", "c", "the cat", "sat", "mat", "on", "\n", "\n\n", "x1", "É", "_", ".", "Tom's", ""])
TEXTS = st.lists(WORDS, max_size=24).map(" ".join)


def independent(reference: str, prediction: str) -> dict[Metric, float]:
    scorer = RougeScorer([metric.value for metric in ROUGE_METRICS], use_stemmer=False)
    scores = scorer.score(reference, prediction)
    return {metric: scores[metric.value].fmeasure for metric in ROUGE_METRICS}


def ours(reference: str, prediction: str) -> dict[Metric, float]:
    scores = score_text(reference, prediction, RougeTokenizer.ASCII)
    return {metric: scores.of(metric) for metric in ROUGE_METRICS}


@given(reference=TEXTS, prediction=TEXTS)
def test_every_text_scores_as_rouge_score_scores_it(reference: str, prediction: str) -> None:
    assert ours(reference, prediction) == pytest.approx(independent(reference, prediction), abs=1e-12)


@pytest.mark.parametrize(
    ("reference", "prediction"),
    [
        ("The cat sat on the mat.\nIt was warm.", "It was warm.\nA cat sat on a mat."),
        ('{"product": "billing", "severity": "high"}', '{"product": "app", "severity": "high"}'),
        ("one two three", ""),
        ("", "one two three"),
        ("", ""),
        ("a b c d e a b c d", "a c e b d\na b d c"),
    ],
)
def test_chosen_texts_score_as_rouge_score_scores_them(reference: str, prediction: str) -> None:
    assert ours(reference, prediction) == pytest.approx(independent(reference, prediction), abs=1e-12)


def test_equal_texts_of_another_script_score_one_with_unicode_words() -> None:
    text = "यह एक परीक्षण है"

    assert score_text(text, text, RougeTokenizer.ASCII).rouge1 == 0.0
    assert score_text(text, text, RougeTokenizer.UNICODE) == RougeScores(1.0, 1.0, 1.0, 1.0)


def test_combining_marks_stay_in_their_word() -> None:
    assert RougeTokenizer.UNICODE.words("यह परीक्षण, ÉCOLE_x!") == ["यह", "परीक्षण", "école", "x"]


def test_text_without_spaces_is_cut_into_characters() -> None:
    assert RougeTokenizer.UNICODE.words("日本語 abc") == ["日", "本", "語", "abc"]


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["plain English", "more of it"], RougeTokenizer.ASCII),
        (["mostly English with one é in a long enough sentence"], RougeTokenizer.ASCII),
        (["Grüße aus Köln", "schöne Straße"], RougeTokenizer.UNICODE),
        (["123", ""], RougeTokenizer.ASCII),
    ],
)
def test_unicode_words_are_chosen_when_ascii_would_lose_letters(
    references: list[str], expected: RougeTokenizer
) -> None:
    assert choose_tokenizer(references) is expected


def test_the_value_is_the_exact_mean_of_rows() -> None:
    scores = [RougeScores(rouge1=value, rouge2=0, rouge_l=0, rouge_lsum=0) for value in (0.25, 0.5, 0.9)]

    assert observe(Metric.ROUGE1, scores).value() == pytest.approx(1.65 / 3)
