"""The work with one candidate's model, task by task, each kept as a part when it is finished."""

import logging
import math
import time
from collections.abc import Callable
from functools import partial

from pydantic import Field

from finetuning_api.metrics import Task
from finetuning_api.runconfig import ContractModel, EvaluateConfig
from finetuning_evaluator import folder_tasks
from finetuning_evaluator.custom import CustomScores
from finetuning_evaluator.journal import OutputJournal
from finetuning_evaluator.metrics import accuracy, cola, general, latency, pairs, perplexity
from finetuning_workload.candidates import LoadedCandidate
from finetuning_workload.data import Encoder
from finetuning_workload.evaluated import TIMED_ROWS, CandidateInputs
from finetuning_workload.generation import Ends, complete

OnProgress = Callable[[int, int], None]

_LOG = logging.getLogger(__name__)

_MARGIN = 1.2
_LEAST_NEW_TOKENS = 8
_RELATIVE_COST = {
    Task.LIKELIHOOD: 1.0,
    Task.GENERATION: 4.0,
    Task.ACCURACY: 4.0,
    Task.COLA: 2.0,
    Task.PAIRS: 1.0,
    Task.GENERAL: 0.5,
    Task.LATENCY: 4.0,
    Task.FOLDERS: 2.0,
}


class Output(ContractModel):
    """What a candidate wrote for one row."""

    text: str
    tokens: int
    stopped: bool
    """Whether it ended by itself rather than at the limit."""


class TaskPart(ContractModel):
    """The outcome of one task of one candidate; only the field of the task is filled."""

    seconds: float
    likelihood: tuple[perplexity.RowLikelihood, ...] = ()
    outputs: tuple[Output, ...] = ()
    max_new_tokens: int | None = None
    chosen: tuple[str, ...] = ()
    judgements: tuple[cola.Judgement, ...] = ()
    pair_scores: tuple[pairs.PairScore, ...] = ()
    general: tuple[perplexity.RowLikelihood, ...] = ()
    timings: tuple[latency.Timing, ...] = ()
    folders: dict[str, folder_tasks.TaskScores] = Field(default_factory=dict)
    """Of tasks of the user's own, by their names."""
    custom: dict[str, CustomScores] = Field(default_factory=dict)
    """What metrics of the user's own make of the outputs, by their names; computed anew, and not kept with them."""


def cost(task: Task) -> float:
    """Return the share of a task in the work, relative to likelihood: for progress only."""
    return _RELATIVE_COST[task]


def run_task(
    task: Task,
    loaded: LoadedCandidate,
    *,
    inputs: CandidateInputs,
    config: EvaluateConfig,
    open_journal: Callable[[], OutputJournal],
    on_progress: OnProgress,
) -> TaskPart:
    """Do one task with a candidate's model; of a generation goes on with what its journal lacks.

    ``on_progress`` may raise to stop.
    """
    if task is Task.GENERATION:
        with loaded.active(), open_journal() as journal:
            return _generate(loaded, inputs, config, journal=journal, on_progress=on_progress)
    started = time.monotonic()
    with loaded.active():
        part = _WORK[task](loaded, inputs, config, on_progress)
    return part.model_copy(update={"seconds": time.monotonic() - started})


def planned_new_tokens(inputs: CandidateInputs, config: EvaluateConfig) -> int:
    """Return the limit of new tokens: as set, else 1.2 times the longest reference in tokens, at least 8.

    Models that were never taught to stop make the limit matter: they always reach it.
    """
    if config.generation.max_new_tokens is not None:
        return config.generation.max_new_tokens
    tokenizer = inputs.tokenizer
    longest = max(len(tokenizer(row.completion, add_special_tokens=False)["input_ids"]) + 1 for row in inputs.rows)
    return max(_LEAST_NEW_TOKENS, math.ceil(_MARGIN * longest))


def _likelihood(
    loaded: LoadedCandidate, inputs: CandidateInputs, config: EvaluateConfig, on_progress: OnProgress
) -> TaskPart:
    rows = perplexity.score_rows(
        loaded.model, inputs.tokenizer, inputs.rows, max_length=config.max_length, on_progress=on_progress
    )
    return TaskPart(seconds=0, likelihood=tuple(rows))


