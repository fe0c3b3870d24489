"""Manifests as files: read, validated, and made ready for this machine."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from finetuning_api.base import Resource
from finetuning_api.inferenceserver import InferenceServer
from finetuning_api.reasons import Reason
from finetuning_api.sources import Scheme, SourceRef
from finetuning_api.validation import (
    Document,
    ManifestSyntaxError,
    belongs_to_api,
    load_manifests,
    parse_manifest,
    validate_manifest,
)
from finetuning_cli.local.credentials import Secrets, config_map_files, secret_values
from finetuning_operator.reconcile.needs import ARCHIVES
from finetuning_operator.reconcile.relocation import LOCAL_PIN
from finetuning_workload.artifact import artifact_files, hash_file
from finetuning_workload.errors import UserError

_Model = TypeVar("_Model", bound=BaseModel)
_Change = Callable[[SourceRef, str], SourceRef]
_IGNORED_KINDS = frozenset({"Namespace"})


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one file asks for, and the Secrets and ConfigMaps that it brings along."""

    path: Path
    resources: tuple[Resource, ...]
    secrets: Secrets = field(default_factory=Secrets)
    config_maps: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)

    @property
    def names(self) -> str:
        """The names of its objects, for messages."""
        return ", ".join(resource.metadata.name for resource in self.resources)


def read_documents(path: Path) -> list[Document]:
    """Return the documents of a file. Raises UserError when it cannot be read or is no YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(Reason.INVALID_SPEC, f"there is no file {path}", "Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        hint = "Give a YAML file in UTF-8."
        raise UserError(Reason.INVALID_SPEC, f"cannot read {path}: {error}", hint) from error
    return parse_documents(text, str(path))


def parse_documents(text: str, origin: str) -> list[Document]:
    """Return the documents of a text; messages name its origin. Raises UserError when it is no YAML or empty."""
    try:
        documents = load_manifests(text)
    except ManifestSyntaxError as error:
        message = f"{origin}:{error.line}:{error.column}: {error.message}"
        raise UserError(Reason.INVALID_SPEC, message, error.hint) from error
    if not documents:
        raise UserError(Reason.INVALID_SPEC, f"{origin} holds no document", "Write a FineTuningJob into it.")
    return documents


def mistakes(path: Path, documents: Sequence[Document]) -> list[str]:
    """Return every mistake of a file's documents, each as ``file:line: field: what is wrong; what to write``."""
    return [
        f"{path}:{document.line_of(error.location)}: {error}"
        for document in documents
        if belongs_to_api(document.content)
        for error in validate_manifest(document.content)
    ]


def load_manifest(path: Path) -> Manifest:
    """Return what a file asks for, with local paths made absolute and pinned to their content.

    Raises UserError that lists every mistake.
    """
    documents = read_documents(path)
    found = mistakes(path, documents)
    if found:
        raise UserError(Reason.INVALID_SPEC, "\n".join(found), "Nothing was started.")
    own = [document.content for document in documents if belongs_to_api(document.content)]
    others = [document for document in documents if not belongs_to_api(document.content)]
    resources = tuple(localise(parse_manifest(content), path.absolute().parent) for content in own)
    _require_runnable(path, resources)
    return Manifest(
        path=path,
        resources=resources,
        secrets=Secrets({_name(each): secret_values(each) for each in _of_kind(path, others, "Secret")}),
        config_maps={_name(each): config_map_files(each) for each in _of_kind(path, others, "ConfigMap")},
    )


def _require_runnable(path: Path, resources: Sequence[Resource]) -> None:
    if not resources:
        hint = "Write a FineTuningJob, EvaluationJob or Relocation into it."
        raise UserError(Reason.INVALID_SPEC, f"{path} asks for nothing", hint)
    servers = [resource.metadata.name for resource in resources if isinstance(resource, InferenceServer)]
    if servers:
        hint = "Leave it out here; serve a job on this machine with: finetune serve NAME"
        message = f"{path} holds the InferenceServer {servers[0]}, which needs a cluster"
        raise UserError(Reason.UNSUPPORTED, message, hint)
    keys = [(resource.kind, resource.metadata.name) for resource in resources]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        message = f"{path} holds {twice[0][0]} {twice[0][1]} twice"
        raise UserError(Reason.INVALID_SPEC, message, "Give each object a name of its own.")


def _of_kind(path: Path, documents: Sequence[Document], kind: str) -> list[Mapping[str, object]]:
    found = []
    for document in documents:
        content = document.content
        if not isinstance(content, Mapping):
            continue
        if content.get("kind") not in {"Secret", "ConfigMap", *_IGNORED_KINDS}:
            message = f"{path}:{document.line}: {content.get('kind')} is not a kind that runs on one machine"
            hint = "Beside the objects of this API a file may hold Secrets and ConfigMaps."
            raise UserError(Reason.INVALID_SPEC, message, hint)
        if content.get("kind") == kind:
            found.append(content)
    return found


def _name(document: Mapping[str, object]) -> str:
    metadata = document.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""


def localise(resource: Resource, folder: Path) -> Resource:
    """Return an object whose local paths are absolute (relative ones start at ``folder``) and name their content.

    The content enters the identity of the source: a file that changed is another artifact, never the old one's name
    with new bytes. Raises UserError(SOURCE_NOT_FOUND) for a path that does not exist.
    """

    def change(ref: SourceRef, place: str) -> SourceRef:
        if ref.parsed.scheme is not Scheme.FILE:
            return ref
        path = (folder / Path(ref.parsed.location).expanduser()).resolve()
        if not path.exists():
            hint = f"Relative paths start at the manifest's folder, {folder}."
            raise UserError(Reason.SOURCE_NOT_FOUND, f"{place}.source: there is no {path}", hint)
        member = f"#{ref.parsed.member}" if ref.parsed.member else ""
        return ref.model_copy(update={"source": f"file://{path}{member}", **_pin(ref, path)})

    return map_sources(resource, change, place="")


def _pin(ref: SourceRef, path: Path) -> dict[str, object]:
    if ref.revision is not None or ref.checksum is not None:
        return {}
    if path.is_file() and not ref.parsed.member and not path.name.lower().endswith(ARCHIVES):
        return {"checksum": f"sha256:{hash_file(path)}"}
    return {"revision": f"{LOCAL_PIN}{_content_digest(path)}"}


def _content_digest(path: Path) -> str:
    if path.is_file():
        return hash_file(path)
    names = ((file.relative_to(path).as_posix(), hash_file(file)) for file in artifact_files(path))
    return hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in names).encode()).hexdigest()


def map_sources(model: _Model, change: _Change, *, place: str) -> _Model:
    """Return a copy of an object in which every source reference was changed; ``change`` is told its field."""
    if isinstance(model, SourceRef):
        changed = change(model, place)
        return model.model_copy(update={name: getattr(changed, name) for name in SourceRef.model_fields})
    update: dict[str, object] = {}
    for name, info in type(model).model_fields.items():
        if name in {"metadata", "status"}:
            continue
        path = f"{place}.{info.alias or name}".lstrip(".")
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            update[name] = map_sources(value, change, place=path)
        elif isinstance(value, list):
            update[name] = [
                map_sources(item, change, place=f"{path}[{index}]") if isinstance(item, BaseModel) else item
                for index, item in enumerate(value)
            ]
    return model.model_copy(update=update)
