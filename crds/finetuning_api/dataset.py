"""How rows of data become training and evaluation samples."""

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from finetuning_api import patterns
from finetuning_api.base import INT32_MAX, ApiModel, CelRule
from finetuning_api.sources import SourceRef


class DataFormat(StrEnum):
    """File formats that are read."""

    AUTO = "auto"
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    ARROW = "arrow"
    TEXT = "text"


class OverlongPolicy(StrEnum):
    """What happens to a row with more than maxLength tokens."""

    TRUNCATE = "truncate"
    DROP = "drop"
    ERROR = "error"


class DatasetSplit(ApiModel):
    """Which rows are held out. A row's side follows from a hash of its content and the seed, never from its place."""

    test: float = Field(default=0.1, gt=0, lt=1, description="Share of rows held out for evaluation, 0 < test < 1.")
    seed: int = Field(default=42, ge=0, le=INT32_MAX, description="Seed of the split.")
    group_by: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Column whose equal values never straddle the split; unset groups by equal prompt.",
    )


def learned_prompt_rule(*, unless: str = "") -> CelRule:
    """Return the rule of a spec whose data is learned or compared: a prompt alone has nothing that could be."""
    return CelRule(
        rule=f"{unless and f'{unless} || '}!has(self.dataset.prompt) || has(self.dataset.completion)",
        message="prompt needs completion: the part that the model learns to write",
        field="dataset.prompt",
    )


class RowFormat(ApiModel):
    """How rows are read and rendered; the part of a data set that programs in pods need."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="[has(self.completion), has(self.messages), has(self.text)].filter(x, x).size() <= 1",
            message="set one of completion, messages and text: they are three ways to make a sample of a row",
            field="completion",
        ),
        CelRule(
            rule="!has(self.rejected) || (has(self.prompt) && has(self.completion))",
            message="rejected is the worse one of two outputs for a prompt; set prompt, and completion for the better",
            field="rejected",
        ),
        CelRule(
            rule="!has(self.choices) || has(self.prompt) || has(self.messages)",
            message="choices are answers to a prompt; set prompt and completion, or messages",
            field="choices",
        ),
    )

    format: DataFormat = Field(default=DataFormat.AUTO, description="File format; auto decides by file name.")
    prompt: str | None = Field(
        default=None,
        max_length=16384,
        pattern=patterns.TEMPLATE.regex,
        description="Template of the input with {column} placeholders, for example 'Triage this:\\n{message}\\n'."
        " Carries no loss. Only what is predicted (mode predict of an EvaluationJob) needs no completion.",
    )
    completion: str | None = Field(
        default=None,
        min_length=1,
        max_length=16384,
        pattern=patterns.TEMPLATE.regex,
        description="Template of the output with {column} placeholders; its tokens and the closing EOS carry loss."
        " Without prompt it is plain language modelling.",
    )
    rejected: str | None = Field(
        default=None,
        min_length=1,
        max_length=16384,
        pattern=patterns.TEMPLATE.regex,
        description="Template of an output that is worse than completion, for training.objective dpo; rows without one,"
        " or with the same twice, are not trained on.",
    )
    messages: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Column that holds chat messages [{role, content}, ...];"
        " the tokenizer's chat template renders them.",
    )
    text: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Column of plain text. With none of completion, messages and text, the column text is used.",
    )
    choices: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Column that holds each row's own list of answers to choose from, the right one among them, for the"
        " metric accuracy; unset compares all distinct completions of the data.",
    )
    split: DatasetSplit = Field(default_factory=DatasetSplit, description="Which rows are held out.")
    limit: int | None = Field(
        default=None, ge=1, le=1_000_000_000, description="Use at most this many rows, chosen by hash; unset uses all."
    )


class DatasetSpec(RowFormat, SourceRef):
    """A data set: where it is and how its rows become samples."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = SourceRef.cel_rules + RowFormat.cel_rules

    def row_format(self) -> RowFormat:
        """Return the part that programs need, without the source."""
        return RowFormat.model_validate(self.model_dump(include=set(RowFormat.model_fields)))

    def source_ref(self) -> SourceRef:
        """Return the part that relocation needs, without the rendering."""
        return SourceRef.model_validate(self.model_dump(include=set(SourceRef.model_fields)))
