"""Perplexity of general text that has nothing to do with the task: what a model forgot while it was tuned.

The passages are our own, on many subjects and in several registers, a few sentences each. Values compare candidates;
they say nothing about other texts.
"""

from collections.abc import Sequence
from functools import cache

import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.metrics import Metric
from finetuning_api.runconfig import ContractModel
from finetuning_evaluator.metrics import perplexity
from finetuning_evaluator.metrics.built_in import GENERAL, read_lines
from finetuning_evaluator.metrics.perplexity import RowLikelihood
from finetuning_evaluator.score import OnProgress
from finetuning_evaluator.statistics import Observations
from finetuning_workload.data import RenderedRow, Segment


class Passage(ContractModel):
    """A few sentences on one subject."""

    subject: str
    text: str


@cache
def passages() -> tuple[RenderedRow, ...]:
    """Return the built-in passages as rows of plain text."""
    read = read_lines(GENERAL, Passage)
    return tuple(RenderedRow(item.subject, (Segment(item.text, supervised=True),)) for item in read)


def score(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    on_progress: OnProgress | None = None,
) -> list[RowLikelihood]:
    """Return the likelihoods of all passages."""
    return perplexity.score_rows(model, tokenizer, passages(), max_length=max_length, on_progress=on_progress)


def observe(rows: Sequence[RowLikelihood]) -> Observations:
    """Return the observations of the perplexity of all passages."""
    return perplexity.observe(Metric.PERPLEXITY, rows)


def details(rows: Sequence[RowLikelihood]) -> dict[str, float]:
    """Return the bits per byte, which compare models with different tokenizers, and the size of the text."""
    return {
        "bitsPerByte": perplexity.observe(Metric.BITS_PER_BYTE, rows).value(),
        "tokens": float(sum(row.text_tokens for row in rows)),
    }


def signature(*, max_length: int) -> str:
    """Return the settings that a reader needs to compare the numbers with others."""
    shared = perplexity.signature(Metric.PERPLEXITY, max_length=max_length).partition("|")[2]
    return f"general-perplexity|own passages|{shared}"
