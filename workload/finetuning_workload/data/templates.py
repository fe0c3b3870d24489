"""Templates: text with {column} placeholders, and how a value of any type becomes text."""

import difflib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from functools import singledispatch

from finetuning_api.reasons import Reason
from finetuning_workload.data.reading import Row
from finetuning_workload.errors import UserError

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PLAIN_NAME = re.compile(r"[\w .\-/]+")
_EXACT_INTEGERS = 2**53
_BRACES_HINT = "A brace that stands for itself is written twice: {{ and }}."


@dataclass(frozen=True)
class Template:
    """A parsed template: literal text and columns in turns, ``literals`` having one item more than ``columns``.

    Placeholders name columns and nothing else: no attributes, no indices, no format specifications.
    """

    field: str
    """The field that the template stands in, for messages."""
    literals: tuple[str, ...]
    columns: tuple[str, ...]

    def render(self, row: Row) -> str:
        """Return the text for one row; a missing value is empty text."""
        parts = [self.literals[0]]
        for column, literal in zip(self.columns, self.literals[1:], strict=True):
            parts += (cell_text(row.get(column)), literal)
        return "".join(parts)

    def require_columns(self, available: Iterable[str]) -> None:
        """Raise UserError(COLUMN_NOT_FOUND) for a placeholder that names no column of the data."""
        for column in self.columns:
            require_column(column, available, field=self.field, shown=f"{{{column}}}")


def parse_template(text: str, *, field: str) -> Template:
    """Parse a template; raises UserError(INVALID_SPEC) that shows where a brace has no partner."""
    literals, columns = [""], []
    end = 0
    for match in _TOKEN.finditer(text):
        literals[-1] += text[end : match.start()]
        end = match.end()
        token = match.group()
        if token in {"{{", "}}"}:
            literals[-1] += token[0]
        elif match.group(1):
            columns.append(match.group(1))
            literals.append("")
        else:
            around = text[max(0, match.start() - 15) : match.end() + 15]
            what = "an empty placeholder" if match.group(1) == "" else f"a single {token}"
            message = f"{field} has {what} at character {match.start() + 1}: ...{around!r}..."
            raise UserError(Reason.INVALID_SPEC, message, f"Placeholders are {{column}}. {_BRACES_HINT}")
    literals[-1] += text[end:]
    return Template(field=field, literals=tuple(literals), columns=tuple(columns))


def require_column(column: str, available: Iterable[str], *, field: str, shown: str | None = None) -> None:
    """Raise UserError(COLUMN_NOT_FOUND) unless the data has the column; ``shown`` is how the user wrote it."""
    present = list(available)
    if column in present:
        return
    close = difflib.get_close_matches(column, present, n=1)
    named = repr(column) if shown is None else shown
    message = f"{field}: the data has no column for {named}; its columns are {', '.join(present)}"
    hint = f"Did you mean {close[0]!r}?" if close else "Name one of the columns."
    if shown is not None and not _PLAIN_NAME.fullmatch(column):
        hint = f"A placeholder is a column's name and nothing else. {_BRACES_HINT}"
    raise UserError(Reason.COLUMN_NOT_FOUND, message, hint)


def is_missing(value: object) -> bool:
    """Return whether a value is absent: None or not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def cell_text(value: object) -> str:
    """Return a value as text, the same whatever format it was read from.

    Missing is empty; booleans are true and false; whole floats lose their ``.0`` (a column of integers with a gap is
    one of floats in parquet); lists and objects are compact JSON; dates are ISO 8601; bytes are UTF-8.
    """
    return "" if is_missing(value) else _valid(_text(value))


@singledispatch
def _text(value: object) -> str:
    return str(value)


@_text.register(bool)
@_text.register(list)
@_text.register(dict)
def _json_text(value: object) -> str:
    return json.dumps(_jsonable(value), ensure_ascii=False, separators=(",", ":"))


@_text.register
def _float_text(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < _EXACT_INTEGERS else repr(value)


@_text.register(date)
@_text.register(time)
def _iso_text(value: date | time) -> str:
    return value.isoformat()


@_text.register
def _decimal_text(value: Decimal) -> str:
    return format(value, "f")


@_text.register
def _bytes_text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")


def _jsonable(value: object) -> object:
    """Return a value that JSON can hold: gaps are null, and what JSON has no type for is text."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if is_missing(value):
        return None
    return value if isinstance(value, str | bool | int | float) else cell_text(value)


def _valid(text: str) -> str:
    """Return text that UTF-8 can hold: half of a surrogate pair, which JSON can escape, becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
