"""What explains scores of generated text: how long the outputs are, how many are empty, cut or refusals; and speed."""

import re
from collections.abc import Sequence
from statistics import fmean, median

from finetuning_api.metrics import Task
from finetuning_api.runconfig import ContractModel
from finetuning_evaluator.tasks import Output, TaskPart

_BEGINNING = 160
_APOSTROPHES = str.maketrans({"\N{RIGHT SINGLE QUOTATION MARK}": "'"})
_DOING = (
    "help|assist|answer|provide|comply|fulfil|fulfill|create|write|generate|produce|give|share|discuss|engage|do that"
)
_REFUSAL = re.compile(
    rf"\bi(?:'m| am)? (?:cannot|can't|can not|won't|will not|unable to|not able to|must decline to) (?:{_DOING})\b"
    r"|\bas an? (?:ai|artificial intelligence|(?:large )?language model|ai language model|assistant)\b"
    r"|\bi(?:'m| am) sorry,? but (?:i|as|that|this)\b|\bi must decline\b|\bagainst my (?:guidelines|programming)\b"
)


class OutputSummary(ContractModel):
    """The texts that a candidate wrote."""

    empty: int
    """Outputs of white space alone."""
    cut: int
    """Outputs that ended at the limit and not by themselves."""
    refused: int
    """Outputs that begin like a refusal in English."""
    refused_references: int
    """References that do: there a refusal is right."""
    mean_tokens: float
    mean_characters: float
    median_characters: float
    longest_characters: int
    length_ratio: float | None
    """Characters of all outputs over characters of all references; None where the references have none."""


class Speed(ContractModel):
    """Tokens per second of wall time, in batches and with everything around them; of the run that computed them."""

    generated: float | None = None
    """Of generated tokens."""
    scored: float | None = None
    """Of tokens whose likelihood was computed."""
    alone: float | None = None
    """Of generated tokens, one completion at a time; where latency was asked for."""


def is_refusal(text: str) -> bool:
    """Return whether a text begins like a refusal: a list of English phrases, so a rough count and no judgement."""
    beginning = text.strip()[:_BEGINNING].translate(_APOSTROPHES).casefold()
    return _REFUSAL.search(beginning) is not None


def summarise(outputs: Sequence[Output], references: Sequence[str]) -> OutputSummary:
    """Return the summary of one candidate's outputs; there is at least one."""
    lengths = [len(output.text) for output in outputs]
    expected = sum(map(len, references))
    return OutputSummary(
        empty=sum(not output.text.strip() for output in outputs),
        cut=sum(not output.stopped for output in outputs),
        refused=sum(is_refusal(output.text) for output in outputs),
        refused_references=sum(map(is_refusal, references)),
        mean_tokens=fmean(output.tokens for output in outputs),
        mean_characters=fmean(lengths),
        median_characters=median(lengths),
        longest_characters=max(lengths),
        length_ratio=sum(lengths) / expected if expected else None,
    )


def speed(parts: dict[Task, TaskPart]) -> Speed:
    """Return the speed of a candidate in the tasks that it did."""
    generated = parts.get(Task.GENERATION)
    scored = parts.get(Task.LIKELIHOOD)
    alone = parts.get(Task.LATENCY)
    return Speed(
        generated=None
        if generated is None
        else _per_second(sum(found.tokens for found in generated.outputs), generated),
        scored=None if scored is None else _per_second(_scored_tokens(scored), scored),
        alone=None
        if alone is None
        else sum(timing.tokens for timing in alone.timings) / sum(timing.seconds for timing in alone.timings),
    )


def _scored_tokens(part: TaskPart) -> int:
    return sum(row.text_tokens for row in part.likelihood)


def _per_second(tokens: int, part: TaskPart) -> float | None:
    return tokens / part.seconds if part.seconds > 0 else None
