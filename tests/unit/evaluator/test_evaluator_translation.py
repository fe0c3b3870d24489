"""BLEU and chrF equal sacrebleu, of a corpus, of its resamples, and of single rows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import corpus_bleu, corpus_chrf, sentence_bleu, sentence_chrf

from finetuning_api.metrics import Metric
from finetuning_evaluator.metrics.translation import TRANSLATION_METRICS, observe
from finetuning_evaluator.statistics import bootstrap

REPOSITORY = Path(__file__).resolve().parents[3]
WORDS = st.sampled_from(["the", "cat", "sat", "on", "mat", ".", "Tom's", "É", "漢字", "1,000", "x", ""])
TEXTS = st.lists(WORDS, max_size=9).map(" ".join)


def of_corpus(metric: Metric, references: list[str], predictions: list[str]) -> float:
    score = corpus_bleu if metric is Metric.BLEU else corpus_chrf
    return float(score(predictions, [references]).score)


def of_sentence(metric: Metric) -> Callable[[str, list[str]], float]:
    score = sentence_bleu if metric is Metric.BLEU else sentence_chrf
    return lambda prediction, references: float(score(prediction, references).score)


def real_pairs() -> tuple[list[str], list[str]]:
    """Return lines of real text, and the same with words lost, doubled and moved; some rows are empty."""
    text = "\n".join((REPOSITORY / name).read_text(encoding="utf-8") for name in ("LICENSE", "docs/evaluation.md"))
    references = [line.strip() for line in text.splitlines() if line.strip()]
    generator = np.random.default_rng(0)
    predictions = []
    for line in references:
        words = line.split()
        kept = [word for word in words if generator.random() > 0.2] + words[: int(generator.integers(3))]
        generator.shuffle(kept[2:5])
        predictions.append(" ".join(kept if generator.random() > 0.05 else []))
    return references, predictions


@pytest.mark.parametrize("metric", TRANSLATION_METRICS)
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_any_corpus_scores_as_sacrebleu_scores_it(metric: Metric, pairs: list[tuple[str, str]]) -> None:
    references, predictions = [list(texts) for texts in zip(*pairs, strict=True)]

    found = observe(metric, references, predictions).value()

    assert found == pytest.approx(of_corpus(metric, references, predictions), abs=1e-9)


@pytest.mark.parametrize("metric", TRANSLATION_METRICS)
def test_real_text_scores_as_sacrebleu_scores_it(metric: Metric) -> None:
    references, predictions = real_pairs()

    found = observe(metric, references, predictions)

    assert 10 < found.value() < 99
    assert found.value() == pytest.approx(of_corpus(metric, references, predictions), abs=1e-9)


@pytest.mark.parametrize("metric", TRANSLATION_METRICS)
def test_each_row_scores_as_a_sentence_of_sacrebleu(metric: Metric) -> None:
    references, predictions = real_pairs()
    score = of_sentence(metric)

    found = observe(metric, references, predictions).row_values()

    expected = [score(prediction, [reference]) for reference, prediction in zip(references, predictions, strict=True)]
    assert found == pytest.approx(np.array(expected), abs=1e-9)


@pytest.mark.parametrize("metric", TRANSLATION_METRICS)
def test_each_resample_scores_as_the_corpus_of_its_rows(metric: Metric) -> None:
    references, predictions = (texts[:25] for texts in real_pairs())
    (draws,) = bootstrap([observe(metric, references, predictions)], samples=10, seed=4)

    places = np.random.default_rng(4).integers(0, 25, size=(10, 25))
    expected = [
        of_corpus(metric, [references[place] for place in row], [predictions[place] for place in row]) for row in places
    ]
    assert draws == pytest.approx(np.array(expected), abs=1e-9)
