"""Perplexity of held-out text and of completions, and bits per byte: three readings of one pass over the rows.

Corpus values are ratios of sums over all rows, never means of per-row perplexities, which short rows would dominate.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.metrics import Metric
from finetuning_api.runconfig import ContractModel
from finetuning_evaluator.aggregates import FloatArray, Statistic
from finetuning_evaluator.score import OnProgress, document_log_probabilities
from finetuning_evaluator.statistics import Observations
from finetuning_workload.data import Encoder, RenderedRow, TokenizedSample

LIKELIHOOD_METRICS = (Metric.PERPLEXITY, Metric.COMPLETION_PERPLEXITY, Metric.BITS_PER_BYTE)
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class RowLikelihood(ContractModel):
    """NLL of one row in nats. The text is everything but the EOS that encoding appends; the completion includes it."""

    text_nll: float
    text_tokens: int
    text_bytes: int
    """UTF-8 bytes of the scored text."""
    completion_nll: float
    completion_tokens: int


def score_rows(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[RenderedRow],
    *,
    max_length: int,
    on_progress: OnProgress | None = None,
) -> list[RowLikelihood]:
    """Score rows as training encodes them: BOS first if the tokenizer adds one, closing EOS last.

    Without a BOS the first token has no context: it is not scored, and its bytes are not counted.
    """
    samples = Encoder(tokenizer).encode(rows)
    scores = document_log_probabilities(
        model, [sample.ids for sample in samples], max_length=max_length, on_progress=on_progress
    )
    return [
        _row_likelihood(tokenizer, row, sample, -log_probabilities)
        for row, sample, log_probabilities in zip(rows, samples, scores, strict=True)
    ]


def observe(metric: Metric, rows: Sequence[RowLikelihood]) -> Observations:
    """Return the observations of one of the likelihood metrics."""
    if metric is Metric.COMPLETION_PERPLEXITY:
        pairs = [(row.completion_nll, row.completion_tokens) for row in rows]
    elif metric is Metric.PERPLEXITY:
        pairs = [(row.text_nll, row.text_tokens) for row in rows]
    else:
        pairs = [(row.text_nll, row.text_bytes) for row in rows]
    statistic = Statistic.BITS_PER_BYTE if metric is Metric.BITS_PER_BYTE else Statistic.PERPLEXITY
    return Observations(statistic, np.array(pairs, dtype=np.float64).reshape(-1, 2))


def signature(metric: Metric, *, max_length: int) -> str:
    """Return the settings that a reader needs to compare the numbers with others."""
    what = {
        Metric.PERPLEXITY: "exp(sum NLL / sum tokens)|text without closing EOS",
        Metric.COMPLETION_PERPLEXITY: "exp(sum NLL / sum tokens)|completion with closing EOS, given the prompt",
        Metric.BITS_PER_BYTE: "sum NLL / (ln 2 * sum UTF-8 bytes)|text without closing EOS",
    }[metric]
    return f"{metric}|{what}|window={max_length}|stride={max(1, max_length // 2)}|bos=if the tokenizer adds one"


def appended_eos(tokenizer: PreTrainedTokenizerBase, row: RenderedRow, sample: TokenizedSample) -> list[bool]:
    """Return for each token whether it is an EOS that encoding appended; a mark of the text's own is text."""
    if any(segment.closing == tokenizer.eos_token for segment in row.segments):
        return [False] * len(sample.ids)
    following = [*sample.supervised[1:], False]
    return [
        supervised and not next_supervised and token == tokenizer.eos_token_id
        for token, supervised, next_supervised in zip(sample.ids, sample.supervised, following, strict=True)
    ]


def _row_likelihood(
    tokenizer: PreTrainedTokenizerBase, row: RenderedRow, sample: TokenizedSample, nll: FloatArray
) -> RowLikelihood:
    text = ~np.array(appended_eos(tokenizer, row, sample), dtype=bool)[1:]
    supervised = np.array(sample.supervised, dtype=bool)[1:]
    return RowLikelihood(
        text_nll=float(nll[text].sum()),
        text_tokens=int(text.sum()),
        text_bytes=_encoded_bytes(row) - _unscored_bytes(tokenizer, sample.ids),
        completion_nll=float(nll[supervised].sum()),
        completion_tokens=int(supervised.sum()),
    )


def _encoded_bytes(row: RenderedRow) -> int:
    """Return the UTF-8 bytes up to the end of the last supervised segment: what follows is not encoded."""
    encoded = row.segments[: len(row.prompt_segments) + 1]
    return sum(len((segment.text + segment.closing).encode()) for segment in encoded)


def _unscored_bytes(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """Return the bytes of the first token: 0 for a BOS; a token that is a part of a character counts as one byte."""
    if not ids or ids[0] == tokenizer.bos_token_id:
        return 0
    text = str(tokenizer.decode([ids[0]]))
    return 1 if _REPLACEMENT in text else len(text.encode())
