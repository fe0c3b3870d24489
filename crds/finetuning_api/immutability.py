"""Rules that keep a spec as it was created, one a field, so that a refusal names the field."""

from collections.abc import Iterator
from typing import get_args

from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from finetuning_api.base import ApiModel, CelRule, Mutability


def rules_of(model: type[ApiModel]) -> tuple[CelRule, ...]:
    """Return every rule of a type: the written ones, and those that follow from the mutability of a spec.

    A transition rule on an optional field would not be evaluated when the field is added or removed, so all of them
    stand on the spec.
    """
    return (*model.cel_rules, *_fixed_field_rules(model))


def _fixed_field_rules(model: type[ApiModel]) -> Iterator[CelRule]:
    mutability = model.mutability
    if mutability is None:
        return
    for name, field in model.model_fields.items():
        wire = field.alias or to_camel(name)
        if mutability.fixed and wire not in mutability.fixed:
            continue
        parts = tuple(part.removeprefix(f"{wire}.") for part in mutability.changeable if part.startswith(f"{wire}."))
        if parts:
            yield from _partly_fixed(wire, field=field, changeable=parts, message=_message(wire, mutability))
        elif wire not in mutability.changeable:
            yield CelRule(
                rule=_unchanged(wire, optional=_is_optional(field)), message=_message(wire, mutability), field=wire
            )


def _partly_fixed(wire: str, *, field: FieldInfo, changeable: tuple[str, ...], message: str) -> Iterator[CelRule]:
    """Fix whether a field is there at all and all of its own fields but the changeable ones."""
    yield CelRule(rule=f"has(self.{wire}) == has(oldSelf.{wire})", message=message, field=wire)
    for name, inner in _model_of(field).model_fields.items():
        part = inner.alias or to_camel(name)
        if part not in changeable:
            path = f"{wire}.{part}"
            both = f"has(self.{wire}) && has(oldSelf.{wire})"
            unchanged = _unchanged(path, optional=_is_optional(inner))
            yield CelRule(rule=f"!({both}) || ({unchanged})", message=message.replace(wire, path, 1), field=path)


def _unchanged(path: str, *, optional: bool) -> str:
    if not optional:
        return f"self.{path} == oldSelf.{path}"
    return f"has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || self.{path} == oldSelf.{path})"


def _is_optional(field: FieldInfo) -> bool:
    return not field.is_required() and field.default is None and field.default_factory is None


def _model_of(field: FieldInfo) -> type[ApiModel]:
    candidates = (field.annotation, *get_args(field.annotation))
    (model,) = (each for each in candidates if isinstance(each, type) and issubclass(each, ApiModel))
    return model


def _message(wire: str, mutability: Mutability) -> str:
    can = _enumerate(mutability.changeable)
    return f"{wire} is fixed at creation; {mutability.advice}" + (f" (only {can} can be changed)" if can else "")


def _enumerate(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
