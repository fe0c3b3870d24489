"""A metric of the user's own: one function in a Python file."""

from typing import ClassVar

from pydantic import Field

from finetuning_api import patterns
from finetuning_api.base import CelRule
from finetuning_api.sources import SourceRef


class CustomMetricSpec(SourceRef):
    """A Python file, relocated as data and models are, and the function in it that scores rows."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        *SourceRef.cel_rules,
        CelRule(
            rule="self.allowCode",
            message="the file is run by the evaluation: set allowCode to true if its code may run there",
            field="allowCode",
        ),
    )

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
        " what is expected, and the columns of the data. It returns one finite number for each row; higher is better.",
    )
    allow_code: bool = Field(default=False, description="Whether the code of the file may be run; it must be true.")
