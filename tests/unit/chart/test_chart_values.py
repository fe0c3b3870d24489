"""Values, their schema and the templates say the same: no value without a bound, and none that nobody reads."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[3] / "charts" / "finetuning-operator"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
TEMPLATES = "\n".join(path.read_text(encoding="utf-8") for path in sorted(CHART.glob("templates/**/*.*")))
Place = tuple[str, ...]


def schema_of(path: Place) -> dict[str, Any]:
    found: dict[str, Any] = SCHEMA
    for name in path:
        found = found.get("properties", {}).get(name, {})
    return found


def leaves(values: Mapping[str, Any], path: Place = ()) -> Iterator[Place]:
    """Yield the path of each value that is not made of other known ones."""
    for name, value in values.items():
        here = (*path, name)
        if isinstance(value, dict) and "properties" in schema_of(here):
            yield from leaves(value, here)
        else:
            yield here


def objects(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "properties" in schema:
        yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from objects(child, f"{path}.{name}".lstrip("."))


PATHS = {".".join(path): path for path in leaves(VALUES)}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_value_is_in_the_schema(path: Place) -> None:
    assert schema_of(path)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_value_is_read_by_a_template(path: Place) -> None:
    """By its whole path; or what it is part of is written out as a whole, or taken up and the value named after it."""
    of_part = rf"\.Values\.{re.escape('.'.join(path[:-1]))}(?![.\w])"
    whole = (
        rf"(toYaml|omit) {of_part}",
        rf"with {of_part} }}}}\s*\w+: {{{{- toYaml \.",
        rf"range \$\w+, \$\w+ := {of_part}",
    )
    ways = [rf"\.Values\.{re.escape('.'.join(path))}\b"]
    if len(path) > 1:
        ways += [*whole, rf"(?s){of_part}.*[\s(\w]\.{re.escape(path[-1])}\b"]
    assert any(re.search(way, TEMPLATES) for way in ways)


def test_no_object_takes_values_that_it_does_not_know() -> None:
    loose = [path for path, found in objects(SCHEMA) if found.get("additionalProperties") is not False]
    # Charts that have this one as a part put values of their own there.
    assert loose == ["global"]
