"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum: F1 per row, as the rouge_score package defines it, without stemming.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004). The longest common subsequence is computed by
rapidfuzz, which is several hundred times faster than a table in Python and gives the same length.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from rapidfuzz.distance import LCSseq

from finetuning_api.metrics import Metric
from finetuning_evaluator.aggregates import FloatArray, Statistic
from finetuning_evaluator.statistics import Observations

ROUGE_METRICS = (Metric.ROUGE1, Metric.ROUGE2, Metric.ROUGE_L, Metric.ROUGE_LSUM)

_NOT_ASCII_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")
_NO_SPACES_BETWEEN_WORDS = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
"""Kana and Chinese characters."""
_NON_ASCII_SHARE = 0.05


class RougeTokenizer(StrEnum):
    """How a text is cut into words."""

    ASCII = "ascii"
    """rouge_score's own: lower case, runs of a-z and 0-9. Every other letter is lost."""
    UNICODE = "unicode"
    """Lower case, runs of letters, marks and digits of any script; kana and Chinese characters one by one."""

    def words(self, text: str) -> list[str]:
        """Return the words of a text."""
        if self is RougeTokenizer.UNICODE:
            spaced = _NO_SPACES_BETWEEN_WORDS.sub(r" \1 ", text.lower())
            return "".join(character if _is_part_of_word(character) else " " for character in spaced).split()
        return _NOT_ASCII_ALPHANUMERIC.sub(" ", text.lower()).split()


@dataclass(frozen=True, slots=True)
class RougeScores:
    """F1 of one prediction against its reference, each from 0 to 1."""

    rouge1: float
    rouge2: float
    rouge_l: float
    rouge_lsum: float

    def of(self, metric: Metric) -> float:
        """Return the score that a metric names."""
        return {
            Metric.ROUGE1: self.rouge1,
            Metric.ROUGE2: self.rouge2,
            Metric.ROUGE_L: self.rouge_l,
            Metric.ROUGE_LSUM: self.rouge_lsum,
        }[metric]


def choose_tokenizer(references: Sequence[str]) -> RougeTokenizer:
    """Return the Unicode tokenizer when more than 5 % of the references' letters are not ASCII.

    The ASCII tokenizer drops those letters: identical Hindi texts would score 0.
    """
    letters = [character for text in references for character in text if character.isalpha()]
    others = sum(not character.isascii() for character in letters)
    return RougeTokenizer.UNICODE if others > _NON_ASCII_SHARE * len(letters) else RougeTokenizer.ASCII


def score_text(reference: str, prediction: str, tokenizer: RougeTokenizer) -> RougeScores:
    """Return the F1 scores of one prediction; an empty prediction scores 0."""
    expected, found = tokenizer.words(reference), tokenizer.words(prediction)
    return RougeScores(
        rouge1=_ngram_f1(expected, found, 1),
        rouge2=_ngram_f1(expected, found, 2),
        rouge_l=_f1(LCSseq.similarity(expected, found), len(expected), len(found)),
        rouge_lsum=_summary_f1(_sentences(reference, tokenizer), _sentences(prediction, tokenizer)),
    )


def observe(metric: Metric, scores: Sequence[RougeScores]) -> Observations:
    """Return a ROUGE metric's observations: the corpus value is the exact mean of the rows' F1."""
    values: FloatArray = np.array([[score.of(metric), 1.0] for score in scores], dtype=np.float64)
    return Observations(Statistic.MEAN, values)


def signature(tokenizer: RougeTokenizer) -> str:
    """Return the settings that a reader needs to compare the numbers with others."""
    return f"rouge|f1|stem=0|tok={tokenizer}|lsum=newline|agg=mean"


def _is_part_of_word(character: str) -> bool:
    """Letters, marks and numbers: without the marks the words of many scripts would fall apart."""
    return unicodedata.category(character)[0] in "LMN"


def _f1(overlap: int, expected: int, found: int) -> float:
    if not overlap:
        return 0.0
    precision, recall = overlap / found, overlap / expected
    return 2 * precision * recall / (precision + recall)


def _ngram_f1(expected: list[str], found: list[str], size: int) -> float:
    wanted, given = _ngrams(expected, size), _ngrams(found, size)
    return _f1((wanted & given).total(), wanted.total(), given.total())


def _ngrams(words: list[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def _sentences(text: str, tokenizer: RougeTokenizer) -> list[list[str]]:
    return [tokenizer.words(line) for line in text.split("\n") if line]


def _summary_f1(expected: list[list[str]], found: list[list[str]]) -> float:
    """F1 of the union of common subsequences over sentences, hits clipped by how often a word occurs on each side."""
    words_expected = Counter(word for sentence in expected for word in sentence)
    words_found = Counter(word for sentence in found for word in sentence)
    left_expected, left_found = words_expected.copy(), words_found.copy()
    hits = 0
    for sentence in expected:
        union = sorted(set[int]().union(*(_common_positions(sentence, other) for other in found)))
        for word in (sentence[position] for position in union):
            if left_expected[word] > 0 and left_found[word] > 0:
                hits += 1
                left_expected[word] -= 1
                left_found[word] -= 1
    return _f1(hits, words_expected.total(), words_found.total())


def _common_positions(expected: list[str], found: list[str]) -> list[int]:
    """Return the positions in ``expected`` of one longest common subsequence.

    Several may be longest, and the union over sentences depends on which is taken: the walk back through the table
    breaks ties as rouge_score does.
    """
    if not set(expected) & set(found):
        return []
    table = [[0] * (len(found) + 1)]
    for word in expected:
        above, row = table[-1], [0]
        for column, other in enumerate(found):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[column]))
        table.append(row)
    positions = []
    row_index, column_index = len(expected), len(found)
    while row_index and column_index:
        if expected[row_index - 1] == found[column_index - 1]:
            positions.append(row_index - 1)
            row_index, column_index = row_index - 1, column_index - 1
        elif table[row_index][column_index - 1] > table[row_index - 1][column_index]:
            column_index -= 1
        else:
            row_index -= 1
    return positions
