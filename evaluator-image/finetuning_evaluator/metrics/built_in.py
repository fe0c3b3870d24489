"""The texts that metrics bring with them, beside this file: one JSON object a line."""

import hashlib
from functools import cache
from importlib import resources
from typing import TypeVar

from finetuning_api.runconfig import ContractModel

ACCEPTABILITY = "acceptability.jsonl"
GENERAL = "general.jsonl"

Line = TypeVar("Line", bound=ContractModel)


def read_lines(name: str, kind: type[Line]) -> tuple[Line, ...]:
    """Return the lines of a file."""
    return tuple(kind.model_validate_json(line) for line in _content(name).splitlines())


@cache
def built_in_digest() -> str:
    """Return the sha256 over all built-in texts: equal means that metrics on them are about the same text."""
    return hashlib.sha256("\0".join(map(_content, (ACCEPTABILITY, GENERAL))).encode()).hexdigest()


def _content(name: str) -> str:
    return resources.files("finetuning_evaluator.metrics").joinpath(name).read_text(encoding="utf-8")
