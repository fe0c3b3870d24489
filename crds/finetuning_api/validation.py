"""Tells every mistake of a manifest at once, each with its field, its value and what to write instead."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from finetuning_api import KINDS
from finetuning_api.base import API_VERSION, GROUP, Resource
from finetuning_api.manifests import Document, ManifestSyntaxError, load_manifests
from finetuning_api.metrics import Metric
from finetuning_api.rules import Path, Violation, violations
from finetuning_api.schema import Schema, structural_schema
from finetuning_api.sources import PATH_ADVICE, Scheme, SourceError, SourceRef
from finetuning_api.wording import got, need, shown, suggestion

__all__ = [
    "Document",
    "FieldError",
    "InvalidResourceError",
    "ManifestSyntaxError",
    "belongs_to_api",
    "cluster_only_errors",
    "load_manifests",
    "parse_manifest",
    "parse_stored",
    "validate_manifest",
    "validate_update",
]

_FILLED_IN_BY_SERVER = frozenset(
    {"managedFields", "selfLink", "creationTimestamp", "resourceVersion", "uid", "generation", "generateName"}
)
"""Metadata that ``kubectl get -o yaml`` prints; harmless in a manifest."""
_KIND_BY_NAME: Mapping[str, type[Resource]] = {kind.__name__: kind for kind in KINDS}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One mistake: where, what is there, what is wrong with it, and what to write instead."""

    path: str
    """Field as in the manifest, for example ``spec.evaluation.gate[0].metric``; empty for the whole document."""
    value: object
    message: str
    hint: str = ""
    location: Path = ()
    """The same field part by part, for `Document.line_of`."""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.path, self.message))) + (f"; {self.hint}" if self.hint else "")


