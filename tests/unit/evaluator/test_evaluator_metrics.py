"""What metrics count: matches, judgements, choices, likelihoods and outputs."""

import math
from collections import Counter

import pytest

from finetuning_api.metrics import Metric
from finetuning_evaluator.metrics import cola, matching, perplexity
from finetuning_evaluator.metrics.cola import Judgement, Sentence
from finetuning_evaluator.metrics.perplexity import RowLikelihood


def test_the_built_in_sentences_are_many_different_and_half_acceptable() -> None:
    found = cola.sentences()
    counts = Counter(sentence.acceptable for sentence in found)

    assert len(found) >= 200
    assert len({sentence.sentence for sentence in found}) == len(found)
    assert counts[True] == counts[False]
    assert len({sentence.phenomenon for sentence in found}) >= 10


def test_judgements_are_counted_in_the_confusion_matrix() -> None:
    judged = [Sentence(sentence=str(index), acceptable=index < 3, phenomenon="x") for index in range(5)]
    yes, no = Judgement(no=-2.0, yes=-1.0), Judgement(no=-1.0, yes=-2.0)

    observations = cola.observe(judged, [yes, yes, no, yes, no])

    assert cola.details(observations) == {
        "truePositive": 2.0,
        "falsePositive": 1.0,
        "falseNegative": 1.0,
        "trueNegative": 1.0,
        "accuracy": 0.6,
        "predictedPositiveRate": 0.6,
    }
    assert observations.value() == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert observations.row_values().tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [("a b", " a b\n", True), ("a b", "a  b", False), ("", "  ", True), ("A", "a", False)],
)
def test_white_space_at_the_ends_does_not_matter(reference: str, prediction: str, *, expected: bool) -> None:
    assert matching.is_match(reference, prediction) is expected


def test_each_likelihood_metric_reads_its_own_sums() -> None:
    rows = [
        RowLikelihood(text_nll=10, text_tokens=5, text_bytes=20, completion_nll=3, completion_tokens=2),
        RowLikelihood(text_nll=30, text_tokens=15, text_bytes=40, completion_nll=9, completion_tokens=4),
    ]

    values = {metric: perplexity.observe(metric, rows).value() for metric in perplexity.LIKELIHOOD_METRICS}

    assert values == pytest.approx(
        {
            Metric.PERPLEXITY: math.exp(40 / 20),
            Metric.COMPLETION_PERPLEXITY: math.exp(12 / 6),
            Metric.BITS_PER_BYTE: 40 / (60 * math.log(2)),
        }
    )
