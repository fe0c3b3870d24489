"""`finetune apply`: manifests to a cluster, checked by the same rules first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from finetuning_api.reasons import Reason
from finetuning_api.validation import (
    Document,
    belongs_to_api,
    cluster_only_errors,
    parse_stored,
    validate_manifest,
)
from finetuning_cli.cluster.find import ALL_KINDS
from finetuning_cli.cluster.objects_out import print_objects
from finetuning_cli.manifest import parse_documents, read_documents
from finetuning_client import Client, NotFoundError, RefusedError
from finetuning_client.api import CORE_KINDS, Kind, Object
from finetuning_workload.errors import UserError

_ENDINGS = frozenset({".yaml", ".yml", ".json"})
_FILLED_IN_BY_SERVER = frozenset(
    {"managedFields", "selfLink", "creationTimestamp", "resourceVersion", "uid", "generation", "namespace"}
)
_KINDS: Mapping[str, Kind] = {**CORE_KINDS, **{kind.name: kind for kind in ALL_KINDS}}


@dataclass(frozen=True, slots=True)
class Item:
    """One document of a file that is going to be applied."""

    file: str
    document: Document
    kind: Kind

    @property
    def content(self) -> Mapping[str, Any]:
        """Return what is sent: without status, and without what only an API server writes."""
        written: Any = self.document.content
        metadata = {key: value for key, value in written["metadata"].items() if key not in _FILLED_IN_BY_SERVER}
        return {**{key: value for key, value in written.items() if key != "status"}, "metadata": metadata}

    @property
    def name(self) -> str:
        return str(self.content["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """How manifests are applied."""

    force: bool = False
    dry_run: bool = False
    output: str | None = None


def apply_paths(paths: Sequence[Path], *, client: Client, options: ApplyOptions) -> int:
    """Apply files, folders and ``-``; return the exit code. Raises UserError with every mistake, and sends nothing."""
    items = [item for path in paths for item in _items(path)]
    if not items:
        raise UserError(Reason.INVALID_SPEC, "there is nothing to apply", "Name a file that holds a FineTuningJob.")
    found = [line for item in items for line in _mistakes(item, client.connection.namespace)]
    if found:
        raise UserError(Reason.INVALID_SPEC, "\n".join(found), "Nothing was applied.")
    applied, refused = [], 0
    # What jobs refer to goes first.
    for item in sorted(items, key=lambda each: each.kind.name not in CORE_KINDS):
        try:
            applied.append(_apply(item, client=client, options=options))
        except RefusedError as error:
            refused += 1
            typer.echo("\n".join(_refusal(item, error)), err=True)
    if options.output is not None and applied:
        print_objects(applied, output=options.output, as_list=len(items) > 1)
    return 1 if refused else 0


def _items(path: Path) -> list[Item]:
    if str(path) == "-":
        text = typer.get_text_stream("stdin").read()
        return _known("standard input", parse_documents(text, "standard input"))
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _ENDINGS and file.is_file())
        if not files:
            raise UserError(Reason.INVALID_SPEC, f"{path} holds no .yaml, .yml or .json file", "Check the path.")
        return [item for file in files for item in _known(str(file), read_documents(file))]
    return _known(str(path), read_documents(path))


def _known(file: str, documents: Sequence[Document]) -> list[Item]:
    items = []
    for document in documents:
        content = document.content
        name = str(content.get("kind")) if isinstance(content, Mapping) else ""
        kind = _KINDS.get(name)
        if not belongs_to_api(content) and kind is None:
            message = f"{file}:{document.line}: {name} is not a kind that finetune applies"
            hint = "Beside the objects of this API it applies Secrets and ConfigMaps; use kubectl apply for others."
            raise UserError(Reason.UNSUPPORTED, message, hint)
        items.append(Item(file, document, kind or ALL_KINDS[0]))
    return items


def _mistakes(item: Item, namespace: str) -> list[str]:
    """Return what is wrong with a document, each as ``file:line: field: what; what to write``."""
    content, document = item.document.content, item.document
    errors = [] if item.kind.name in CORE_KINDS else validate_manifest(content)
    if not errors and item.kind.name not in CORE_KINDS:
        errors = cluster_only_errors(parse_stored(item.content))
    lines = [f"{item.file}:{document.line_of(error.location)}: {error}" for error in errors]
    metadata = content.get("metadata") if isinstance(content, Mapping) else None
    if item.kind.name in CORE_KINDS and not (isinstance(metadata, Mapping) and metadata.get("name")):
        lines.append(f"{item.file}:{document.line}: metadata.name: is missing")
    written = metadata.get("namespace") if isinstance(metadata, Mapping) else None
    if written not in {None, namespace}:
        line = document.line_of(("metadata", "namespace"))
        message = f"is {written}, but {namespace} is where it would be applied; write -n {written}"
        lines.append(f"{item.file}:{line}: metadata.namespace: {message}")
    return lines


def _apply(item: Item, *, client: Client, options: ApplyOptions) -> Object:
    before = _stored(item, client)
    sent = client.api.apply(item.kind, item.content, name=item.name, force=options.force, dry_run=options.dry_run)
    if options.output is None:
        note = " (dry run)" if options.dry_run else ""
        typer.echo(f"{item.kind.name} {item.name} {_verb(before, sent)}{note} ({client.connection.place})")
    return sent


def _stored(item: Item, client: Client) -> Object | None:
    if item.kind.name == "Secret":
        return None  # Writing a Secret must not need the right to read it.
    try:
        return client.api.get(item.kind, item.name)
    except NotFoundError as error:
        if error.message.startswith("there is no namespace"):
            raise
        return None


def _verb(before: Object | None, after: Object) -> str:
    if before is None:
        return "applied" if after["kind"] == "Secret" else "created"
    return "unchanged" if before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"] else "changed"


def _refusal(item: Item, error: RefusedError) -> list[str]:
    """Return the server's refusal with the lines of the file that it is about."""
    if not error.causes:
        return [f"error: {error.message}"]
    head = f"error: the cluster refuses {item.kind.name} {item.name}:"
    return [head, *(f"  {item.file}:{_line(item, cause.field)}: {cause}" for cause in error.causes)]


def _line(item: Item, field: str) -> int:
    """Return the line of a field that is written as ``spec.evaluation.gate[0].metric``."""
    parts = field.replace("[", ".").replace("]", "").split(".")
    return item.document.line_of(tuple(int(part) if part.isdigit() else part for part in parts if part))
