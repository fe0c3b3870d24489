"""Tasks of the user's own in the format of lm-evaluation-harness: what a model scores and writes, and its metrics."""

import math
import re
import string
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.runconfig import ContractModel
from finetuning_evaluator.aggregates import Statistic
from finetuning_evaluator.answers import Question, answer_log_probabilities
from finetuning_evaluator.metrics.matching import observe as observe_shares
from finetuning_evaluator.score import OnProgress, Window, log_probabilities
from finetuning_evaluator.statistics import Observations
from finetuning_workload.generation import Ends, complete, context_length
from finetuning_workload.task_files import LoadedTask, OutputType
from finetuning_workload.task_files.encoding import EncodedDocument, encode_task
from finetuning_workload.task_files.file import FilterFunction

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TaskScores(ContractModel):
    """What one candidate made of the documents of a task, in their order."""

    log_likelihoods: tuple[tuple[float, ...], ...] = ()
    """Of every answer of a document, in nats."""
    greedy: tuple[bool, ...] = ()
    """Whether the answer is what the model would write, token by token."""
    outputs: tuple[str, ...] = ()


def score(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: LoadedTask,
    *,
    max_length: int,
    on_progress: OnProgress | None = None,
) -> TaskScores:
    """Return what a model makes of a task. Texts without a context are scored in windows of ``max_length`` tokens."""
    documents = list(encode_task(task, tokenizer))
    match task.file.output_type:
        case OutputType.MULTIPLE_CHOICE:
            questions = [Question(document.context, document.answers) for document in documents]
            found = answer_log_probabilities(model, questions, on_progress=on_progress)
            return TaskScores(log_likelihoods=tuple(map(tuple, found)))
        case OutputType.LOGLIKELIHOOD:
            return _likelihoods(model, task, documents, on_progress)
        case OutputType.ROLLING:
            return _rolling(model, documents, max_length=max_length, on_progress=on_progress)
        case OutputType.GENERATE:
            return _generated(model, tokenizer, task, documents, on_progress)


def observe(task: LoadedTask, metric: str, scores: TaskScores) -> Observations:
    """Return the observations of a metric of a task."""
    if task.file.output_type is OutputType.MULTIPLE_CHOICE:
        chosen = _chosen(task, scores, normalized=metric == "acc_norm")
        return observe_shares([place in document.right for document, place in zip(task.documents, chosen, strict=True)])
    if task.file.output_type is OutputType.GENERATE:
        return observe_shares(_matches(task, scores))
    if metric == "acc":
        return observe_shares(scores.greedy)
    unit = _UNITS[metric]
    sums = [
        (-likelihood, unit(document.answers[0]))
        for document, (likelihood,) in zip(task.documents, scores.log_likelihoods, strict=True)
    ]
    statistic = Statistic.BITS_PER_BYTE if metric == "bits_per_byte" else Statistic.PERPLEXITY
    return Observations(statistic, np.array(sums, dtype=np.float64))


def outputs(task: LoadedTask, scores: TaskScores) -> tuple[str, ...]:
    """Return what a candidate answered to every document: what it wrote, or its likeliest choice; else nothing."""
    if task.file.output_type is not OutputType.MULTIPLE_CHOICE:
        return scores.outputs
    chosen = _chosen(task, scores, normalized=False)
    return tuple(document.answers[place] for document, place in zip(task.documents, chosen, strict=True))


def filtered(task: LoadedTask, scores: TaskScores) -> tuple[str, ...]:
    """Return what is compared of everything that a candidate wrote: all of it where the file filters nothing."""
    return tuple(_filtered(output, task.file.filters) for output in scores.outputs)


def signature(task: LoadedTask, metric: str, *, max_length: int) -> str:
    """Return the settings that a reader needs to compare the numbers with others."""
    file = task.file
    told = [metric, f"task={task.name}", file.output_type, f"shots={file.num_fewshot}", f"split={file.split}"]
    if file.output_type is OutputType.ROLLING:
        told.append(f"window={max_length}")
    return "|".join([*told, f"as lm-eval 0.4|{task.source} {task.digest}"])


