"""The rows behind the numbers: prompt, reference, and what every candidate wrote and scored."""

import math
from collections.abc import Sequence

from finetuning_api.metrics import Task
from finetuning_api.runconfig import ContractModel
from finetuning_evaluator.candidates import Measured
from finetuning_evaluator.observations import ObservedByMetric
from finetuning_evaluator.results import MetricResult
from finetuning_workload.evaluated import TUNED, is_per_row


class Sample(ContractModel):
    """One held-out row."""

    row_id: str
    prompt: str
    reference: str
    outputs: dict[str, str]
    """By candidate; empty where no metric needs generated text."""
    scores: dict[str, dict[str, float | None]]
    """By candidate and metric; null where the row has nothing to score, for example no token."""


def make_samples(measured: Sequence[Measured], observed: ObservedByMetric) -> tuple[Sample, ...]:
    """Return every row in the order of the data. Metrics over other sentences than the rows have no score here."""
    rows = measured[0].inputs.rows
    values = {found.inputs.candidate.name: _row_values(found.inputs.candidate.name, observed) for found in measured}
    return tuple(
        Sample(
            row_id=row.row_id,
            prompt=row.prompt,
            reference=row.completion,
            outputs={
                found.inputs.candidate.name: found.parts[Task.GENERATION].outputs[index].text
                for found in measured
                if Task.GENERATION in found.parts
            },
            scores={
                name: {metric: _finite(column[index]) for metric, column in columns.items()}
                for name, columns in values.items()
            },
        )
        for index, row in enumerate(rows)
    )


def telling(samples: Sequence[Sample], result: MetricResult, *, against: str, count: int) -> tuple[Sample, ...]:
    """Return rows worth reading: where tuned gained most, where it lost most, and the rest evenly spread between."""
    if len(samples) <= count:
        return tuple(samples)
    sign = -1 if result.lower_is_better else 1

    def gain(sample: Sample) -> float:
        mine, theirs = (sample.scores.get(name, {}).get(result.metric) for name in (TUNED, against))
        return 0.0 if mine is None or theirs is None else sign * (mine - theirs)

    ordered = sorted(samples, key=lambda sample: (-gain(sample), sample.row_id))
    step = (len(ordered) - 1) / (count - 1)
    return tuple(ordered[round(index * step)] for index in range(count))


def _row_values(name: str, observed: ObservedByMetric) -> dict[str, list[float]]:
    return {
        metric: by_candidate[name].observations.row_values().tolist()
        for metric, by_candidate in observed.items()
        if is_per_row(metric)
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
