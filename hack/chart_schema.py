"""Writes what the chart's values.schema.json says of a preset from the types: the same fields, the same bounds."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.schema import Schema, structural_schema

_SCHEMA = Path("charts/finetuning-operator/values.schema.json")
_KEPT = frozenset(
    {"type", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties"}
    | {"exclusiveMinimum", "exclusiveMaximum", "anyOf"}
)
"""Words that mean the same to an API server and to helm; bounds may be true there and numbers here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Bring the schema up to date; with ``--check`` only say whether it is."""
    parser = argparse.ArgumentParser(prog="python -m hack.chart_schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the schema is out of date")
    options = parser.parse_args(arguments)
    written = _SCHEMA.read_text(encoding="utf-8")
    schema = json.loads(written)
    schema["definitions"]["preset"] = preset_schema()
    wanted = json.dumps(schema, indent=2) + "\n"
    if wanted == written:
        return 0
    if options.check:
        sys.stderr.write(f"{_SCHEMA} is out of date: run python -m hack.chart_schema\n")
        return 1
    _SCHEMA.write_text(wanted, encoding="utf-8")
    return 0


def preset_schema() -> Schema:
    """Return the JSON schema of a preset: that of what it leaves in a status, but for its name."""
    applied = structural_schema(FineTuningJob)["properties"]["status"]["properties"]["preset"]
    preset = _strict(applied)
    del preset["properties"]["name"]
    return preset


def _strict(node: Schema) -> Schema:
    """Return a node without defaults, words and rules of Kubernetes, in which no other fields are allowed."""
    strict: dict[str, Any] = {word: value for word, value in node.items() if word in _KEPT}
    for bound in ("Minimum", "Maximum"):
        if strict.pop(f"exclusive{bound}", None) is True:
            strict[f"exclusive{bound}"] = strict.pop(bound.lower())
    if strict.get("anyOf"):
        # An amount: its pattern is about texts, its least value about numbers.
        strict.pop("type", None)
    if "properties" in node:
        strict["properties"] = {name: _strict(child) for name, child in node["properties"].items()}
        strict["additionalProperties"] = False
    if "additionalProperties" in node:
        strict["additionalProperties"] = _strict(node["additionalProperties"])
    if "items" in node:
        strict["items"] = _strict(node["items"])
    return strict


if __name__ == "__main__":
    sys.exit(main())
