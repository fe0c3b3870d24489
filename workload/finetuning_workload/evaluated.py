"""What is evaluated: the held-out rows as each candidate's tokenizer renders them, checked before a model is loaded.

Preflight reads the same before anything is trained: what cannot be measured is told when it has cost nothing yet.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from finetuning_api.metrics import DEFAULT_AGAINST, GateRule, Metric, Task, facts_of, is_of_a_task, task_metric
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import CandidateInput, DatasetInput, EvaluationInputs
from finetuning_workload.answers import choices_of, is_json, options, shared_choices, with_completion
from finetuning_workload.data import Encoder, RenderedRow, held_out_rows, load_table, render_rows
from finetuning_workload.errors import UserError
from finetuning_workload.generation import context_of, require_room
from finetuning_workload.metric_file import require_metric_file
from finetuning_workload.models import load_model_config, load_tokenizer
from finetuning_workload.task_files import LoadedTask, load_task
from finetuning_workload.task_files.encoding import prefix_token, require_tokens

TUNED = "tuned"
TIMED_ROWS = 16
"""As many as latency times: one after another takes long."""
_PER_TOKEN = frozenset({Metric.PERPLEXITY, Metric.COMPLETION_PERPLEXITY, Metric.GENERAL_PERPLEXITY})
_NOT_PER_ROW = frozenset({Task.COLA, Task.PAIRS, Task.GENERAL, Task.LATENCY, Task.FOLDERS})


@dataclass(frozen=True, slots=True)
class CandidateInputs:
    """One candidate with the rows that it is evaluated on."""

    candidate: CandidateInput
    tokenizer: PreTrainedTokenizerBase
    rows: tuple[RenderedRow, ...]
    choices: tuple[str, ...]
    """What all rows choose from, where accuracy is asked for; none where every row has answers of its own."""
    encoding_digest: str
    """sha256 over the token ids of the rows, and of the general text where it is asked for: equal means that values per
    token are comparable."""
    tasks: tuple[LoadedTask, ...] = ()
    """Tasks of the user's own."""

    @property
    def clusters(self) -> NDArray[np.int64] | None:
        """The number of every row's group: [rows]; None where the split groups by no column."""
        groups = [row.group for row in self.rows]
        if None in groups:
            return None
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        return np.array([numbers[group] for group in groups], dtype=np.int64)

    @property
    def groups(self) -> int | None:
        """How many groups the rows come from; None where the split groups by no column."""
        clusters = self.clusters
        return None if clusters is None else int(np.unique(clusters).size)


def is_per_row(metric: str) -> bool:
    """Return whether a metric scores every held-out row, and not texts of its own or a fixed number of rows."""
    return facts_of(metric).task not in _NOT_PER_ROW


def tasks_of(metrics: Sequence[Metric]) -> tuple[Task, ...]:
    """Return the work that the metrics need, each kind once."""
    wanted = {metric.facts.task for metric in metrics}
    return tuple(task for task in Task if task in wanted)


def read_inputs(
    evaluation: EvaluationInputs, dataset: DatasetInput, *, general_text: Sequence[RenderedRow] = ()
) -> tuple[CandidateInputs, ...]:
    """Return the candidates with their held-out rows.

    ``general_text`` is what general-perplexity is about; whoever does not measure it need not have it. Raises
    UserError: METRIC_UNAVAILABLE for a metric that the rows do not allow, UNSUPPORTED for rows that leave no room in a
    model's context, and whatever reading data raises.
    """
    for metric in evaluation.custom:
        require_metric_file(metric)
    tasks = tuple(load_task(task) for task in evaluation.tasks)
    _require_gated(evaluation.gate, tasks)
    read: dict[str, CandidateInputs] = {}
    inputs = []
    for candidate in evaluation.candidates:
        known = read.get(candidate.model.tokenizer_path)
        if known is None:
            found = replace(_read(evaluation, dataset, candidate, general_text=general_text), tasks=tasks)
        else:
            found = replace(known, candidate=candidate)
        read[candidate.model.tokenizer_path] = found
        _require_context(found, evaluation.metrics)
        inputs.append(found)
    _require_same_rows(inputs)
    for rule in evaluation.gate:
        _require_comparable(rule, inputs)
    return tuple(inputs)