def _likelihoods(
    model: torch.nn.Module,
    task: LoadedTask,
    documents: Sequence[EncodedDocument],
    on_progress: OnProgress | None,
) -> TaskScores:
    items = [Window((*document.context, *document.answers[0]), len(document.context)) for document in documents]
    found = log_probabilities(model, items, on_progress=on_progress)
    sums = tuple((float(scores.sum()),) for scores in found)
    if "acc" not in task.file.metrics:
        return TaskScores(log_likelihoods=sums)
    best = log_probabilities(model, items, best=True)
    greedy = tuple(bool((mine >= most).all()) for mine, most in zip(found, best, strict=True))
    return TaskScores(log_likelihoods=sums, greedy=greedy)


def _rolling(
    model: torch.nn.Module,
    documents: Sequence[EncodedDocument],
    *,
    max_length: int,
    on_progress: OnProgress | None,
) -> TaskScores:
    limit = min(max_length, context_length(model) or max_length)
    cut = [_disjoint(document, limit) for document in documents]
    found = iter(log_probabilities(model, [window for windows in cut for window in windows], on_progress=on_progress))
    return TaskScores(log_likelihoods=tuple((math.fsum(float(next(found).sum()) for _ in windows),) for windows in cut))


def _disjoint(document: EncodedDocument, length: int) -> list[Window]:
    """Cut a text as the harness does: what a window scores is read with the one token before it.

    The first is read after the start alone; the last, where it is shorter, is filled with the text before it.
    """
    (ids,) = document.answers
    windows = [Window((*document.context, *ids[:length]), len(document.context))]
    for start in range(length, len(ids), length):
        end = min(start + length, len(ids))
        read = ids[end - length - 1 : end]
        windows.append(Window(read, len(read) - (end - start)))
    return windows


def _generated(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: LoadedTask,
    documents: Sequence[EncodedDocument],
    on_progress: OnProgress | None,
) -> TaskScores:
    completions = complete(
        model,
        tokenizer,
        [list(document.context) for document in documents],
        max_new_tokens=task.file.generation_kwargs.max_gen_toks,
        ends=Ends(task.file.until),
        on_progress=on_progress,
    )
    return TaskScores(outputs=tuple(completion.text for completion in completions))


def _chosen(task: LoadedTask, scores: TaskScores, *, normalized: bool) -> list[int]:
    """Return the place of the likeliest choice of every document, by log-likelihoods or by those per character."""
    lengths = [[len(answer) if normalized else 1 for answer in document.answers] for document in task.documents]
    return [
        int(np.argmax(np.array(found) / np.array(divisors)))
        for found, divisors in zip(scores.log_likelihoods, lengths, strict=True)
    ]


def _matches(task: LoadedTask, scores: TaskScores) -> list[bool]:
    entry = task.file.metric_list[0] if task.file.metric_list else None

    def comparable(text: str) -> str:
        if entry is None:
            return text
        for pattern in entry.regexes_to_ignore:
            text = re.sub(pattern, "", text)
        text = text.lower() if entry.ignore_case else text
        return text.translate(_NO_PUNCTUATION) if entry.ignore_punctuation else text

    return [
        comparable(answer) in map(comparable, document.references)
        for document, answer in zip(task.documents, filtered(task, scores), strict=True)
    ]


def _filtered(text: str, steps: Sequence[FilterFunction]) -> str:
    for step in steps:
        match step.function:
            case "regex":
                text = _extracted(text, step)
            case "remove_whitespace":
                text = text.strip()
            case "lowercase":
                text = text.lower()
            case "take_first":
                pass  # There is one: nothing is sampled.
    return text


def _extracted(text: str, step: FilterFunction) -> str:
    """Return what a pattern finds: of its groups the first that is not empty.

    Where it fits in fewer places than ``group_select`` counts, the fallback; the harness fails there.
    """
    try:
        found = re.findall(step.regex_pattern, text)[step.group_select]
    except IndexError:
        return step.fallback
    if isinstance(found, tuple):
        found = next(filter(None, found), step.fallback)
    return str(found).strip()


_UNITS: Mapping[str, Callable[[str], int]] = {
    "perplexity": lambda _: 1,
    "word_perplexity": lambda text: len(re.split(r"\s+", text)),
    "byte_perplexity": lambda text: len(text.encode()),
    "bits_per_byte": lambda text: len(text.encode()),
}
