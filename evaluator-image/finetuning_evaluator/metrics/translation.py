"""BLEU and chrF of the corpus: sacrebleu counts the n-grams of every row, and values are functions of their sums."""

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from finetuning_api.metrics import Metric
from finetuning_evaluator.aggregates import Statistic
from finetuning_evaluator.statistics import Observations

TRANSLATION_METRICS = (Metric.BLEU, Metric.CHRF)


class _BleuCounts(BLEU):
    """Counts of rows, which sacrebleu keeps to itself."""

    def of(self, references: Sequence[str], predictions: Sequence[str]) -> list[list[int]]:
        """Return the components of Statistic.BLEU: [rows][10]."""
        return [list(row) for row in self._extract_corpus_statistics(predictions, [references])]


class _ChrfCounts(CHRF):
    """Counts of rows, which sacrebleu keeps to itself."""

    def of(self, references: Sequence[str], predictions: Sequence[str]) -> list[list[int]]:
        """Return the components of Statistic.CHRF: [rows][18]."""
        return [list(row) for row in self._extract_corpus_statistics(predictions, [references])]


def observe(metric: Metric, references: Sequence[str], predictions: Sequence[str]) -> Observations:
    """Return the counts of every row for one of the two metrics."""
    if metric is Metric.BLEU:
        # Forced: that many outputs end in " ." is no mistake of ours to be warned of.
        counts, statistic = _BleuCounts(force=True).of(references, predictions), Statistic.BLEU
    else:
        counts, statistic = _ChrfCounts().of(references, predictions), Statistic.CHRF
    return Observations(statistic, np.array(counts, dtype=np.float64))


def signature(metric: Metric) -> str:
    """Return the signature in the manner of sacrebleu."""
    if metric is Metric.BLEU:
        return f"bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version('sacrebleu')}"
    return f"chrf|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version('sacrebleu')}"
