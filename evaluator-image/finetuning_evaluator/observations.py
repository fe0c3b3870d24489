"""From finished parts to observations: every requested metric of every candidate, row by row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from finetuning_api.metrics import Metric
from finetuning_api.reasons import Reason
from finetuning_evaluator.inputs import CandidateInputs, Task, has_own_texts, task_of
from finetuning_evaluator.metrics import accuracy, cola, matching, perplexity, rouge
from finetuning_evaluator.statistics import Observations
from finetuning_evaluator.tasks import TaskPart
from finetuning_workload.errors import UserError

Parts = Mapping[Task, TaskPart]


@dataclass(frozen=True, slots=True)
class Observed:
    """One metric of one candidate."""

    observations: Observations
    signature: str
    details: dict[str, float] = field(default_factory=dict)


def observe(
    metric: Metric, inputs: CandidateInputs, *, part: TaskPart, tokenizer: rouge.RougeTokenizer, max_length: int
) -> Observed:
    """Return what a candidate scored on every row. Raises UserError(METRIC_UNAVAILABLE) for a value without meaning."""
    references = [row.completion for row in inputs.rows]
    observed = _observe(metric, references, part=part, tokenizer=tokenizer, max_length=max_length)
    if not has_own_texts(metric):
        observed = replace(observed, observations=replace(observed.observations, clusters=inputs.clusters))
    value = observed.observations.value()
    if not math.isfinite(value):
        message = f"{metric} of {inputs.candidate.name} is {value}: the rows have no token to score, or the model's"
        hint = "Check the data and the model; training may have diverged."
        raise UserError(Reason.METRIC_UNAVAILABLE, f"{message} outputs are not finite", hint)
    return observed


def _observe(
    metric: Metric, references: Sequence[str], *, part: TaskPart, tokenizer: rouge.RougeTokenizer, max_length: int
) -> Observed:
    match task_of(metric):
        case Task.LIKELIHOOD:
            signature = perplexity.signature(metric, max_length=max_length)
            return Observed(perplexity.observe(metric, part.likelihood), signature)
        case Task.COLA:
            found = cola.observe(cola.sentences(), part.judgements)
            return Observed(found, cola.SIGNATURE, cola.details(found))
        case Task.ACCURACY:
            right = [chosen == reference for chosen, reference in zip(part.chosen, references, strict=True)]
            return Observed(matching.observe(right), accuracy.SIGNATURE)
    pairs = list(zip(references, (output.text for output in part.outputs), strict=True))
    if metric is Metric.EXACT_MATCH:
        matches = [matching.is_match(reference, text) for reference, text in pairs]
        return Observed(matching.observe(matches), "exact-match|white space trimmed", _output_details(part))
    scores = [rouge.score_text(reference, text, tokenizer) for reference, text in pairs]
    return Observed(rouge.observe(metric, scores), rouge.signature(tokenizer), _output_details(part))


def _output_details(part: TaskPart) -> dict[str, float]:
    """Return what explains scores of texts: how many are empty, cut at the limit, and how long they are."""
    rows = len(part.outputs)
    return {
        "emptyShare": sum(not output.text.strip() for output in part.outputs) / rows,
        "cutShare": sum(not output.stopped for output in part.outputs) / rows,
        "meanTokens": sum(output.tokens for output in part.outputs) / rows,
    }
