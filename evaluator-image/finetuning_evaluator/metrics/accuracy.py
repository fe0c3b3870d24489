"""Accuracy as multiple choice: the most likely of the row's own answers, or of the data set's distinct completions."""

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.metrics import Metric
from finetuning_evaluator.aggregates import Statistic
from finetuning_evaluator.answers import Question, answer_log_probabilities
from finetuning_evaluator.score import OnProgress
from finetuning_evaluator.statistics import Observations
from finetuning_workload.answers import options, with_completion
from finetuning_workload.data import Encoder, RenderedRow, TokenizedSample


def signature(metric: Metric, *, own_choices: bool) -> str:
    """Return the settings that a reader needs to compare the numbers with others."""
    statistic = "mean of F1 over choices that are right or chosen|" if metric is Metric.MACRO_F1 else ""
    choices = "of each row" if own_choices else "distinct completions of the data set"
    return f"{metric}|{statistic}argmax of summed log-likelihood incl. closing EOS|choices={choices}"


def choose(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[RenderedRow],
    *,
    choices: Sequence[str],
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Return each row's most likely choice; the closing EOS counts, so that no choice wins by being a prefix."""
    offered = [options(row, choices) for row in rows]
    encoder = Encoder(tokenizer)
    questions = [
        _question(encoder.encode([with_completion(row, choice) for choice in given]))
        for row, given in zip(rows, offered, strict=True)
    ]
    scores = answer_log_probabilities(model, questions, on_progress=on_progress)
    return [
        max(zip(found, given, strict=True), key=itemgetter(0))[1] for found, given in zip(scores, offered, strict=True)
    ]


def observe_f1(choices: Sequence[str], chosen: Sequence[str], references: Sequence[str]) -> Observations:
    """Return for every row and choice whether it is the right one, the chosen one, and both: [rows, 3 x choices]."""
    right = np.array([[reference == choice for choice in choices] for reference in references], dtype=np.float64)
    taken = np.array([[answer == choice for choice in choices] for answer in chosen], dtype=np.float64)
    return Observations(Statistic.MACRO_F1, np.concatenate([right, taken, right * taken], axis=1))


def _question(samples: Sequence[TokenizedSample]) -> Question:
    """Return the prompt that all samples of a row begin with, and their answers.

    Segments are tokenised one by one: whatever is answered, the prompt's tokens are the same.
    """
    start = min(map(_last_stretch, samples))
    return Question(tuple(samples[0].ids[:start]), tuple(tuple(sample.ids[start:]) for sample in samples))


def _last_stretch(sample: TokenizedSample) -> int:
    """Return where the last supervised stretch begins."""
    start = len(sample.supervised)
    while start and sample.supervised[start - 1]:
        start -= 1
    return max(start, 1)
