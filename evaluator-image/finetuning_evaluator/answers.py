"""Log-likelihoods of several answers to one question, which is read once: all answers use its keys and values."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from finetuning_evaluator.score import BATCH_TOKENS, FloatArray, OnProgress, OutputLayer, Window, log_probabilities
from finetuning_workload.generation import left_padded, plain_model, plan_batches
from finetuning_workload.models import UNSUPPORTED, refusal

_LOG = logging.getLogger(__name__)
_PLAINLY = "every answer is read with its question"
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Greatest difference per token (nats) from reading question and answer together, by number format."""


@dataclass(frozen=True, slots=True)
class Question:
    """Token ids of what is asked, and of every answer that is compared; all have one token at least."""

    ids: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


@torch.inference_mode()
def answer_log_probabilities(
    model: torch.nn.Module, questions: Sequence[Question], *, on_progress: OnProgress | None = None
) -> list[list[float]]:
    """Return the summed natural log-probabilities of each question's answers, in the order of the questions.

    Whether a model gives the same in two passes as in one is tried on the first question; where it does not (or keeps
    no such cache), every answer is read with its question.
    """
    layer = OutputLayer(model)
    if not _agrees(layer, model, questions[:1]):
        return _together(model, questions, on_progress=on_progress)
    results: list[list[float]] = [[]] * len(questions)
    lengths = [max(len(question.ids), _tokens_of_answers(question)) for question in questions]
    done = 0
    for batch in plan_batches(lengths, batch_tokens=BATCH_TOKENS):
        for index, scores in zip(batch, _score(layer, model, [questions[number] for number in batch]), strict=True):
            results[index] = scores
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(questions))
    return results


def _tokens_of_answers(question: Question) -> int:
    return len(question.answers) * max(map(len, question.answers))


def _together(
    model: torch.nn.Module, questions: Sequence[Question], *, on_progress: OnProgress | None = None
) -> list[list[float]]:
    items = [
        Window((*question.ids, *answer), len(question.ids)) for question in questions for answer in question.answers
    ]
    sums = iter([float(scores.sum()) for scores in log_probabilities(model, items, on_progress=on_progress)])
    return [[next(sums) for _ in question.answers] for question in questions]


def _agrees(layer: OutputLayer, model: torch.nn.Module, questions: Sequence[Question]) -> bool:
    """Return whether both ways give the same for the shortest and the longest answer of a question."""
    short = [
        Question(asked.ids, tuple(dict.fromkeys((min(asked.answers, key=len), max(asked.answers, key=len)))))
        for asked in questions
    ]
    together = _together(model, short)
    try:
        apart = _score(layer, model, short) if short else []
    except UNSUPPORTED as error:
        _LOG.info("%s, instead of each question once: %s", _PLAINLY, refusal(error))
        return False
    bound = _TOLERANCE.get(next(model.parameters()).dtype, 0.0)
    differences = [
        abs(one - other) / len(answer)
        for asked, ones, others in zip(short, together, apart, strict=True)
        for answer, one, other in zip(asked.answers, ones, others, strict=True)
    ]
    agrees = all(difference <= bound for difference in differences)
    if not agrees:
        _LOG.info("%s: scores differ by %.2g nats a token otherwise", _PLAINLY, max(differences))
    return agrees


def _score(layer: OutputLayer, model: torch.nn.Module, questions: Sequence[Question]) -> list[list[float]]:
    device = next(model.parameters()).device
    ids, mask = left_padded([list(question.ids) for question in questions], device)
    cache = DynamicCache(config=plain_model(model).config)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    read = layer.hidden(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    owners = [place for place, question in enumerate(questions) for _ in question.answers]
    answers = [answer for question in questions for answer in question.answers]
    last = torch.tensor([[owner, ids.shape[1] - 1] for owner in owners], device=device)
    sums = layer.gathered(read, last, torch.tensor([answer[0] for answer in answers], device=device))
    longer = [place for place, answer in enumerate(answers) if len(answer) > 1]
    if longer:
        owned = torch.tensor([owners[place] for place in longer], device=device)
        cache.batch_select_indices(owned)
        sums[longer] += _rest(layer, [answers[place] for place in longer], cache, mask[owned])
    found = iter(sums.tolist())
    return [[next(found) for _ in question.answers] for question in questions]


def _rest(
    layer: OutputLayer, answers: Sequence[tuple[int, ...]], cache: DynamicCache, mask: torch.Tensor
) -> FloatArray:
    """Return the summed log-probabilities of answers without their first tokens; questions are cached: [answers]."""
    width = max(map(len, answers)) - 1
    inputs = torch.tensor([[*answer[:-1], *[0] * (width + 1 - len(answer))] for answer in answers], device=mask.device)
    states = layer.hidden(
        inputs,
        attention_mask=torch.cat([mask, mask.new_ones(inputs.shape)], dim=1),
        position_ids=mask.sum(dim=1, keepdim=True) + torch.arange(width, device=mask.device),
        past_key_values=cache,
        use_cache=True,
    )
    places = [(row, place) for row, answer in enumerate(answers) for place in range(len(answer) - 1)]
    targets = [token for answer in answers for token in answer[1:]]
    scores = layer.gathered(states, torch.tensor(places, device=mask.device), torch.tensor(targets, device=mask.device))
    return np.add.reduceat(scores, np.cumsum([0, *(len(answer) - 1 for answer in answers[:-1])]))
