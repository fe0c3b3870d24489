"""Evaluates the rules of the types on one machine as an API server would: after defaulting, at every level."""

import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from finetuning_api.base import LIST_KEYS, LIST_TYPE, Resource
from finetuning_api.schema import RULES, Schema, structural_schema

if TYPE_CHECKING:
    from celpy import Environment, Runner
    from celpy.adapter import JSON

Path = tuple[str | int, ...]
"""Where a value lies: names of fields and places in lists, from the root of the object."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that an object breaks, at the field that its message is about."""

    path: Path
    value: object
    message: str


def violations(
    kind: type[Resource],
    document: Mapping[str, object],
    *,
    old: Mapping[str, object] | None = None,
    broken: Collection[Path] = (),
) -> list[Violation]:
    """Return every rule that an object in its wire form breaks.

    Defaults need not be filled in. With ``old``, the stored object, transition rules are evaluated as well. A rule
    that reads one of the ``broken`` paths (values that are no values of their type) is left out: it could only fail
    for a reason that is told already.
    """
    schema = structural_schema(kind)
    node = _Node(schema=schema, value=with_defaults(schema, document), path=())
    stored = None if old is None else with_defaults(schema, old)
    return [*_rules_below(node, old=stored, broken=frozenset(broken)), *_duplicates_below(node)]


def with_defaults(schema: Schema, value: object) -> object:
    """Return a copy of a value as an API server stores it: nulls dropped, defaults filled in, numbers as floats."""
    if isinstance(value, Mapping):
        return _object_with_defaults(schema, value)
    if isinstance(value, Sequence) and not isinstance(value, str) and "items" in schema:
        return [with_defaults(schema["items"], item) for item in value]
    if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _object_with_defaults(schema: Schema, value: Mapping[str, object]) -> dict[str, object]:
    properties: Mapping[str, Schema] = schema.get("properties", {})
    present = {name: item for name, item in value.items() if item is not None or name not in properties}
    for name, child in properties.items():
        if name not in present and "default" in child:
            present[name] = deepcopy(child["default"])
    others: Schema = schema.get("additionalProperties", {})
    return {name: with_defaults(properties.get(name, others), item) for name, item in present.items()}


@dataclass(frozen=True, slots=True)
class _Node:
    """A value with its schema and its place."""

    schema: Schema
    value: object
    path: Path

    def children(self) -> Iterator["_Node"]:
        if isinstance(self.value, Mapping):
            properties: Mapping[str, Schema] = self.schema.get("properties", {})
            others: Schema = self.schema.get("additionalProperties", {})
            for name, value in self.value.items():
                yield _Node(schema=properties.get(name, others), value=value, path=(*self.path, name))
        elif isinstance(self.value, list):
            for index, value in enumerate(self.value):
                yield _Node(schema=self.schema.get("items", {}), value=value, path=(*self.path, index))


def _rules_below(node: _Node, *, old: object, broken: frozenset[Path]) -> Iterator[Violation]:
    for rule in node.schema.get(RULES, ()):
        readable = not any(_meets(node.path, rule=rule["rule"], broken=each) for each in broken)
        has_old = old is not None or "oldSelf" not in rule["rule"]
        if readable and has_old and not holds(rule["rule"], value=node.value, old=old):
            yield _violation(node, rule)
    for child in node.children():
        yield from _rules_below(child, old=_old_child(node, child, old=old), broken=broken)


def _old_child(node: _Node, child: _Node, *, old: object) -> object:
    """Return the stored value that a child is compared with: by name in objects, by key in lists that have keys."""
    name = child.path[-1]
    if isinstance(old, Mapping):
        return old.get(name)
    keys = node.schema.get(LIST_KEYS)
    if isinstance(old, list) and keys and isinstance(child.value, Mapping):
        wanted = _identity(child.value, keys)
        return next((item for item in old if isinstance(item, Mapping) and _identity(item, keys) == wanted), None)
    return None


def _violation(node: _Node, rule: Mapping[str, str]) -> Violation:
    field = tuple(part for part in rule.get("fieldPath", "").split(".") if part)
    value: object = node.value
    for part in field:
        value = value.get(part) if isinstance(value, Mapping) else None
    return Violation(path=(*node.path, *field), value=value, message=_message(rule, node.value))


def _message(rule: Mapping[str, str], value: object) -> str:
    """Return what a rule says of a value; its plain message where there is no other, or it cannot be evaluated."""
    from celpy.adapter import json_to_cel
    from celpy.evaluation import CELEvalError

    if "messageExpression" not in rule:
        return rule["message"]
    try:
        return str(_program(rule["messageExpression"]).evaluate({"self": json_to_cel(cast("JSON", value))}))
    except CELEvalError:
        return rule["message"]


_READ = re.compile(r"\bself((?:\.[A-Za-z]\w*\b(?!\())*)")
"""A field that a rule reads; a name with a parenthesis behind it is a function."""


def _meets(path: Path, *, rule: str, broken: Path) -> bool:
    """Whether a rule at ``path`` reads a broken value, a part of it, or something that it is a part of."""
    reads = ((*path, *filter(None, match.split("."))) for match in _READ.findall(rule))
    return any(read[: len(broken)] == broken[: len(read)] for read in reads)


def _identity(item: Mapping[str, object], keys: Sequence[str]) -> tuple[object, ...]:
    return tuple(item.get(key) for key in keys)


def _duplicates_below(node: _Node) -> Iterator[Violation]:
    if isinstance(node.value, list) and node.schema.get(LIST_TYPE) in {"set", "map"}:
        yield from _duplicates(node)
    for child in node.children():
        yield from _duplicates_below(child)


def _duplicates(node: _Node) -> Iterator[Violation]:
    keys: Sequence[str] = node.schema.get(LIST_KEYS, ())
    seen: list[object] = []
    for child in node.children():
        identity = _identity(child.value, keys) if keys and isinstance(child.value, Mapping) else child.value
        if identity in seen:
            what = f"an item with the same {' and '.join(keys)}" if keys else "the same item"
            yield Violation(path=child.path, value=child.value, message=f"the list holds {what} already")
        seen.append(identity)


def holds(rule: str, *, value: object, old: object = None) -> bool:
    """Whether a CEL rule is true of a value (``self``) and, for a transition rule, its stored form (``oldSelf``).

    A rule that cannot be evaluated on the value does not hold, as on an API server.
    """
    from celpy.adapter import json_to_cel
    from celpy.evaluation import CELEvalError

    bound = {"self": json_to_cel(cast("JSON", value))}
    if old is not None:
        bound["oldSelf"] = json_to_cel(cast("JSON", old))
    try:
        return bool(_program(rule).evaluate(bound))
    except CELEvalError:
        return False


@functools.cache
def _environment() -> "Environment":
    # Imported when the first rule is evaluated: most users of the contract never do.
    from celpy import Environment

    return Environment()


@functools.cache
def _program(rule: str) -> "Runner":
    return _environment().program(_environment().compile(rule))
