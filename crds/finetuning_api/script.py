"""A user's own program that trains in place of the built-in loop."""

from typing import ClassVar

from pydantic import Field

from finetuning_api.base import CelRule
from finetuning_api.pod import Command
from finetuning_api.sources import SourceRef

MODEL_PATH_ENV = "FINETUNING_MODEL_PATH"
"""Folder of the base model."""
TOKENIZER_PATH_ENV = "FINETUNING_TOKENIZER_PATH"
"""Folder of the tokenizer."""
TRAIN_FILE_ENV = "FINETUNING_TRAIN_FILE"
"""JSON lines of the rows to train on."""
TEST_FILE_ENV = "FINETUNING_TEST_FILE"
"""JSON lines of the held-out rows; the evaluation uses the same."""
OUTPUT_PATH_ENV = "FINETUNING_OUTPUT_PATH"
"""Empty folder for the result."""
CHECKPOINT_PATH_ENV = "FINETUNING_CHECKPOINT_PATH"
"""Folder that outlives a restart; empty unless an attempt of the same training left something there."""
SETTINGS_ENV = "FINETUNING_SETTINGS"
"""spec.method and spec.training as JSON."""


class ScriptSpec(SourceRef):
    """A program, relocated as data and models are, and how it is started."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = SourceRef.cel_rules

    command: Command = Field(
        description="Program and arguments, started in the folder of the relocated files; no shell reads them."
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="Container image with what the program needs, made from the trainer's; unset is the trainer's.",
    )
