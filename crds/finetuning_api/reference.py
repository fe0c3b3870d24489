"""The manifest reference: every field of every kind as Markdown, generated from the types."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from finetuning_api import KINDS
from finetuning_api.base import API_VERSION, LIST_KEYS, Mutability, Resource
from finetuning_api.patterns import PATTERNS
from finetuning_api.schema import INT_OR_STRING, NAMES, RULES, Schema, structural_schema

_HEAD = f"""\
# Manifest reference

<!-- Written by `finetune crds` from crds/finetuning_api; change the types, not this file. -->

Every kind of `{API_VERSION}`, field by field. `finetune validate FILE` checks a manifest against all of this and
tells every mistake at once; on a cluster the API server does the same, and `kubectl explain` shows the same texts.
A field in **bold** must be given. A field that is unset takes its default; `-` means that there is none.
"""
_WORDS = {pattern.regex: pattern.words for pattern in PATTERNS}


def reference_markdown() -> str:
    """Return the page: for each kind a table of its fields and the rules between them."""
    return _HEAD + "".join(_kind_section(kind) for kind in KINDS)


def _kind_section(kind: type[Resource]) -> str:
    schema = structural_schema(kind)
    names = NAMES[kind.__name__]
    properties: Mapping[str, Schema] = schema["properties"]
    lines = [
        "",
        f"## {kind.__name__}",
        "",
        f"{schema['description']} `kubectl get {names.plural}`, short `{names.short}`.",
        "",
        "### spec",
        "",
        "| field | type | default | bounds | meaning |",
        "|---|---|---|---|---|",
        *_rows(properties["spec"], path="spec"),
        "",
        "### Rules between fields",
        "",
        *_rules(schema),
        *_mutability(kind),
        "",
        "### status",
        "",
        "| field | type | meaning |",
        "|---|---|---|",
        *_status_rows(properties["status"], path="status"),
    ]
    return "\n".join(lines) + "\n"


def _rows(node: Schema, *, path: str) -> Iterator[str]:
    required = node.get("required", ())
    for name, child in node.get("properties", {}).items():
        field = f"`{path}.{name}`"
        shown = f"**{field}**" if name in required else field
        cells = (shown, _type(child), _default(child), _bounds(child), _meaning(child))
        yield f"| {' | '.join(map(_cell, cells))} |"
        yield from _rows(_inside(child), path=f"{path}.{name}{_suffix(child)}")


def _status_rows(node: Schema, *, path: str) -> Iterator[str]:
    for name, child in node.get("properties", {}).items():
        yield f"| {' | '.join(map(_cell, (f'`{path}.{name}`', _type(child), _meaning(child))))} |"
        yield from _status_rows(_inside(child), path=f"{path}.{name}{_suffix(child)}")


def _inside(node: Schema) -> Schema:
    """Return the object whose fields are listed below a field: itself, or the items of a list."""
    inner: Schema = node.get("items", node)
    return inner


def _suffix(node: Schema) -> str:
    return "[]" if "items" in node else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _type(node: Schema) -> str:
    if INT_OR_STRING in node:
        return "quantity"
    if "items" in node:
        keys = node.get(LIST_KEYS)
        return f"list of {_type(node['items'])}" + (f", one a {' and '.join(keys)}" if keys else "")
    if "additionalProperties" in node:
        return f"map of {_type(node['additionalProperties'])}"
    if node.get("format") == "date-time":
        return "time"
    return str(node["type"])


def _default(node: Schema) -> str:
    default = node.get("default")
    if default is None:
        return "-"
    if isinstance(default, dict):
        return "see below" if "properties" in node else "`{}`"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _bounds(node: Schema) -> str:
    """Return what a value must keep to, in words."""
    parts = [*_range(node), *_sizes(node)]
    source = node.get("items", node)
    if "enum" in source:
        parts.append(", ".join(f"`{each}`" for each in source["enum"]))
    if pattern := source.get("pattern"):
        parts.append(_WORDS[pattern])
    return "; ".join(parts) or "-"


def _range(node: Schema) -> Iterator[str]:
    if "minimum" in node:
        yield f"{'>' if node.get('exclusiveMinimum') else '>='} {node['minimum']:g}"
    if "maximum" in node:
        yield f"{'<' if node.get('exclusiveMaximum') else '<='} {_whole(node['maximum'])}"


def _whole(number: float) -> str:
    return f"{number:.0f}" if float(number).is_integer() else f"{number:g}"


def _sizes(node: Schema) -> Iterator[str]:
    units = {"Length": "characters", "Items": "items", "Properties": "entries"}
    for word, unit in units.items():
        least, most = node.get(f"min{word}"), node.get(f"max{word}")
        if least and most:
            yield f"{least} to {most} {unit}"
        elif most:
            yield f"at most {most} {unit}"


def _meaning(node: Schema) -> str:
    # The default has a column of its own.
    text: Any = node.get("description") or node.get("items", {}).get("description", "")
    return str(text).partition(" Default: ")[0]


def _mutability(kind: type[Resource]) -> Iterator[str]:
    spec: Any = kind.model_fields["spec"].annotation
    rule: Mutability | None = spec.mutability
    if rule is None:
        return
    fixed, changeable = (", ".join(f"`spec.{name}`" for name in names) for names in (rule.fixed, rule.changeable))
    scope = f"{fixed} is" if fixed else f"Everything in the spec but {changeable} is"
    yield f"- {scope} fixed at creation; {rule.advice}."


def _rules(node: Schema) -> Iterator[str]:
    """List every rule by the field that it is about; a rule that stands at several fields is listed once."""
    fields: dict[str, list[str]] = {}
    for field, message in _messages(node, path=""):
        fields.setdefault(message, []).append(f"`{field}`")
    for message, places in fields.items():
        yield f"- {', '.join(dict.fromkeys(places))}: {message}."


def _messages(node: Schema, *, path: str) -> Iterator[tuple[str, str]]:
    # What cannot be changed is told in one sentence, not field by field.
    for rule in (each for each in node.get(RULES, ()) if "oldSelf" not in each["rule"]):
        yield f"{path}{rule.get('fieldPath', '')}".lstrip("."), rule["message"]
    for name, child in node.get("properties", {}).items():
        below = f"{path}.{name}".lstrip(".")
        yield from _messages(child, path=below)
        if "items" in child:
            yield from _messages(child["items"], path=f"{below}[]")
