"""`finetune validate`: every mistake at once."""

from collections.abc import Sequence
from pathlib import Path

import typer

from finetuning_cli.manifest import mistakes, read_documents
from finetuning_workload.errors import UserError


def validate_files(files: Sequence[Path]) -> int:
    """Print the mistakes of all files; return the exit code."""
    wrong = 0
    for path in files:
        found = _mistakes(path)
        wrong += len(found)
        for line in found:
            typer.echo(line)
        if not found:
            typer.echo(f"{path}: valid")
    return 1 if wrong else 0


def _mistakes(path: Path) -> list[str]:
    try:
        return mistakes(path, read_documents(path))
    except UserError as error:
        return [" ".join(part for part in (error.message, error.hint) if part)]