class InvalidResourceError(ValueError):
    """An object that is no resource of this API; ``errors`` holds every mistake."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in self.errors))


def belongs_to_api(document: object) -> bool:
    """Return whether a document is meant to be of this API: a manifest file may hold Secrets and the like as well."""
    if not isinstance(document, Mapping) or not {"apiVersion", "kind"} <= document.keys():
        return True
    return str(document["apiVersion"]).startswith(GROUP) or document["kind"] in _KIND_BY_NAME


def validate_manifest(document: object) -> list[FieldError]:
    """Return every mistake of a manifest, in the order of its fields; an empty list means that it can be applied.

    ``status`` is not looked at: an API server ignores it in a manifest too.
    """
    if not isinstance(document, Mapping):
        return [_error((), document, "a manifest is a mapping with apiVersion, kind, metadata and spec")]
    unfit: list[FieldError] = []
    fields = {name: value for name, value in document.items() if name != "status"}
    content = cast("dict[str, object]", _as_json(fields, path=(), errors=unfit))
    kind, header = _kind_of(content)
    if kind is None:
        return [*unfit, *header]
    schema = structural_schema(kind)
    content = {**content, "metadata": _own_metadata(content.get("metadata"))}
    told = {error.location for error in unfit}
    types = _type_errors(kind, _without_nulls(schema, content), schema=schema)
    wrong = [*unfit, *header, *(error for error in types if error.location not in told)]
    # A field that nobody knows keeps no rule from being evaluated.
    broken = [error.location for error in wrong if _node_at(schema, error.location)]
    visible = {**content, "metadata": _visible_metadata(content["metadata"])}
    found = violations(kind, visible, broken=broken)
    return sorted([*wrong, *map(_wrong_value, found)], key=lambda error: _written_place(content, error.location))


def parse_manifest(document: object) -> Resource:
    """Return the resource that a manifest describes; raises InvalidResourceError with every mistake in it."""
    if errors := validate_manifest(document):
        raise InvalidResourceError(errors)
    manifest = cast("Mapping[str, object]", document)
    return parse_stored({name: value for name, value in manifest.items() if name != "status"})


def parse_stored(document: object) -> Resource:
    """Return a stored object as its type, ignoring fields that this version does not know.

    Raises InvalidResourceError for an object that has no known kind, or fields that are not of their type.
    """
    if not isinstance(document, Mapping):
        raise InvalidResourceError([_error((), document, "an object is a mapping with apiVersion, kind and metadata")])
    kind, errors = _kind_of(document)
    if kind is None or errors:
        raise InvalidResourceError(errors)
    schema = structural_schema(kind)
    try:
        return kind.model_validate(_without_nulls(schema, document))
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise InvalidResourceError(_field_error(each, schema=schema) for each in details) from None


def validate_update(old: Mapping[str, object], new: Mapping[str, object]) -> list[FieldError]:
    """Return what forbids replacing a stored object by a new manifest: fields that are fixed at creation.

    Both must be valid by themselves; see validate_manifest.
    """
    kind, errors = _kind_of(new)
    if kind is None:
        return errors
    alone = {_identity(each) for each in violations(kind, _spec_only(new))}
    compared = violations(kind, _spec_only(new), old=_spec_only(old))
    return [_broken_rule(each) for each in compared if _identity(each) not in alone]


def cluster_only_errors(resource: Resource) -> list[FieldError]:
    """Return what works on one machine but not on a cluster: sources that are paths of this machine."""
    return [
        _error(
            (*path, "source"),
            source.source,
            "is a path on this machine, which a cluster cannot read",
            hint=PATH_ADVICE,
        )
        for path, source in _sources(resource, path=())
        if _scheme(source) is Scheme.FILE
    ]


def _scheme(source: SourceRef) -> Scheme | None:
    try:
        return source.parsed.scheme
    except SourceError:
        return None


def _sources(value: object, *, path: Path) -> Iterator[tuple[Path, SourceRef]]:
    if isinstance(value, SourceRef):
        yield path, value
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from _sources(getattr(value, name), path=(*path, field.alias or name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _sources(item, path=(*path, index))


def _error(path: Path, value: object, message: str, *, hint: str = "") -> FieldError:
    return FieldError(path=path_text(path), value=value, message=message, hint=hint, location=path)


def path_text(path: Path) -> str:
    """Return a path as people write it: ``spec.evaluation.gate[0].metric``."""
    text = ""
    for part in path:
        if isinstance(part, int) or "." in part or "/" in part:
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def _kind_of(document: Mapping[str, object]) -> tuple[type[Resource] | None, list[FieldError]]:
    """Return the type of a document, and what is wrong with its apiVersion and kind."""
    errors = []
    version, kind = document.get("apiVersion"), document.get("kind")
    if version != API_VERSION:
        errors.append(_error(("apiVersion",), version, f"needs {API_VERSION}, got {shown(version)}"))
    known = _KIND_BY_NAME.get(kind) if isinstance(kind, str) else None
    if known is None:
        message = f"needs one of {', '.join(_KIND_BY_NAME)}, got {shown(kind)}"
        errors.append(_error(("kind",), kind, message, hint=suggestion(kind, _KIND_BY_NAME)))
    return known, errors


def _as_json(value: object, *, path: Path, errors: list[FieldError]) -> object:
    """Return a copy that JSON can carry, and report what it cannot: odd keys, dates, bytes, .nan and .inf."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                hint = "write it in quotes"
                errors.append(_error((*path, str(key)), key, f"needs text as its name, got {shown(key)}", hint=hint))
        return {
            key: _as_json(item, path=(*path, key), errors=errors) for key, item in value.items() if type(key) is str
        }
    if isinstance(value, list | tuple):
        return [_as_json(item, path=(*path, index), errors=errors) for index, item in enumerate(value)]
    if problem := _unfit(value):
        errors.append(_error(path, value, f"{problem}, got {shown(value)}"))
        return None
    return value


def _unfit(value: object) -> str:
    """Return what a scalar needs to be carried by the JSON of an API server, or nothing where it is fit."""
    if isinstance(value, float) and not math.isfinite(value):
        return "needs a finite number"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "needs a number of at most 64 bits"
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        return "needs text that can be written as UTF-8"
    return "" if isinstance(value, str | int | float | None) else "needs text, a number, true or false"


def _own_metadata(metadata: object) -> object:
    """Return the metadata that a user may write; an API server fills in the rest."""
    if not isinstance(metadata, Mapping):
        return metadata
    return {name: value for name, value in metadata.items() if name not in _FILLED_IN_BY_SERVER and value is not None}


def _visible_metadata(metadata: object) -> dict[str, object]:
    """Return the part of metadata that rules can read."""
    return {"name": metadata["name"]} if isinstance(metadata, Mapping) and "name" in metadata else {}


def _spec_only(document: Mapping[str, object]) -> dict[str, object]:
    return {"metadata": _visible_metadata(document.get("metadata")), "spec": document.get("spec", {})}


def _without_nulls(schema: Schema, value: object) -> object:
    """Leave out the fields that are null: to an API server they are unset."""
    if isinstance(value, Mapping):
        properties: Mapping[str, Schema] = schema.get("properties", {})
        return {
            name: _without_nulls(properties.get(name, {}), item)
            for name, item in value.items()
            if item is not None or name not in properties
        }
    if isinstance(value, list):
        return [_without_nulls(schema.get("items", {}), item) for item in value]
    return value


