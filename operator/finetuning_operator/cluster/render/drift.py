"""Whether what exists still is what was asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetuning_operator.reconcile.quantities import parse_quantity

_AMOUNTS = frozenset({"requests", "limits"})
"""Fields whose values are maps of quantities."""
_AMOUNT = frozenset({"sizeLimit"})
"""Fields that are quantities themselves."""


def differs(desired: Mapping[str, Any], observed: Mapping[str, Any]) -> bool:
    """Return whether a desired field is missing or means something else.

    What only the observed object has was filled in by the API server or belongs to somebody else, so it does not count;
    a thing that is no longer desired is found by the annotation that holds the hash of the description.
    """
    return any(_field_differs(name, value, observed.get(name)) for name, value in desired.items())


def _field_differs(name: str, wanted: object, found: object) -> bool:
    if name in _AMOUNTS and isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return any(key not in found or _amount_differs(value, found[key]) for key, value in wanted.items())
    if name in _AMOUNT:
        return found is None or _amount_differs(wanted, found)
    return _value_differs(wanted, found)


def _value_differs(wanted: object, found: object) -> bool:
    if found is None:
        # An API server drops what says nothing: empty texts, lists and maps, false and 0.
        return bool(wanted)
    if isinstance(wanted, Mapping):
        return not isinstance(found, Mapping) or differs(wanted, found)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return not isinstance(found, Sequence) or _list_differs(wanted, found)
    return isinstance(wanted, bool) != isinstance(found, bool) or wanted != found


def _list_differs(wanted: Sequence[object], found: Sequence[object]) -> bool:
    return len(wanted) != len(found) or any(map(_value_differs, wanted, found))


def _amount_differs(wanted: object, found: object) -> bool:
    try:
        return parse_quantity(str(wanted)) != parse_quantity(str(found))
    except ValueError:
        return wanted != found
