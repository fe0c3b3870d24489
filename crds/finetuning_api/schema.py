"""The CustomResourceDefinitions, generated from the types: structural schemas, rules, columns and subresources."""

import functools
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from finetuning_api import KINDS
from finetuning_api.base import GROUP, INT32_MAX, LIST_TYPE, VERSION, ApiModel, CelRule, Resource
from finetuning_api.immutability import rules_of
from finetuning_api.patterns import PATTERNS

Schema = dict[str, Any]
"""A node of an OpenAPI v3 schema, as an API server reads it."""

RULES = "x-kubernetes-validations"
INT_OR_STRING = "x-kubernetes-int-or-string"
_WORDS = {pattern.regex: pattern.words for pattern in PATTERNS}
_GENERATED = "# Written by `finetune crds` from crds/finetuning_api; change the types, not this file.\n"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of ``kubectl get``. Priority 1 is shown with ``-o wide`` only."""

    name: str
    path: str
    type: Literal["string", "integer", "number", "date", "boolean"] = "string"
    priority: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class Names:
    """What a kind is called, and how ``kubectl get`` shows it."""

    plural: str
    short: str
    columns: tuple[Column, ...]
    scalable: bool = False


_AGE = Column(name="Age", path=".metadata.creationTimestamp", type="date")
_PHASE = Column(name="Phase", path=".status.phase", description="Summary; conditions decide.")
_PERCENT = Column(
    name="Progress(%)", path=".status.progress.percent", type="integer", description="Percent of the running stage."
)
_ETA = Column(
    name="ETA(s)", path=".status.progress.etaSeconds", type="integer", description="Seconds to the end of the stage."
)
_STAGE = Column(
    name="Stage", path='.status.stages[?(@.state=="Running")].name', description="Stage that runs at the moment."
)
_VERDICT = Column(name="Verdict", path=".status.verdict", description="Outcome of the gate.")
_METRIC = Column(name="Metric", path=".status.evaluation[0].metric", description="First metric that was evaluated.")
_BASE = Column(
    name="Base", path=".status.evaluation[0].base", type="number", description="Its value for the base model."
)
_TUNED = Column(
    name="Tuned", path=".status.evaluation[0].tuned", type="number", description="Its value for the tuned model."
)
_DELTA = Column(
    name="Delta",
    path=".status.evaluation[0].delta",
    type="number",
    priority=1,
    description="tuned - base, paired over the same rows.",
)
_WHY = Column(name="Reason", path=".status.reason", description="Why the object waits or has failed.")

NAMES: Mapping[str, Names] = {
    "FineTuningJob": Names(
        plural="finetuningjobs",
        short="ftj",
        columns=(
            _PHASE,
            _STAGE,
            _PERCENT,
            _ETA,
            _METRIC,
            _BASE,
            _TUNED,
            _VERDICT,
            _WHY,
            _AGE,
            _DELTA,
            Column(name="Model", path=".spec.model.source", priority=1, description="Base model."),
            Column(name="Loss", path=".status.progress.loss", type="number", priority=1, description="Training loss."),
        ),
    ),
    "EvaluationJob": Names(
        plural="evaluationjobs",
        short="evj",
        columns=(
            _PHASE,
            _STAGE,
            _PERCENT,
            _ETA,
            _METRIC,
            _BASE,
            _TUNED,
            _VERDICT,
            Column(
                name="Predicted",
                path=".status.predictions.rows",
                type="integer",
                description="Rows that were predicted, in mode predict.",
            ),
            _WHY,
            _AGE,
            _DELTA,
            Column(name="Mode", path=".spec.mode", priority=1, description="What is done with the candidates."),
        ),
    ),
    "Relocation": Names(
        plural="relocations",
        short="reloc",
        columns=(
            _PHASE,
            Column(name="Source", path=".spec.source", description="Where the bytes come from."),
            _PERCENT,
            _ETA,
            Column(name="Bytes", path=".status.artifact.bytes", type="integer", description="Size of the artifact."),
            _WHY,
            _AGE,
            Column(
                name="Revision",
                path=".status.artifact.resolvedRevision",
                priority=1,
                description="Revision that was brought.",
            ),
            Column(name="Used", path=".status.lastUsedTime", type="date", priority=1, description="Last use."),
        ),
    ),
    "InferenceServer": Names(
        plural="inferenceservers",
        short="infs",
        columns=(
            _PHASE,
            Column(name="Model", path=".spec.model.source", description="Base model."),
            Column(name="Ready", path=".status.readyReplicas", type="integer", description="Server pods that answer."),
            Column(name="Replicas", path=".spec.replicas", type="integer", description="Server pods that are wanted."),
            Column(name="URL", path=".status.url", description="Address inside the cluster."),
            _WHY,
            _AGE,
            Column(name="Variant", path=".spec.variant", priority=1, description="Program that serves."),
        ),
        scalable=True,
    ),
}
"""By kind."""


class _Generator(GenerateJsonSchema):
    """pydantic's JSON Schema in the dialect of structural schemas: no null, and the rules of each type beside it."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        node = super().model_schema(schema)
        if issubclass(schema["cls"], ApiModel) and (rules := rules_of(schema["cls"])):
            node[RULES] = [_rule(rule) for rule in rules]
        return node

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> object:
        factory = schema.get("default_factory")
        if factory is None:
            return super().get_default_value(schema)
        value = cast("Any", factory)()
        if not isinstance(value, ApiModel):
            return value
        # A nested object defaults field by field, so {} says it all. But an API server checks the rules of a type
        # against its default as it is written, before the fields inside get theirs.
        return value.to_wire() if rules_of(type(value)) else {}