def _generate(
    loaded: LoadedCandidate,
    inputs: CandidateInputs,
    config: EvaluateConfig,
    *,
    journal: OutputJournal,
    on_progress: OnProgress,
) -> TaskPart:
    limit = planned_new_tokens(inputs, config)
    encoder = Encoder(inputs.tokenizer)
    if journal.known:
        told = (len(journal.known), len(inputs.rows), inputs.candidate.name)
        _LOG.info("%d of %d completions of %s are kept from an earlier attempt", *told)
    completions = complete(
        loaded.model,
        inputs.tokenizer,
        [encoder.encode_prompt(row) for row in inputs.rows],
        max_new_tokens=limit,
        ends=_ends(inputs, config),
        kept=journal,
        on_progress=on_progress,
    )
    outputs = (Output(text=found.text, tokens=found.tokens, stopped=found.stopped) for found in completions)
    return TaskPart(seconds=journal.seconds, outputs=tuple(outputs), max_new_tokens=limit)


def _ends(inputs: CandidateInputs, config: EvaluateConfig) -> Ends:
    """Return what ends a completion: stop texts, and the marks that close a turn in the rows, as training teaches."""
    marks = {segment.closing for row in inputs.rows for segment in row.segments if segment.closing}
    encoded = (inputs.tokenizer(mark, add_special_tokens=False)["input_ids"] for mark in marks)
    return Ends(config.generation.stop, {ids[0] for ids in encoded if len(ids) == 1})


def _accuracy(
    loaded: LoadedCandidate, inputs: CandidateInputs, _config: EvaluateConfig, on_progress: OnProgress
) -> TaskPart:
    chosen = accuracy.choose(
        loaded.model, inputs.tokenizer, inputs.rows, choices=inputs.choices, on_progress=on_progress
    )
    return TaskPart(seconds=0, chosen=tuple(chosen))


def _cola(
    loaded: LoadedCandidate, inputs: CandidateInputs, _config: EvaluateConfig, on_progress: OnProgress
) -> TaskPart:
    judgements = cola.judge(loaded.model, inputs.tokenizer, cola.sentences(), on_progress=on_progress)
    return TaskPart(seconds=0, judgements=tuple(judgements))


def _pairs(
    loaded: LoadedCandidate, inputs: CandidateInputs, _config: EvaluateConfig, on_progress: OnProgress
) -> TaskPart:
    asked = pairs.pairs_of(cola.sentences())
    return TaskPart(
        seconds=0, pair_scores=tuple(pairs.score(loaded.model, inputs.tokenizer, asked, on_progress=on_progress))
    )


def _general(
    loaded: LoadedCandidate, inputs: CandidateInputs, config: EvaluateConfig, on_progress: OnProgress
) -> TaskPart:
    rows = general.score(loaded.model, inputs.tokenizer, max_length=config.max_length, on_progress=on_progress)
    return TaskPart(seconds=0, general=tuple(rows))


def _latency(
    loaded: LoadedCandidate, inputs: CandidateInputs, config: EvaluateConfig, on_progress: OnProgress
) -> TaskPart:
    encoder = Encoder(inputs.tokenizer)
    timings = latency.measure(
        loaded.model,
        inputs.tokenizer,
        [encoder.encode_prompt(row) for row in inputs.rows[:TIMED_ROWS]],
        max_new_tokens=planned_new_tokens(inputs, config),
        ends=_ends(inputs, config),
        on_progress=on_progress,
    )
    return TaskPart(seconds=0, timings=tuple(timings))


def _folders(
    loaded: LoadedCandidate, inputs: CandidateInputs, config: EvaluateConfig, on_progress: OnProgress
) -> TaskPart:
    found = {}
    for number, task in enumerate(inputs.tasks):
        found[task.name] = folder_tasks.score(
            loaded.model,
            inputs.tokenizer,
            task,
            max_length=config.max_length,
            on_progress=partial(_of_several, on_progress, number=number, several=len(inputs.tasks)),
        )
    return TaskPart(seconds=0, folders=found)


def _of_several(on_progress: OnProgress, done: int, whole: int, *, number: int, several: int) -> None:
    """Tell the progress of one task as that of all, which count alike."""
    on_progress(number * whole + done, several * whole)


_WORK = {
    Task.LIKELIHOOD: _likelihood,
    Task.ACCURACY: _accuracy,
    Task.COLA: _cola,
    Task.PAIRS: _pairs,
    Task.GENERAL: _general,
    Task.LATENCY: _latency,
    Task.FOLDERS: _folders,
}
