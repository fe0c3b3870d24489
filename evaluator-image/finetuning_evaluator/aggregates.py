"""How sums over rows become the value of a metric.

Every metric here is a function of sums: a mean, a ratio, a confusion matrix, counts of n-grams. That is what makes one
matrix of resampling weights serve all of them.
"""

import math
from collections.abc import Callable, Mapping
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BLEU_ORDER = 4
CHRF_ORDER, CHRF_BETA = 6, 2


class Statistic(StrEnum):
    """How the sums over rows become the value of a metric, and which components they sum."""

    MEAN = "mean"
    """Components: value, 1."""
    PROPORTION = "proportion"
    """Components: 0 or 1, 1."""
    PERPLEXITY = "perplexity"
    """Components: NLL in nats, tokens. Value: exp(sum NLL / sum tokens)."""
    BITS_PER_BYTE = "bits-per-byte"
    """Components: NLL in nats, UTF-8 bytes. Value: sum NLL / (ln 2 * sum bytes)."""
    MATTHEWS = "matthews"
    """Components: true positive, false positive, false negative, true negative. 0 when a margin is empty."""
    MACRO_F1 = "macro-f1"
    """Components, each for every class: is the right one, is the chosen one, is both. Value: 0 to 1."""
    BLEU = "bleu"
    """Components: words of the output, of the reference; matching n-grams, n-grams of the output, n from 1 to 4."""
    READING_EASE = "reading-ease"
    """Components: words, sentences, syllables."""
    READING_GRADE = "reading-grade"
    """Components: the same."""
    CHRF = "chrf"
    """Components: for n from 1 to 6, character n-grams of the output, of the reference, of both."""


def aggregate(statistic: Statistic, sums: FloatArray) -> FloatArray:
    """Return the metric for sums of shape [..., components]; NaN where nothing was summed."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return _AGGREGATES[statistic](sums)


def row_values(statistic: Statistic, components: FloatArray) -> FloatArray:
    """Return a value per row, [rows]: the metric itself, or 1 for a right judgement and 0 for a wrong one."""
    if statistic is Statistic.MATTHEWS:
        return np.asarray(components[:, 0] + components[:, 3], dtype=np.float64)
    if statistic is Statistic.MACRO_F1:
        return np.asarray(components.reshape(len(components), 3, -1)[:, 2].sum(axis=1), dtype=np.float64)
    if statistic is Statistic.BLEU:
        with np.errstate(divide="ignore", invalid="ignore"):
            return _bleu(components, effective_order=True)
    return aggregate(statistic, components)


def _ratio(sums: FloatArray) -> FloatArray:
    return np.asarray(sums[..., 0] / sums[..., 1], dtype=np.float64)


def _matthews(sums: FloatArray) -> FloatArray:
    true_positive, false_positive, false_negative, true_negative = np.moveaxis(sums, -1, 0)
    numerator = true_positive * true_negative - false_positive * false_negative
    margins = (
        (true_positive + false_positive)
        * (true_positive + false_negative)
        * (true_negative + false_positive)
        * (true_negative + false_negative)
    )
    return np.where(margins > 0, numerator / np.sqrt(np.where(margins > 0, margins, 1.0)), 0.0)


def _macro_f1(sums: FloatArray) -> FloatArray:
    """Return the mean over classes of F1 = 2 hits / (right + chosen); a class that nobody named does not count."""
    right, chosen, both = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    named = right + chosen
    scores = np.where(named > 0, 2 * both / np.where(named > 0, named, 1.0), 0.0)
    return np.asarray(scores.sum(axis=-1) / (named > 0).sum(axis=-1), dtype=np.float64)


def _bleu(sums: FloatArray, *, effective_order: bool = False) -> FloatArray:
    """Return BLEU from 0 to 100 as sacrebleu computes it, with its exponential smoothing.

    K. Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation" (2002). The k-th order without
    a match counts as 1 / 2^k matches. With ``effective_order``, orders that a short output does not have are left out:
    for single rows.
    """
    words, expected = sums[..., 0], sums[..., 1]
    matching, found = sums[..., 2 : 2 + BLEU_ORDER], sums[..., 2 + BLEU_ORDER :]
    there = found > 0
    smoothed = np.where(matching > 0, matching, 0.5 ** np.cumsum(there & (matching == 0), axis=-1))
    logarithms = np.where(there, np.log(smoothed / np.where(there, found, 1.0)), 0.0 if effective_order else -np.inf)
    orders = there.sum(axis=-1) if effective_order else BLEU_ORDER
    brevity = np.exp(np.minimum(0.0, 1 - expected / np.where(words > 0, words, 1.0)))
    score = 100 * brevity * np.exp(logarithms.sum(axis=-1) / np.maximum(orders, 1))
    return np.where((matching > 0).any(axis=-1), score, 0.0)


def _reading(per_sentence: float, per_word: float, constant: float) -> Callable[[FloatArray], FloatArray]:
    def value(sums: FloatArray) -> FloatArray:
        words, sentences, syllables = np.moveaxis(sums, -1, 0)
        return np.asarray(per_sentence * words / sentences + per_word * syllables / words + constant, dtype=np.float64)

    return value


def _chrf(sums: FloatArray) -> FloatArray:
    """Return chrF from 0 to 100 as sacrebleu computes it: orders that one side does not have are left out.

    M. Popovic, "chrF: character n-gram F-score for automatic MT evaluation" (2015), with beta 2.
    """
    found, expected, both = np.moveaxis(sums.reshape(*sums.shape[:-1], CHRF_ORDER, 3), -1, 0)
    there = (found > 0) & (expected > 0)
    orders = np.maximum(there.sum(axis=-1), 1)
    precision = np.where(there, both / np.where(there, found, 1.0), 0.0).sum(axis=-1) / orders
    recall = np.where(there, both / np.where(there, expected, 1.0), 0.0).sum(axis=-1) / orders
    denominator = CHRF_BETA**2 * precision + recall
    score = (1 + CHRF_BETA**2) * precision * recall / np.where(denominator > 0, denominator, 1.0)
    return np.asarray(100 * score, dtype=np.float64)


_AGGREGATES: Mapping[Statistic, Callable[[FloatArray], FloatArray]] = {
    Statistic.MEAN: _ratio,
    Statistic.PROPORTION: _ratio,
    Statistic.PERPLEXITY: lambda sums: np.asarray(np.exp(_ratio(sums))),
    Statistic.BITS_PER_BYTE: lambda sums: np.asarray(_ratio(sums) / math.log(2)),
    Statistic.MATTHEWS: _matthews,
    Statistic.MACRO_F1: _macro_f1,
    Statistic.BLEU: _bleu,
    Statistic.READING_EASE: _reading(-1.015, -84.6, 206.835),
    Statistic.READING_GRADE: _reading(0.39, 11.8, -15.59),
    Statistic.CHRF: _chrf,
}