def _rule(rule: CelRule) -> Schema:
    node = {"rule": rule.rule, "message": rule.message}
    if rule.message_expression:
        node["messageExpression"] = rule.message_expression
    return node | ({"fieldPath": f".{rule.field}"} if rule.field else {})


@functools.cache
def _schema_text(kind: type[Resource]) -> str:
    generated = kind.model_json_schema(by_alias=True, schema_generator=_Generator)
    node = _inline(generated, definitions=generated.get("$defs", {}))
    node["properties"] |= {
        "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
        "kind": {"type": "string", "description": f"{kind.__name__}."},
        # The API server validates metadata by itself; the name is listed because a rule points at it.
        "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 63}}},
    }
    node["required"] = ["spec"]
    status = node["properties"]["status"]
    status.pop("default")
    _drop_defaults(status)
    return json.dumps(node)


def structural_schema(kind: type[Resource]) -> Schema:
    """Return the structural OpenAPI v3 schema of a kind, as its CustomResourceDefinition holds it."""
    node: Schema = json.loads(_schema_text(kind))
    return node


def _inline(node: Schema, *, definitions: Mapping[str, Schema]) -> Schema:
    """Replace references by what they name, and words of JSON Schema by those that structural schemas know."""
    node = deepcopy(node)
    if reference := node.pop("$ref", None):
        # What stands beside a reference (description, default) belongs to the field and goes first.
        node = deepcopy(definitions[reference.rpartition("/")[2]]) | node
    _mend(node)
    for name, child in node.get("properties", {}).items():
        node["properties"][name] = _inline(child, definitions=definitions)
    for word in ("items", "additionalProperties"):
        if word in node:
            node[word] = _inline(node[word], definitions=definitions)
    _tell_default(node)
    return node


def _mend(node: Schema) -> None:
    """Bring one node into the dialect of structural schemas."""
    for word in ("$defs", "title"):
        node.pop(word, None)
    if node.get("default") is None:
        node.pop("default", None)
    if node.get("type") == "array":
        node.setdefault(LIST_TYPE, "atomic")
    if INT_OR_STRING not in node:
        _mend_scalar(node)
    _mend_map(node)


def _mend_scalar(node: Schema) -> None:
    """Give constants, exclusive bounds and numbers the form of OpenAPI v3.0."""
    if "const" in node:
        node |= {"enum": [node.pop("const")], "type": "string"}
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in node:
            node |= {bound: node[exclusive], exclusive: True}
    if node.get("type") == "integer":
        node["format"] = "int32" if node.get("maximum", INT32_MAX + 1) <= INT32_MAX else "int64"
    elif node.get("type") == "number":
        node["format"] = "double"


def _mend_map(node: Schema) -> None:
    """Bound the keys of a map by a rule: structural schemas have no propertyNames."""
    names = node.pop("propertyNames", None)
    if names is not None:
        longest = names["maxLength"]
        node[RULES] = [
            {"rule": f"self.all(key, key.size() <= {longest})", "message": f"a key has at most {longest} characters"}
        ]


def _tell_default(node: Schema) -> None:
    """Add the default to the text of ``kubectl explain``, which does not show it by itself."""
    default = node.get("default")
    if default not in (None, [], "") and not isinstance(default, dict) and "description" in node:
        shown = default if isinstance(default, str) else json.dumps(default)
        node["description"] += f" Default: {shown}."


def _drop_defaults(node: Schema) -> None:
    """Leave status as the operator wrote it: the API server must not make up any of it."""
    node.pop("default", None)
    children = [*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")]
    for child in filter(None, children):
        _drop_defaults(child)


def _in_words(node: Schema) -> Schema:
    """Return a schema whose patterns are rules: an API server tells the message of a rule, and quotes a pattern."""
    worded = dict(node)
    if (pattern := worded.pop("pattern", None)) is not None:
        whole_number = "type(self) == int || " if INT_OR_STRING in node else ""
        # In CEL a backslash and a quote are escaped as in JSON, and a regular expression of ours holds no other.
        rule = f"{whole_number}self.matches({json.dumps(pattern)})"
        worded[RULES] = [*worded.get(RULES, ()), {"rule": rule, "message": f"needs {_WORDS[pattern]}"}]
    if "properties" in worded:
        worded["properties"] = {name: _in_words(child) for name, child in worded["properties"].items()}
    for word in ("items", "additionalProperties"):
        if word in worded:
            worded[word] = _in_words(worded[word])
    return worded


def _served_schema(kind: type[Resource]) -> Schema:
    """Return the schema as an API server gets it: what users write is refused in words."""
    schema = structural_schema(kind)
    schema["properties"]["spec"] = _in_words(schema["properties"]["spec"])
    return schema


def _column(column: Column) -> Schema:
    shown: Schema = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        shown["description"] = column.description
    return shown | ({"priority": column.priority} if column.priority else {})


def _subresources(names: Names) -> Schema:
    scale = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    return {"status": {}} | ({"scale": scale} if names.scalable else {})


def crd_document(kind: type[Resource]) -> Schema:
    """Return the CustomResourceDefinition of a kind."""
    names = NAMES[kind.__name__]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.__name__,
                "listKind": f"{kind.__name__}List",
                "plural": names.plural,
                "singular": kind.__name__.lower(),
                "shortNames": [names.short],
                "categories": ["finetuning"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _served_schema(kind)},
                    "subresources": _subresources(names),
                    "additionalPrinterColumns": [_column(column) for column in names.columns],
                }
            ],
        },
    }


def crd_documents() -> dict[str, str]:
    """Return the YAML of every CustomResourceDefinition by its file name."""
    import yaml

    return {
        f"{GROUP}_{NAMES[kind.__name__].plural}.yaml": _GENERATED
        + yaml.safe_dump(crd_document(kind), sort_keys=False, width=120, allow_unicode=True)
        for kind in KINDS
    }
