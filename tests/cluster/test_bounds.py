"""Every bound of every field: an API server refuses what lies just beyond it at its place, and not what just fits."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
from tests.support.cluster import Cluster, Refused
from tests.unit.api.factories import EVERY_KIND, Manifest

from finetuning_api import KINDS
from finetuning_api.schema import Schema, structural_schema

_KEY = "a"
"""The key that a map gets."""
_FILLERS: Mapping[str, object] = {"object": {}, "array": [], "string": "", "integer": 0, "number": 0, "boolean": False}


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound of one field, with a value on each side of it."""

    place: tuple[str | int, ...]
    """Keys and positions below the object; a field of a list's items is that of its first item."""
    beyond: object
    fits: object
    told: str
    """What an API server says of the value beyond, with the place."""

    def manifest(self, make: Callable[[], Manifest], value: object) -> Manifest:
        """Return a manifest with a value at the place; what it lacks beside that is not looked at."""
        made = deepcopy(make())
        here: Any = made
        for key, inner in zip(self.place, (*self.place[1:], None), strict=True):
            empty: object = [] if isinstance(inner, int) else {}
            new = value if inner is None else empty
            if isinstance(key, int):
                if inner is None or not here:
                    here[:] = [new]
            elif inner is None or not here.get(key):
                here[key] = new
            here = here[key]
        return made


def bounds(node: Schema, place: tuple[str | int, ...]) -> Iterator[Bound]:
    """Yield the bounds of a schema and of everything in it."""
    yield from _numbers(node, place)
    yield from _texts(node, place)
    yield from _sizes(node, place)
    for name, child in node.get("properties", {}).items():
        yield from bounds(child, (*place, name))
    if isinstance(items := node.get("items"), dict):
        yield from bounds(items, (*place, 0))
    if isinstance(values := node.get("additionalProperties"), dict):
        yield from bounds(values, (*place, _KEY))


def _numbers(node: Schema, place: tuple[str | int, ...]) -> Iterator[Bound]:
    for bound, exclusive, step, order in (
        ("minimum", "exclusiveMinimum", -1, "greater"),
        ("maximum", "exclusiveMaximum", 1, "less"),
    ):
        if bound not in node:
            continue
        limit, strict = node[bound], node.get(exclusive, False)
        beyond, fits = (limit, limit - step * 0.001) if strict else (limit + step, limit)
        yield Bound(place, beyond, fits, f"{path_of(place)} in body should be {order} than")


def _texts(node: Schema, place: tuple[str | int, ...]) -> Iterator[Bound]:
    path = path_of(place)
    if shortest := node.get("minLength"):
        told = f"{path} in body should be at least {shortest} chars"
        yield Bound(place, "a" * (shortest - 1), "a" * shortest, told)
    if longest := node.get("maxLength"):
        told = f"{path}: Too long: may not be more than {longest} bytes"
        yield Bound(place, "a" * (longest + 1), "a" * longest, told)
    if values := node.get("enum"):
        yield Bound(place, "no-such-word", values[-1], f'{path}: Unsupported value: "no-such-word"')


def _sizes(node: Schema, place: tuple[str | int, ...]) -> Iterator[Bound]:
    path = path_of(place)
    filler = _FILLERS[(node.get("items") or node.get("additionalProperties") or {}).get("type", "string")]
    if most := node.get("maxItems"):
        told = f"{path}: Too many: {most + 1}: must have at most {most} items"
        yield Bound(place, [filler] * (most + 1), [filler] * most, told)
    if least := node.get("minItems"):
        told = f"{path} in body should have at least {least} items"
        yield Bound(place, [filler] * (least - 1), [filler] * least, told)
    if most := node.get("maxProperties"):
        told = f"{path}: Too many: {most + 1}: must have at most {most} items"
        yield Bound(place, _map(most + 1, filler), _map(most, filler), told)


def _map(size: int, filler: object) -> object:
    return {f"key-{number}": filler for number in range(size)}


def path_of(place: tuple[str | int, ...]) -> str:
    """Return a place as an API server writes it."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_lies_beyond_a_bound_is_refused_at_its_place_and_what_fits_is_not(
    cluster: Cluster, namespace: str, kind: type
) -> None:
    make = EVERY_KIND[kind.__name__]
    path = cluster.path(kind.__name__, namespace=namespace)

    def said(bound: Bound, value: object) -> str:
        try:
            body = bound.manifest(make, value)
            cluster.request("POST", f"{path}?dryRun=All", body=body, content_type="application/json")
        except Refused as refused:
            return refused.message
        return ""

    found = list(bounds(structural_schema(kind)["properties"]["spec"], ("spec",)))

    assert len(found) > 20
    assert [(bound.told, answer) for bound in found if bound.told not in (answer := said(bound, bound.beyond))] == []
    assert [bound.told for bound in found if bound.told in said(bound, bound.fits)] == []
