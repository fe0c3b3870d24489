"""Accuracy as multiple choice: the most likely of the data set's distinct completions, given the prompt."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.reasons import Reason
from finetuning_evaluator.aggregates import Statistic
from finetuning_evaluator.score import OnProgress, Window, log_probabilities
from finetuning_evaluator.statistics import Observations
from finetuning_workload.data import Encoder, RenderedRow, TokenizedSample
from finetuning_workload.errors import UserError

MAX_CHOICES = 64
SIGNATURE = "accuracy|argmax of summed log-likelihood incl. closing EOS|choices=distinct completions of the data set"
F1_SIGNATURE = f"macro-f1|mean of F1 over choices that are right or chosen|{SIGNATURE.partition('|')[2]}"


def choices_of(rows: Sequence[RenderedRow]) -> tuple[str, ...]:
    """Return the distinct completions of the data set, sorted. Raises UserError(METRIC_UNAVAILABLE)."""
    found = tuple(sorted({row.completion for row in rows}))
    hint = "Remove accuracy from evaluation.metrics; exact-match and rouge suit free text."
    if len(found) > MAX_CHOICES:
        message = f"accuracy needs a closed set of answers; the data set has {len(found)} distinct completions"
        raise UserError(Reason.METRIC_UNAVAILABLE, f"{message}, at most {MAX_CHOICES} are compared", hint)
    if len(found) < 2:  # noqa: PLR2004  (one answer is no choice)
        message = f"accuracy needs at least two different completions; the data set has only {found[0]!r}"
        raise UserError(Reason.METRIC_UNAVAILABLE, message, hint)
    return found


def choose(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[RenderedRow],
    *,
    choices: Sequence[str],
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Return each row's most likely choice; the closing EOS counts, so that no choice wins by being a prefix."""
    samples = Encoder(tokenizer).encode([_with_completion(row, choice) for row in rows for choice in choices])
    items = [Window(tuple(sample.ids), _last_stretch(sample)) for sample in samples]
    scores = [float(found.sum()) for found in log_probabilities(model, items, on_progress=on_progress)]
    per_row = [scores[start : start + len(choices)] for start in range(0, len(scores), len(choices))]
    return [choices[row_scores.index(max(row_scores))] for row_scores in per_row]


def observe_f1(choices: Sequence[str], chosen: Sequence[str], references: Sequence[str]) -> Observations:
    """Return for every row and choice whether it is the right one, the chosen one, and both: [rows, 3 x choices]."""
    right = np.array([[reference == choice for choice in choices] for reference in references], dtype=np.float64)
    taken = np.array([[answer == choice for choice in choices] for answer in chosen], dtype=np.float64)
    return Observations(Statistic.MACRO_F1, np.concatenate([right, taken, right * taken], axis=1))


def _with_completion(row: RenderedRow, completion: str) -> RenderedRow:
    """Return the row with another last completion."""
    last = max(index for index, segment in enumerate(row.segments) if segment.supervised)
    segments = list(row.segments[: last + 1])
    segments[last] = replace(segments[last], text=completion)
    return replace(row, segments=tuple(segments))


def _last_stretch(sample: TokenizedSample) -> int:
    """Return where the last supervised stretch begins."""
    start = len(sample.supervised)
    while start and sample.supervised[start - 1]:
        start -= 1
    return max(start, 1)
