"""Objects as YAML files: what a cluster keeps in its API server, with a digest against damage."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import yaml

from finetuning_api import KINDS
from finetuning_api.base import Resource
from finetuning_api.reasons import Reason
from finetuning_cli.local.layout import Layout
from finetuning_workload.errors import UserError
from finetuning_workload.files import explained_os_errors, write_atomically

_LOG = logging.getLogger(__name__)
_KINDS: Mapping[str, type[Resource]] = {kind.model_fields["kind"].default: kind for kind in KINDS}
_HEADER = "# Written by finetune; changes by hand are refused."
_SPEC_MARK, _BODY_MARK = "# spec: ", "# all: "

Key = tuple[str, str]
"""Kind and name."""


def key_of(resource: Resource) -> Key:
    """Return the kind and the name of an object."""
    return resource.kind, resource.metadata.name


class Store:
    """The objects of one state folder. Every write is atomic; every read is checked."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._saved: dict[Key, Resource] = {}

    def get(self, kind: str, name: str) -> Resource | None:
        """Return one object, None where there is none.

        Damage to the status alone is repaired: it follows from what ran. Raises UserError(STATE_CORRUPT) for other
        damage.
        """
        path = self._layout.object_file(kind, name)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise _corrupt(path, "it is no text") from error
        resource = _parse(path, text, _KINDS[kind])
        if key_of(resource) != (kind, name):
            raise _corrupt(path, f"it holds {resource.kind} {resource.metadata.name}")
        self._saved[kind, name] = resource
        return resource

    def all(self) -> dict[Key, Resource]:
        """Return every object by kind and name."""
        found: dict[Key, Resource] = {}
        for kind in _KINDS:
            for path in sorted((self._layout.objects / kind).glob("*.yaml")):
                resource = self.get(kind, path.stem)
                if resource is not None:
                    found[kind, path.stem] = resource
        return found

    def save(self, resource: Resource) -> bool:
        """Write an object when it differs from what is stored; return whether it did."""
        key = key_of(resource)
        if self._saved.get(key) == resource:
            return False
        with explained_os_errors("write the state folder"):
            write_atomically(self._layout.object_file(*key), render(resource))
        self._saved[key] = resource
        return True

    def delete(self, kind: str, name: str) -> None:
        """Forget an object."""
        self._saved.pop((kind, name), None)
        self._layout.object_file(kind, name).unlink(missing_ok=True)


def to_yaml(resource: Resource) -> str:
    """Return an object as the YAML that a cluster would show."""
    return yaml.safe_dump(resource.to_wire(), sort_keys=False, allow_unicode=True, width=120)


def render(resource: Resource) -> str:
    """Return the content of an object's file."""
    body = to_yaml(resource)
    return f"{_HEADER}\n{_SPEC_MARK}{_spec_digest(resource.to_wire())}\n{_BODY_MARK}{_digest(body)}\n{body}"


def _parse(path: Path, text: str, kind: type[Resource]) -> Resource:
    lines = text.split("\n", 3)
    if len(lines) != 4 or not (lines[1].startswith(_SPEC_MARK) and lines[2].startswith(_BODY_MARK)):  # noqa: PLR2004
        raise _corrupt(path, "its first lines are missing")
    body = lines[3]
    intact = lines[2].removeprefix(_BODY_MARK) == _digest(body)
    try:
        document = yaml.safe_load(body)
        if not intact:
            document = _without_status(path, document, lines[1].removeprefix(_SPEC_MARK))
        return kind.model_validate(document)
    except (yaml.YAMLError, ValueError) as error:
        raise _corrupt(path, "its content cannot be read") from error


def _without_status(path: Path, document: object, digest: str) -> dict[str, object]:
    if not isinstance(document, dict) or _spec_digest(document) != digest:
        raise _corrupt(path, "its content does not fit its digest")
    _LOG.warning("%s was damaged in its status, which is found out again from what ran", path)
    return {name: value for name, value in document.items() if name != "status"}


def _spec_digest(document: Mapping[str, object]) -> str:
    fixed = {name: value for name, value in document.items() if name != "status"}
    return _digest(json.dumps(fixed, sort_keys=True))


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _corrupt(path: Path, what: str) -> UserError:
    hint = (
        f"Put the file back from a backup, or remove it with: finetune delete {path.stem}; what was relocated stays,"
        " everything else of it starts anew."
    )
    return UserError(Reason.STATE_CORRUPT, f"the state file {path} is damaged: {what}", hint)
