"""The rows behind the numbers: prompt, reference, and what every candidate wrote and scored."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from finetuning_api.metrics import Task, task_metric
from finetuning_api.runconfig import ContractModel
from finetuning_evaluator import folder_tasks
from finetuning_evaluator.candidates import Measured
from finetuning_evaluator.observations import ObservedByMetric
from finetuning_evaluator.results import MetricResult
from finetuning_workload.evaluated import TUNED, is_per_row
from finetuning_workload.task_files import LoadedTask
from finetuning_workload.task_files.file import OutputType

SAMPLES_NAME = "samples.jsonl"
SAMPLES_FOLDER = "samples"
"""Of a file for each task of the user's own."""


class Sample(ContractModel):
    """One held-out row."""

    row_id: str
    prompt: str
    reference: str
    outputs: dict[str, str]
    """By candidate; empty where no metric needs generated text."""
    scores: dict[str, dict[str, float | None]]
    """By candidate and metric; null where the row has nothing to score, for example no token."""

    @property
    def expected(self) -> str:
        """What a report shows beside the outputs."""
        return self.reference


class TaskSample(Sample):
    """One document of a task of the user's own, by its number in the data of the task.

    A candidate's output is what it wrote, or the choice that is likeliest to it.
    """

    choices: tuple[str, ...] = ()
    log_likelihoods: dict[str, tuple[float, ...]]
    """By candidate, in nats: of every choice, or of the reference; empty where text is generated."""
    filtered: dict[str, str] = Field(default_factory=dict)
    """By candidate: what is compared of its output; empty where the file filters nothing."""
    also_right: tuple[str, ...] = ()
    """What would be right as well as the reference."""

    @property
    def expected(self) -> str:
        return "\nor\n".join((self.reference, *self.also_right))


@dataclass(frozen=True, slots=True)
class SampleFile:
    """Samples as they lie in the output folder and stand in a report."""

    path: str
    title: str
    samples: tuple[Sample, ...]


def sample_files(measured: Sequence[Measured], observed: ObservedByMetric) -> tuple[SampleFile, ...]:
    """Return the held-out rows, and the documents of every task of the user's own."""
    of_tasks = (
        SampleFile(
            f"{SAMPLES_FOLDER}/{task.name}.jsonl", f"Samples of {task.name}", tuple(_of_task(task, measured, observed))
        )
        for task in measured[0].inputs.tasks
    )
    return (SampleFile(SAMPLES_NAME, "Samples", _of_rows(measured, observed)), *of_tasks)


def _of_rows(measured: Sequence[Measured], observed: ObservedByMetric) -> tuple[Sample, ...]:
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
            scores=_scores(values, index),
        )
        for index, row in enumerate(rows)
    )


def _of_task(task: LoadedTask, measured: Sequence[Measured], observed: ObservedByMetric) -> Iterator[TaskSample]:
    found = {each.inputs.candidate.name: each.parts[Task.FOLDERS].folders[task.name] for each in measured}
    outputs = {name: folder_tasks.outputs(task, scores) for name, scores in found.items()}
    filtered = {name: folder_tasks.filtered(task, scores) for name, scores in found.items() if task.file.filters}
    metrics = [task_metric(task.name, metric) for metric in task.file.metrics]
    values = {
        name: {metric: observed[metric][name].observations.row_values().tolist() for metric in metrics}
        for name in found
    }
    chooses = task.file.output_type is OutputType.MULTIPLE_CHOICE
    for index, document in enumerate(task.documents):
        yield TaskSample(
            row_id=str(index),
            prompt=document.context,
            reference=document.references[0],
            also_right=document.references[1:],
            choices=document.answers if chooses else (),
            outputs={name: texts[index] for name, texts in outputs.items() if texts},
            log_likelihoods={
                name: scores.log_likelihoods[index] for name, scores in found.items() if scores.log_likelihoods
            },
            filtered={name: texts[index] for name, texts in filtered.items() if texts},
            scores=_scores(values, index),
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


def _scores(values: Mapping[str, Mapping[str, Sequence[float]]], index: int) -> dict[str, dict[str, float | None]]:
    """Return what the candidates scored on one row; ``values`` has columns by candidate and metric."""
    return {
        name: {metric: _finite(column[index]) for metric, column in columns.items()} for name, columns in values.items()
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
