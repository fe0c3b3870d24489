"""What is evaluated: the held-out rows as each candidate's tokenizer renders them, checked before a model is loaded."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetuning_api.metrics import GateRule, Metric
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import CandidateInput, EvaluateConfig
from finetuning_evaluator.gate import DEFAULT_AGAINST, is_relative
from finetuning_evaluator.metrics.accuracy import choices_of, shared_choices
from finetuning_evaluator.metrics.general import passages
from finetuning_evaluator.metrics.matching import is_json
from finetuning_evaluator.metrics.pairs import prefix_token
from finetuning_evaluator.metrics.perplexity import LIKELIHOOD_METRICS
from finetuning_evaluator.metrics.rouge import ROUGE_METRICS
from finetuning_evaluator.metrics.translation import TRANSLATION_METRICS
from finetuning_evaluator.statistics import IntArray
from finetuning_workload.data import Encoder, RenderedRow, held_out_rows, load_table, render_rows
from finetuning_workload.errors import UserError
from finetuning_workload.models import load_tokenizer

TUNED = "tuned"
_PER_TOKEN = frozenset({Metric.PERPLEXITY, Metric.COMPLETION_PERPLEXITY, Metric.GENERAL_PERPLEXITY})


class Task(StrEnum):
    """A kind of work with the model; several metrics may be read from one."""

    LIKELIHOOD = "likelihood"
    GENERATION = "generation"
    ACCURACY = "accuracy"
    COLA = "cola"
    PAIRS = "cola-pairs"
    GENERAL = "general-perplexity"
    LATENCY = "latency"


_NOT_PER_ROW = frozenset({Task.COLA, Task.PAIRS, Task.GENERAL, Task.LATENCY})
_GENERATED = frozenset(
    {*ROUGE_METRICS, *TRANSLATION_METRICS, Metric.EXACT_MATCH, Metric.NORMALIZED_MATCH, Metric.JSON_MATCH}
)


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

    @property
    def clusters(self) -> IntArray | None:
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


def task_of(metric: Metric) -> Task:
    """Return the work that a metric is read from."""
    if metric in LIKELIHOOD_METRICS:
        return Task.LIKELIHOOD
    if metric in _GENERATED:
        return Task.GENERATION
    if metric is Metric.MACRO_F1:
        return Task.ACCURACY
    return Task(metric.value)


def is_per_row(metric: Metric) -> bool:
    """Return whether a metric scores every held-out row, and not texts of its own or a fixed number of rows."""
    return task_of(metric) not in _NOT_PER_ROW


def tasks_of(metrics: Sequence[Metric]) -> tuple[Task, ...]:
    """Return the work that the metrics need, each kind once."""
    wanted = {task_of(metric) for metric in metrics}
    return tuple(task for task in Task if task in wanted)


def read_inputs(config: EvaluateConfig) -> tuple[CandidateInputs, ...]:
    """Return the candidates with their held-out rows.

    Raises UserError: METRIC_UNAVAILABLE for a metric that the rows do not allow, and whatever reading data raises.
    """
    read: dict[str, CandidateInputs] = {}
    inputs = []
    for candidate in config.candidates:
        known = read.get(candidate.model.tokenizer_path)
        found = _read(config, candidate) if known is None else _renamed(known, candidate)
        read[candidate.model.tokenizer_path] = found
        inputs.append(found)
    _require_same_rows(inputs)
    for rule in config.gate:
        _require_comparable(rule, inputs)
    return tuple(inputs)


def comparable(metric: Metric, first: CandidateInputs, second: CandidateInputs) -> bool:
    """Return whether two candidates' values of a metric may be subtracted: values per token need the same tokens."""
    return metric not in _PER_TOKEN or first.encoding_digest == second.encoding_digest


def _read(config: EvaluateConfig, candidate: CandidateInput) -> CandidateInputs:
    tokenizer = load_tokenizer(Path(candidate.model.tokenizer_path))
    rows = tuple(row for row in held_out_rows(config.dataset, tokenizer, limit=config.limit) if row.usable)
    _require_rows(rows, config.metrics)
    if Metric.COLA_PAIRS in config.metrics:
        prefix_token(tokenizer)
    choices = _choices(config, tokenizer, rows) if Task.ACCURACY in tasks_of(config.metrics) else ()
    digest = hashlib.sha256()
    texts = [*rows, *passages()] if Metric.GENERAL_PERPLEXITY in config.metrics else rows
    for sample in Encoder(tokenizer).encode(texts):
        digest.update(np.array([*sample.ids, -1], dtype=np.int64).tobytes())
    return CandidateInputs(candidate, tokenizer, rows, choices, digest.hexdigest())


def _choices(
    config: EvaluateConfig, tokenizer: PreTrainedTokenizerBase, rows: Sequence[RenderedRow]
) -> tuple[str, ...]:
    wanted_by = " and ".join(metric for metric in config.metrics if task_of(metric) is Task.ACCURACY)
    if config.dataset.rows.choices is None:
        table = load_table(Path(config.dataset.path), config.dataset.rows)
        rendered = render_rows(table, config.dataset.rows, tokenizer)
        return choices_of([row for row in rendered if row.usable], wanted_by=wanted_by)
    shared = shared_choices(rows, wanted_by=wanted_by)
    if Metric.MACRO_F1 in config.metrics and not shared:
        message = "macro-f1 needs the same answers in every row; those in the column of dataset.choices differ"
        raise UserError(Reason.METRIC_UNAVAILABLE, message, "Remove macro-f1 from evaluation.metrics.")
    return shared


def _renamed(known: CandidateInputs, candidate: CandidateInput) -> CandidateInputs:
    return CandidateInputs(candidate, known.tokenizer, known.rows, known.choices, known.encoding_digest)


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


def _require_same_rows(inputs: Sequence[CandidateInputs]) -> None:
    first = [row.row_id for row in inputs[0].rows]
    for other in inputs[1:]:
        if [row.row_id for row in other.rows] != first:
            names = f"{inputs[0].candidate.name} and {other.candidate.name}"
            message = f"{names} do not see the same held-out rows: their tokenizers render the data differently"
            raise UserError(Reason.TOKENIZER_MISMATCH, message, "Give both the same tokenizer, or plain templates.")


def _require_comparable(rule: GateRule, inputs: Sequence[CandidateInputs]) -> None:
    by_name = {found.candidate.name: found for found in inputs}
    if TUNED not in by_name:
        message = f"gate: the rule on {rule.metric} judges the candidate named {TUNED}, and there is none"
        raise UserError(Reason.INVALID_SPEC, message, f"Name one candidate {TUNED}.")
    if not is_relative(rule):
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