def comparable(metric: str, first: CandidateInputs, second: CandidateInputs) -> bool:
    """Return whether two candidates' values of a metric may be subtracted: values per token need the same tokens."""
    return metric not in _PER_TOKEN or first.encoding_digest == second.encoding_digest


def _read(
    evaluation: EvaluationInputs,
    dataset: DatasetInput,
    candidate: CandidateInput,
    *,
    general_text: Sequence[RenderedRow],
) -> CandidateInputs:
    metrics, tokenizer = evaluation.metrics, load_tokenizer(Path(candidate.model.tokenizer_path))
    rows = tuple(row for row in held_out_rows(dataset, tokenizer, limit=evaluation.limit) if row.usable)
    _require_rows(rows, metrics)
    if Metric.COLA_PAIRS in metrics:
        prefix_token(tokenizer, wanted_by=Metric.COLA_PAIRS)
    choices = _choices(dataset, tokenizer, rows, metrics=metrics) if Task.ACCURACY in tasks_of(metrics) else ()
    digest = hashlib.sha256()
    texts = [*rows, *general_text] if Metric.GENERAL_PERPLEXITY in metrics else rows
    for sample in Encoder(tokenizer).encode(texts):
        digest.update(np.array([*sample.ids, -1], dtype=np.int64).tobytes())
    return CandidateInputs(candidate, tokenizer, rows, choices, digest.hexdigest())


def _choices(
    dataset: DatasetInput,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[RenderedRow],
    *,
    metrics: Sequence[Metric],
) -> tuple[str, ...]:
    wanted_by = _wanting(metrics, Task.ACCURACY)
    if dataset.rows.choices is None:
        rendered = render_rows(load_table(Path(dataset.path), dataset.rows), dataset.rows, tokenizer)
        return choices_of([row for row in rendered if row.usable], wanted_by=wanted_by)
    shared = shared_choices(rows, wanted_by=wanted_by)
    if Metric.MACRO_F1 in metrics and not shared:
        message = "macro-f1 needs the same answers in every row; those in the column of dataset.choices differ"
        raise UserError(Reason.METRIC_UNAVAILABLE, message, "Remove macro-f1 from evaluation.metrics.")
    return shared


def _wanting(metrics: Sequence[Metric], task: Task) -> str:
    """Return the metrics that are read from a task, as a person lists them."""
    return " and ".join(metric for metric in metrics if metric.facts.task is task)


def _require_rows(rows: Sequence[RenderedRow], metrics: Sequence[Metric]) -> None:
    if not rows:
        hint = "Hold out more rows: raise dataset.split.test or use more data."
        raise UserError(Reason.SPLIT_EMPTY, "no held-out row can be evaluated", hint)
    needing = [metric for metric in metrics if metric.facts.needs_completions]
    if needing and any(not row.prompt for row in rows):
        names = ", ".join(needing)
        message = f"{names} cannot be computed: rows of plain text have no prompt to complete and no reference answer"
        hint = f"Remove {names} from evaluation.metrics, or set dataset.prompt and dataset.completion."
        raise UserError(Reason.METRIC_UNAVAILABLE, message, hint)
    if Metric.JSON_MATCH in metrics:
        _require_json(rows)


def _require_json(rows: Sequence[RenderedRow]) -> None:
    wrong = [row for row in rows if not is_json(row.completion)]
    if wrong:
        example = f"row {wrong[0].row_id}: {wrong[0].completion[:80]!r}"
        message = f"json-match cannot be computed: {len(wrong)} of {len(rows)} references are no JSON, as {example}"
        hint = "Remove json-match from evaluation.metrics, or make dataset.completion JSON; exact-match suits any text."
        raise UserError(Reason.METRIC_UNAVAILABLE, message, hint)