def _type_errors(kind: type[Resource], content: object, *, schema: Schema) -> list[FieldError]:
    try:
        kind.model_validate_json(json.dumps(content), strict=True, extra="forbid")
    except ValidationError as error:
        details = error.errors(include_url=False)
        # apiVersion and kind have been told already.
        return [
            _field_error(each, schema=schema) for each in details if each["loc"] not in {("apiVersion",), ("kind",)}
        ]
    return []


def _field_error(details: ErrorDetails, *, schema: Schema) -> FieldError:
    """Translate one of pydantic's findings."""
    path, kind, value = _path_of(details), details["type"], details["input"]
    context: Mapping[str, object] = details.get("ctx", {})
    if kind == "missing":
        return _error(path, None, "is missing", hint=_explain(schema, path))
    if kind == "extra_forbidden":
        return _error(path, value, "is not a field of this API", hint=_unknown_field_hint(schema, path))
    hint = ""
    if kind in {"enum", "literal_error"}:
        hint = suggestion(value, str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", "))
    elif kind in {"string_type", "model_type", "list_type", "dict_type"}:
        hint = _form_hint(kind, value=value)
    return _error(path, value, f"{need(kind, context)}, {got(kind, context, value=value)}", hint=hint)


def _path_of(details: ErrorDetails) -> Path:
    return tuple(part for part in details["loc"] if part != "[key]")


def _form_hint(kind: str, *, value: object) -> str:
    """Say how a value of the right form is written in YAML."""
    if kind == "string_type" and isinstance(value, int | float):
        return f'write it in quotes: "{json.dumps(value)}"'
    if kind == "list_type" and not isinstance(value, Mapping | list):
        return f"write [{value}]"
    return ""


def _node_at(schema: Schema, path: Path) -> Schema:
    node = schema
    for part in path:
        below = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
        node = below or node.get("additionalProperties") or {}
    return node


def _explain(schema: Schema, path: Path) -> str:
    text = str(_node_at(schema, path).get("description", ""))
    return text.rstrip(".")


def _unknown_field_hint(schema: Schema, path: Path) -> str:
    """Suggest the nearest name at the same place, else the same name at another place, else list what exists."""
    name = str(path[-1])
    beside = _node_at(schema, path[:-1]).get("properties", {})
    if close := suggestion(name, beside):
        return close
    elsewhere = [place for place in _fields(schema, path=()) if place[-1] == name and place[0] == "spec"]
    if elsewhere:
        return f"did you mean {path_text(elsewhere[0])}?"
    return f"the fields here are {', '.join(beside)}" if beside else ""


def _fields(schema: Schema, *, path: Path) -> Iterator[Path]:
    for name, child in schema.get("properties", {}).items():
        yield (*path, name)
        yield from _fields(child, path=(*path, name))


def _broken_rule(violation: Violation) -> FieldError:
    return _error(violation.path, violation.value, violation.message)


def _wrong_value(violation: Violation) -> FieldError:
    """Return what is wrong with a value, and an address together with itself: its rules do not quote it.

    What holds an @ may hold a password as well.
    """
    value = violation.value
    tellable = violation.path[-1:] == ("source",) and "@" not in str(value)
    message = f"{violation.message}; it is {shown(value)}" if tellable else violation.message
    return _error(violation.path, value, message, hint=_nearest_metric(violation))


def _nearest_metric(violation: Violation) -> str:
    """Return ``did you mean X?`` where a gate names what is no metric at all."""
    if violation.path[-1:] != ("gate",) or not isinstance(violation.value, list):
        return ""
    known = [metric.value for metric in Metric]
    named = [str(rule.get("metric")) for rule in violation.value if isinstance(rule, Mapping)]
    told = (name for name in named if f" is {name};" in violation.message and name not in known)
    return next((suggestion(name, known) for name in told), "")


def _identity(violation: Violation) -> tuple[Path, str]:
    return violation.path, violation.message


def _written_place(content: object, path: Path) -> tuple[int, ...]:
    """Return where a path stands in a document, for sorting; what is not written comes last at its level."""
    places = []
    for part in path:
        if isinstance(content, Mapping):
            places.append(list(content).index(part) if part in content else len(content))
            content = content.get(part)
        elif isinstance(content, list) and isinstance(part, int):
            places.append(part)
            content = content[part] if part < len(content) else None
    return tuple(places)
