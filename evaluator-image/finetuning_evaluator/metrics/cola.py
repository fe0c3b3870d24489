"""Acceptability judgements in the manner of CoLA: is a sentence English, by the likelihood of " no" and " yes".

The prompt and the choices are those of lm-eval's task `cola` (version 1.0), zero-shot. The sentences are our own: the
CoLA corpus cannot be shipped. Values are comparable between candidates, not with published CoLA results.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.runconfig import ContractModel
from finetuning_evaluator.aggregates import Statistic
from finetuning_evaluator.metrics.built_in import ACCEPTABILITY, read_lines
from finetuning_evaluator.score import OnProgress, Window, log_probabilities
from finetuning_evaluator.statistics import Observations

SIGNATURE = "cola|own sentences|lm-eval template 1.0|shots=0|choices= no/ yes|mcc"
CHOICES = (" no", " yes")


class Sentence(ContractModel):
    """One sentence and whether speakers accept it."""

    sentence: str
    acceptable: bool
    phenomenon: str


class Judgement(ContractModel):
    """Log-probabilities (nats) of the two answers to one sentence."""

    no: float
    yes: float

    @property
    def acceptable(self) -> bool:
        """The more likely answer."""
        return self.yes > self.no


@cache
def sentences() -> tuple[Sentence, ...]:
    """Return the built-in sentences: each acceptable one, and after it the same sentence broken."""
    return read_lines(ACCEPTABILITY, Sentence)


def judge(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    judged: Sequence[Sentence],
    *,
    on_progress: OnProgress | None = None,
) -> list[Judgement]:
    """Return a model's judgement of each sentence."""
    items = [_window(tokenizer, item.sentence, choice) for item in judged for choice in CHOICES]
    sums = [float(scores.sum()) for scores in log_probabilities(model, items, on_progress=on_progress)]
    return [Judgement(no=no, yes=yes) for no, yes in zip(sums[::2], sums[1::2], strict=True)]


def observe(judged: Sequence[Sentence], judgements: Sequence[Judgement]) -> Observations:
    """Return the confusion cells per sentence; the value is Matthews' correlation, 0 when a margin is empty.

    B. W. Matthews, Biochim. Biophys. Acta 405 (1975).
    """
    cells = np.zeros((len(judged), 4))
    for row, (sentence, judgement) in enumerate(zip(judged, judgements, strict=True)):
        cells[row, _cell(actual=sentence.acceptable, predicted=judgement.acceptable)] = 1.0
    return Observations(Statistic.MATTHEWS, cells)


def details(observations: Observations) -> dict[str, float]:
    """Return the confusion matrix, the accuracy and the share of sentences judged acceptable."""
    true_positive, false_positive, false_negative, true_negative = observations.components.sum(axis=0).tolist()
    return {
        "truePositive": true_positive,
        "falsePositive": false_positive,
        "falseNegative": false_negative,
        "trueNegative": true_negative,
        "accuracy": (true_positive + true_negative) / observations.rows,
        "predictedPositiveRate": (true_positive + false_positive) / observations.rows,
    }


def _cell(*, actual: bool, predicted: bool) -> int:
    """Return the place among true positive, false positive, false negative, true negative."""
    if predicted:
        return 0 if actual else 1
    return 2 if actual else 3


def _window(tokenizer: PreTrainedTokenizerBase, sentence: str, choice: str) -> Window:
    """Tokenise prompt and choice together and cut where the prompt alone ends, as lm-eval does."""
    prompt = f"{sentence}\nQuestion: Does this sentence make sense?\nAnswer:"
    whole, context = tokenizer(prompt + choice)["input_ids"], tokenizer(prompt)["input_ids"]
    return Window(tuple(whole), len(context))
