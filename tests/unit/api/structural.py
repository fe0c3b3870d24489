"""What an API server demands of a structural schema, written down independently of the code that generates ours."""

from collections.abc import Iterator, Mapping
from typing import Any

Node = Mapping[str, Any]

_VOCABULARY = {
    "type", "format", "description", "default", "enum", "pattern", "nullable",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "required", "properties", "additionalProperties", "items", "anyOf",
    "x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip
_INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]


def complaints(node: Node, *, path: str = "") -> Iterator[str]:
    """Tell every way in which a schema is not structural, not bounded, or not explained."""
    yield from (f"{path}: {word} is not allowed" for word in node.keys() - _VOCABULARY)
    yield from (f"{path}: {what}" for what in (*_form(node), *_bounds(node), *_list(node), *_rules(node)))
    for name, child in node.get("properties", {}).items():
        below = f"{path}.{name}"
        if "description" not in child and below not in {".metadata", ".metadata.name"}:
            yield f"{below}: has no description"
        yield from complaints(child, path=below)
    for word in ("items", "additionalProperties"):
        if word in node:
            yield from complaints(node[word], path=f"{path}.{word}")


def _form(node: Node) -> Iterator[str]:
    int_or_string = node.get("x-kubernetes-int-or-string", False)
    if ("type" in node) == int_or_string:
        yield "needs either a type or int-or-string"
    if "anyOf" in node and not (int_or_string and node["anyOf"] == _INT_OR_STRING):
        yield "anyOf is for int-or-string only"
    if "properties" in node and "additionalProperties" in node:
        yield "properties and additionalProperties exclude each other"
    if node.get("x-kubernetes-preserve-unknown-fields") and (node.get("type"), "properties" in node) != (
        "object",
        False,
    ):
        yield "only an object without fields of its own may hold anything"
    if missing := set(node.get("required", ())) - set(node.get("properties", ())) - {"spec"}:
        yield f"requires unknown fields {missing}"
    for exclusive in ("exclusiveMinimum", "exclusiveMaximum"):
        if not isinstance(node.get(exclusive, False), bool):
            yield f"{exclusive} is a boolean in OpenAPI 3.0"


def _bounds(node: Node) -> Iterator[str]:
    fixed = "enum" in node or node.get("format") == "date-time"
    if node.get("type") == "string" and not fixed and "maxLength" not in node and "description" in node:
        # apiVersion and kind are checked by the API server itself.
        yield from () if node["description"].split("/")[0] in _OWN else ["has no maxLength"]
    if node.get("type") == "array" and "maxItems" not in node:
        yield "has no maxItems"
    if "additionalProperties" in node and "maxProperties" not in node:
        yield "has no maxProperties"


_OWN = {"finetuning.dev", "FineTuningJob.", "EvaluationJob.", "Relocation.", "InferenceServer."}


def _list(node: Node) -> Iterator[str]:
    if node.get("type") != "array":
        return
    kind, keys = node.get("x-kubernetes-list-type"), node.get("x-kubernetes-list-map-keys", [])
    if kind not in {"atomic", "set", "map"} or (kind == "map") != bool(keys):
        yield f"list type {kind} with keys {keys}"
    if kind == "set" and node["items"].get("type") in {"object", "array"}:
        yield "a set holds scalars"
    for key in keys:
        if key not in node["items"].get("required", ()) and "default" not in node["items"]["properties"][key]:
            yield f"key {key} is neither required nor defaulted"


def _rules(node: Node) -> Iterator[str]:
    for rule in node.get("x-kubernetes-validations", ()):
        if not rule["message"] or "\n" in rule["message"]:
            yield f"rule {rule['rule']} needs a message of one line"
        inner: Node = node
        for part in filter(None, rule.get("fieldPath", "").split(".")):
            if part not in inner.get("properties", {}):
                yield f"fieldPath {rule['fieldPath']} names no field"
                break
            inner = inner["properties"][part]
