"""Accuracy as multiple choice: the most likely of the row's own answers, or of the data set's distinct completions."""

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.metrics import Metric
from finetuning_api.reasons import Reason
from finetuning_evaluator.aggregates import Statistic
from finetuning_evaluator.score import OnProgress, Window, log_probabilities
from finetuning_evaluator.statistics import Observations
from finetuning_workload.data import Encoder, RenderedRow, TokenizedSample
from finetuning_workload.errors import UserError

MAX_CHOICES = 64


def signature(metric: Metric, *, own_choices: bool) -> str:
    """Return the settings that a reader needs to compare the numbers with others."""
    statistic = "mean of F1 over choices that are right or chosen|" if metric is Metric.MACRO_F1 else ""
    choices = "of each row" if own_choices else "distinct completions of the data set"
    return f"{metric}|{statistic}argmax of summed log-likelihood incl. closing EOS|choices={choices}"


def choices_of(rows: Sequence[RenderedRow], *, wanted_by: str) -> tuple[str, ...]:
    """Return the distinct completions of the data set, sorted.

    Raises UserError(METRIC_UNAVAILABLE), which names the metrics that want them.
    """
    found = tuple(sorted({row.completion for row in rows}))
    hint = f"Remove {wanted_by} from evaluation.metrics; exact-match and rouge suit free text."
    if len(found) > MAX_CHOICES:
        message = f"{wanted_by}: a closed set of answers is needed; the data set has {len(found)} distinct completions"
        raise UserError(Reason.METRIC_UNAVAILABLE, f"{message}, at most {MAX_CHOICES} are compared", hint)
    if len(found) < 2:  # noqa: PLR2004  (one answer is no choice)
        message = f"{wanted_by}: two different completions are needed at least; the data set has only {found[0]!r}"
        raise UserError(Reason.METRIC_UNAVAILABLE, message, hint)
    return found


def shared_choices(rows: Sequence[RenderedRow], *, wanted_by: str) -> tuple[str, ...]:
    """Return the answers that all rows offer, sorted; none where they offer different ones.

    Raises UserError(METRIC_UNAVAILABLE) for a row with fewer than two answers, or without the right one; it names the
    metrics that want them.
    """
    for row in rows:
        offered = options(row, ())
        if row.completion not in offered or len(set(offered)) < 2:  # noqa: PLR2004  (one answer is no choice)
            message = f"{wanted_by}, row {row.row_id}: the answers {list(row.choices)} need to be two or more, and"
            hint = f"Correct the column that dataset.choices names, or remove {wanted_by} from evaluation.metrics."
            raise UserError(Reason.METRIC_UNAVAILABLE, f"{message} {row.completion.strip()!r} one of them", hint)
    sets = {frozenset(options(row, ())) for row in rows}
    return tuple(sorted(sets.pop())) if len(sets) == 1 else ()


def options(row: RenderedRow, choices: Sequence[str]) -> tuple[str, ...]:
    """Return the completions that a row chooses from: its own answers, else the data set's ``choices``.

    Around its own answers is the white space that its completion has.
    """
    if not row.choices:
        return tuple(choices)
    body = row.completion.strip()
    before, _, after = row.completion.partition(body) if body else ("", "", "")
    return tuple(dict.fromkeys(f"{before}{choice}{after}" for choice in row.choices))


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
    asked = [_with_completion(row, choice) for row, given in zip(rows, offered, strict=True) for choice in given]
    samples = Encoder(tokenizer).encode(asked)
    items = [Window(tuple(sample.ids), _last_stretch(sample)) for sample in samples]
    scores = iter([float(found.sum()) for found in log_probabilities(model, items, on_progress=on_progress)])
    return [max([(next(scores), choice) for choice in given], key=itemgetter(0))[1] for given in offered]


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
