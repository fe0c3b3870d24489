"""Metrics of the user's own: a function scores every row, in a process of its own."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydantic import Field, ValidationError

from finetuning_api.reasons import ExitCode
from finetuning_api.runconfig import ContractModel, CustomMetricInput, DatasetInput
from finetuning_evaluator.aggregates import Statistic
from finetuning_evaluator.custom_child import ANSWER_NAME, REQUEST_NAME
from finetuning_evaluator.statistics import Observations
from finetuning_workload.child import inherited, run_child
from finetuning_workload.data import RenderedRow, load_table
from finetuning_workload.metric_file import unavailable
from finetuning_workload.parent import PARENT_ENV
from finetuning_workload.program import Context

_MODULE = "finetuning_evaluator.custom_child"


class CustomScores(ContractModel):
    """What the user's function gave the rows of one candidate, in their order."""

    signature: str
    values: tuple[float, ...]


class _Answer(ContractModel):
    scores: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    problem: str = ""


def score(
    custom: CustomMetricInput,
    outputs: Mapping[str, Sequence[str]],
    *,
    rows: Sequence[RenderedRow],
    dataset: DatasetInput,
    context: Context,
) -> dict[str, CustomScores]:
    """Return the scores of every candidate's outputs, which are in the order of the rows.

    Raises UserError(METRIC_UNAVAILABLE) where the function does not score all rows, Interrupted when asked to stop.
    """
    request = {
        "folder": custom.path,
        "file": custom.file,
        "function": custom.function,
        "predictions": dict(outputs),
        "references": [row.completion for row in rows],
        "rows": _columns(dataset, rows),
        "ids": [row.row_id for row in rows],
    }
    with TemporaryDirectory() as folder:
        # What data may hold and JSON does not (dates, bytes) is given as text.
        (Path(folder) / REQUEST_NAME).write_text(json.dumps(request, default=str), encoding="utf-8")
        scores = _answered(custom, Path(folder), context)
    signature = (
        f"{custom.name}|{custom.function} of {custom.file}|{custom.provenance.source} {custom.provenance.digest}"
    )
    return {name: CustomScores(signature=signature, values=values) for name, values in scores.items()}


def observe(scores: CustomScores) -> Observations:
    """Return the observations of a mean."""
    return Observations(Statistic.MEAN, np.array([[value, 1.0] for value in scores.values], dtype=np.float64))


def _columns(dataset: DatasetInput, rows: Sequence[RenderedRow]) -> list[dict[str, object]]:
    """Return the columns of the data, row by row."""
    wanted = {row.row_id for row in rows}
    table = load_table(Path(dataset.path), dataset.rows)
    found = {row_id: dict(row) for row_id, row in zip(table.row_ids, table, strict=True) if row_id in wanted}
    return [found[row.row_id] for row in rows]


def _answered(custom: CustomMetricInput, folder: Path, context: Context) -> dict[str, tuple[float, ...]]:
    end = run_child(
        # Safe path: a file of the user's must not take the place of a module that is needed to read the request.
        [sys.executable, "-P", "-m", _MODULE],
        name=f"the metric {custom.name}",
        folder=str(folder),
        environment=inherited(context.environment) | {PARENT_ENV: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
        stop=context.stop,
    )
    if end.code != ExitCode.DONE:
        raise unavailable(custom, f"{custom.file} {end.told}", "What it wrote is in the log of this stage.")
    try:
        answer = _Answer.model_validate_json((folder / ANSWER_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        hint = "It must return; it must not end the process."
        raise unavailable(custom, f"{custom.file} ended the process before it gave an answer", hint) from error
    if answer.problem:
        raise unavailable(custom, answer.problem, "Correct the file; what it wrote is in the log of this stage.")
    return answer.scores
