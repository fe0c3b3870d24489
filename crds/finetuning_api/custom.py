"""Metrics of the user's own, functions in Python files, and tasks, files of lm-evaluation-harness."""

from typing import ClassVar

from pydantic import Field

from finetuning_api import patterns
from finetuning_api.base import CelRule
from finetuning_api.metrics import OwnName, RequestedMetric, TaskName
from finetuning_api.sources import SourceRef

_TAKEN = [metric.value for metric in RequestedMetric]
"""In CEL: a list of strings in single quotes, as Python writes it too."""


class CustomMetricSpec(SourceRef):
    """A Python file, relocated as data and models are, and the function in it that scores rows."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        *SourceRef.cel_rules,
        CelRule(
            rule="self.allowCode",
            message="the file is run by the evaluation: set allowCode to true if its code may run there",
            field="allowCode",
        ),
        CelRule(
            rule=f"!(self.name in {_TAKEN})",
            message="a metric of your own needs a name that no built-in metric has, and not rouge, custom or tasks",
            field="name",
        ),
    )

    name: OwnName = Field(description="Name in the table, in gate rules and in samples.")
    file: str = Field(
        default="metric.py",
        max_length=256,
        pattern=patterns.PYTHON_FILE.regex,
        description="The file in the source; others beside it can be imported.",
    )
    function: str = Field(
        default="score",
        min_length=1,
        max_length=128,
        pattern=patterns.VARIABLE.regex,
        description="Function of (predictions, references, rows), lists of the same length: what a candidate wrote,"
        " what is expected, and the columns of the data. It returns one finite number for each row.",
    )
    lower_is_better: bool = Field(
        default=False, description="Whether fewer is better: which way a gate rule and the report read a difference."
    )
    allow_code: bool = Field(default=False, description="Whether the code of the file may be run; it must be true.")


class TaskSpec(SourceRef):
    """A task in the format of lm-evaluation-harness: a folder of YAML files with their data, relocated as data is."""

    name: TaskName = Field(
        description="The task as its file names it (task: capitals); its metrics are called capitals.acc in the table."
    )