def _require_context(inputs: CandidateInputs, metrics: Sequence[Metric]) -> None:
    """Raise UserError(UNSUPPORTED) where prompts, or prompts with their answers, are longer than a model's context.

    Documents are scored in windows: for them no row is too long.
    """
    tasks = tasks_of(metrics)
    limit = context_of(load_model_config(Path(inputs.candidate.model.path)))
    encoder = Encoder(inputs.tokenizer)
    for task in inputs.tasks:
        require_tokens(task, inputs.tokenizer, candidate=inputs.candidate.name, limit=limit)
    asked = inputs.rows if Task.GENERATION in tasks else inputs.rows[:TIMED_ROWS] if Task.LATENCY in tasks else ()
    require_room([len(encoder.encode_prompt(row)) for row in asked], limit)
    if Task.ACCURACY in tasks and limit is not None:
        _require_room_for_answers(inputs, limit, wanted_by=_wanting(metrics, Task.ACCURACY))


def _require_room_for_answers(inputs: CandidateInputs, limit: int, *, wanted_by: str) -> None:
    longest = [
        with_completion(row, max(options(row, inputs.choices), key=lambda text: (len(text), text)))
        for row in inputs.rows
    ]
    for sample in Encoder(inputs.tokenizer).encode(longest):
        if len(sample) > limit:
            message = f"{wanted_by}, row {sample.row_id}: prompt and longest answer have {len(sample)} tokens, the"
            hint = f"Shorten the prompt, drop such rows from the data, or remove {wanted_by} from evaluation.metrics."
            raise UserError(Reason.UNSUPPORTED, f"{message} context of {inputs.candidate.name} has {limit}", hint)


def _require_same_rows(inputs: Sequence[CandidateInputs]) -> None:
    first = [row.row_id for row in inputs[0].rows]
    for other in inputs[1:]:
        if [row.row_id for row in other.rows] != first:
            names = f"{inputs[0].candidate.name} and {other.candidate.name}"
            message = f"{names} do not see the same held-out rows: their tokenizers render the data differently"
            raise UserError(Reason.TOKENIZER_MISMATCH, message, "Give both the same tokenizer, or plain templates.")


def _require_gated(rules: Sequence[GateRule], tasks: Sequence[LoadedTask]) -> None:
    """Raise UserError(INVALID_SPEC) for a rule on a metric that the file of its task does not ask for."""
    known = [task_metric(task.name, metric) for task in tasks for metric in task.file.metrics]
    for rule in rules:
        if is_of_a_task(rule.metric) and rule.metric not in known:
            message = f"gate: {rule.metric} is no metric of a task here; there are {', '.join(known)}"
            raise UserError(Reason.INVALID_SPEC, message, "Use one of them, or add it to the metric_list of the file.")


def _require_comparable(rule: GateRule, inputs: Sequence[CandidateInputs]) -> None:
    by_name = {found.candidate.name: found for found in inputs}
    if TUNED not in by_name:
        message = f"gate: the rule on {rule.metric} judges the candidate named {TUNED}, and there is none"
        raise UserError(Reason.INVALID_SPEC, message, f"Name one candidate {TUNED}.")
    if not rule.is_relative:
        return
    against = rule.against or DEFAULT_AGAINST
    if against not in by_name:
        message = f"gate: the rule on {rule.metric} compares with {against!r}, which is no candidate"
        raise UserError(Reason.INVALID_SPEC, message, f"Use one of {', '.join(sorted(by_name))}.")
    if not comparable(rule.metric, by_name[TUNED], by_name[against]):
        message = f"gate: {rule.metric} per token is not comparable between {TUNED} and {against}: other tokenizers"
        raise UserError(
            Reason.METRIC_UNAVAILABLE, message, "Use bits-per-byte, which does not depend on the tokenizer."
        )
