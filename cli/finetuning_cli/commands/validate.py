"""`finetune validate`: every mistake at once."""

from collections.abc import Sequence
from pathlib import Path

import typer

from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.validation import Document, belongs_to_api, parse_manifest
from finetuning_cli.manifest import mistakes, read_documents
from finetuning_operator.reconcile.accept import refused_by_release
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
        documents = read_documents(path)
    except UserError as error:
        return [" ".join(part for part in (error.message, error.hint) if part)]
    return mistakes(path, documents) or _refusals(path, documents)


def _refusals(path: Path, documents: Sequence[Document]) -> list[str]:
    """Return what the rules of the types cannot say, and would be told as ``Accepted=False``."""
    found = []
    for document in documents:
        resource = parse_manifest(document.content) if belongs_to_api(document.content) else None
        refusal = refused_by_release(resource.spec) if isinstance(resource, FineTuningJob) else None
        if refusal is not None:
            found.append(f"{path}:{document.line}: {refusal.message}")
    return found
