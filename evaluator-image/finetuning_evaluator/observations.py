"""From finished parts to observations: every requested metric of every candidate, row by row."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from finetuning_api.metrics import Metric, Task, task_metric
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import CustomMetricInput
from finetuning_evaluator import custom, folder_tasks
from finetuning_evaluator.metrics import (
    accuracy,
    cola,
    general,
    latency,
    matching,
    pairs,
    perplexity,
    readability,
    rouge,
    translation,
)
from finetuning_evaluator.statistics import Observations
from finetuning_evaluator.tasks import TaskPart
from finetuning_workload.answers import is_json
from finetuning_workload.errors import UserError
from finetuning_workload.evaluated import CandidateInputs, is_per_row
from finetuning_workload.task_files.file import LOWER_IS_BETTER

Parts = Mapping[Task, TaskPart]


@dataclass(frozen=True, slots=True)
class Observed:
    """One metric of one candidate."""

    observations: Observations
    signature: str
    details: dict[str, float] = field(default_factory=dict)
    lower_is_better: bool = False


ObservedByMetric = Mapping[str, Mapping[str, Observed]]
"""By metric, then by candidate."""


def observe(
    metric: Metric, inputs: CandidateInputs, *, part: TaskPart, tokenizer: rouge.RougeTokenizer, max_length: int
) -> Observed:
    """Return what a candidate scored on every row. Raises UserError(METRIC_UNAVAILABLE) for a value without meaning."""
    observed = _observe(metric, inputs, part=part, tokenizer=tokenizer, max_length=max_length)
    observed = replace(observed, lower_is_better=metric.facts.lower_is_better)
    if is_per_row(metric):
        observed = replace(observed, observations=replace(observed.observations, clusters=inputs.clusters))
    _require_finite(metric, observed.observations.value(), inputs)
    return observed


def _require_finite(metric: str, value: float, inputs: CandidateInputs) -> None:
    if not math.isfinite(value):
        message = f"{metric} of {inputs.candidate.name} is {value}: there is no token to score, no word was written, or"
        hint = f"Check the data and the model, training may have diverged; or remove {metric} from evaluation.metrics."
        raise UserError(Reason.METRIC_UNAVAILABLE, f"{message} the model's outputs are not finite", hint)


def observe_own(metric: CustomMetricInput, inputs: CandidateInputs, part: TaskPart) -> Observed:
    """Return what a metric of the user's own makes of a candidate's outputs."""
    scores = part.custom[metric.name]
    observations = replace(custom.observe(scores), clusters=inputs.clusters)
    return Observed(observations, scores.signature, _output_details(part), lower_is_better=metric.lower_is_better)


def observe_tasks(inputs: CandidateInputs, part: TaskPart, *, max_length: int) -> Iterator[tuple[str, Observed]]:
    """Return every metric of every task of the user's own, by its name in the table.

    Raises UserError(METRIC_UNAVAILABLE) for a value without meaning.
    """
    for task in inputs.tasks:
        scores = part.folders[task.name]
        for metric in task.file.metrics:
            name, found = task_metric(task.name, metric), folder_tasks.observe(task, metric, scores)
            # The likeliest of choices would be one even where no likelihood is a number.
            likelihood = sum(sum(document) for document in scores.log_likelihoods)
            _require_finite(name, found.value() if math.isfinite(likelihood) else likelihood, inputs)
            signature = folder_tasks.signature(task, metric, max_length=max_length)
            yield name, Observed(found, signature, lower_is_better=metric in LOWER_IS_BETTER)


def _observe(
    metric: Metric, inputs: CandidateInputs, *, part: TaskPart, tokenizer: rouge.RougeTokenizer, max_length: int
) -> Observed:
    match metric.facts.task:
        case Task.LIKELIHOOD:
            signature = perplexity.signature(metric, max_length=max_length)
            return Observed(perplexity.observe(metric, part.likelihood), signature)
        case Task.GENERATION:
            return _generated(metric, inputs, part, tokenizer)
        case Task.ACCURACY:
            return _chosen(metric, inputs, part)
        case other:
            return _apart_from_rows(other, part, max_length=max_length)


def _apart_from_rows(task: Task, part: TaskPart, *, max_length: int) -> Observed:
    """Return what is measured on sentences and passages of our own, or with a clock."""
    match task:
        case Task.COLA:
            found = cola.observe(cola.sentences(), part.judgements)
            return Observed(found, cola.SIGNATURE, cola.details(found))
        case Task.PAIRS:
            details = pairs.details(pairs.pairs_of(cola.sentences()), part.pair_scores)
            return Observed(pairs.observe(part.pair_scores), pairs.SIGNATURE, details)
        case Task.GENERAL:
            signature = general.signature(max_length=max_length)
            return Observed(general.observe(part.general), signature, general.details(part.general))
        case Task.LATENCY:
            return Observed(latency.observe(part.timings), latency.SIGNATURE, latency.details(part.timings))
    raise LookupError(task)


def _chosen(metric: Metric, inputs: CandidateInputs, part: TaskPart) -> Observed:
    references = [row.completion for row in inputs.rows]
    signature = accuracy.signature(metric, own_choices=any(row.choices for row in inputs.rows))
    if metric is Metric.MACRO_F1:
        return Observed(accuracy.observe_f1(inputs.choices, part.chosen, references), signature)
    right = [chosen == reference for chosen, reference in zip(part.chosen, references, strict=True)]
    return Observed(matching.observe(right), signature)


def _generated(metric: Metric, inputs: CandidateInputs, part: TaskPart, tokenizer: rouge.RougeTokenizer) -> Observed:
    references = [row.completion for row in inputs.rows]
    texts = [output.text for output in part.outputs]
    details = _output_details(part)
    if metric in _MATCHES:
        is_match, signature = _MATCHES[metric]
        matches = [is_match(reference, text) for reference, text in zip(references, texts, strict=True)]
        if metric is Metric.JSON_MATCH:
            details["jsonShare"] = sum(map(is_json, texts)) / len(texts)
        return Observed(matching.observe(matches), signature, details)
    if metric in translation.TRANSLATION_METRICS:
        return Observed(translation.observe(metric, references, texts), translation.signature(metric), details)
    if metric in readability.READABILITY_METRICS:
        return Observed(readability.observe(metric, texts), readability.signature(metric), details)
    scores = [rouge.score_text(reference, text, tokenizer) for reference, text in zip(references, texts, strict=True)]
    return Observed(rouge.observe(metric, scores), rouge.signature(tokenizer), details)


_MATCHES: Mapping[Metric, tuple[Callable[[str, str], bool], str]] = {
    Metric.EXACT_MATCH: (matching.is_match, matching.EXACT),
    Metric.NORMALIZED_MATCH: (matching.is_normalized_match, matching.NORMALIZED),
    Metric.JSON_MATCH: (matching.is_json_match, matching.JSON),
}


def _output_details(part: TaskPart) -> dict[str, float]:
    """Return what explains scores of texts: how many are empty, cut at the limit, and how long they are."""
    rows = len(part.outputs)
    return {
        "emptyShare": sum(not output.text.strip() for output in part.outputs) / rows,
        "cutShare": sum(not output.stopped for output in part.outputs) / rows,
        "meanTokens": sum(output.tokens for output in part.outputs) / rows,
    }
