"""Reads manifests: YAML with several documents, where every mistake of the syntax is told with its line."""

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from finetuning_api.rules import Path

_MOST_FIELDS = 100_000
"""Aliases of aliases can make a short text enormous; no manifest has this many fields."""
_DEEPEST = 64
"""An alias inside its own anchor never ends; no manifest is this deep."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a manifest file. Documents that hold nothing are left out."""

    content: object
    line: int
    """Line of the file where it starts, from 1."""
    lines: Mapping[Path, int]
    """Line of every field, by its path."""

    def line_of(self, path: Path) -> int:
        """Return the line of a field, or of the nearest field around it that is written down."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, self.line)


class ManifestSyntaxError(ValueError):
    """A text that is not YAML, or that is ambiguous; ``line`` and ``column`` count from 1."""

    def __init__(self, message: str, *, line: int, column: int, hint: str = "") -> None:
        super().__init__(f"line {line}, column {column}: {message}")
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: 1e-3 is a number, a date is text, and no key stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        _refuse_duplicates(node)
        return super().construct_mapping(node, deep=deep)


_KEPT_TAGS = frozenset({"tag:yaml.org,2002:" + tag for tag in ("bool", "null", "merge")})
_NUMBERS = (
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$|^0[0-7]+$|^0x[0-9a-fA-F]+$"),
    ("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$"),
    ("float", r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
)


def _resolvers() -> dict[str, list[tuple[str, Any]]]:
    """Return how plain scalars get their types: YAML's own way for booleans and null, JSON's for numbers.

    YAML 1.1 as PyYAML reads it takes 1e-3 for text, 12:30 for a number of base 60, and 2026-01-31 for a date.
    """
    inherited = {
        first: [(tag, regex) for tag, regex in pairs if tag in _KEPT_TAGS]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+.0123456789":
        numbers = [(f"tag:yaml.org,2002:{name}", re.compile(regex)) for name, regex in _NUMBERS]
        inherited[first] = [*inherited.get(first, []), *numbers]
    return inherited


_Loader.yaml_implicit_resolvers = _resolvers()


def load_manifests(text: str) -> list[Document]:
    """Read every document of a manifest file; raises ManifestSyntaxError at the first place that is not YAML."""
    try:
        return list(_documents(_Loader(text.removeprefix("\ufeff"))))
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        message = f"character {error.character:#06x} cannot stand in YAML"
        raise ManifestSyntaxError(message, line=line, column=1, hint="save the file as UTF-8 text") from None


def _documents(loader: _Loader) -> Iterator[Document]:
    while loader.check_node() and (node := loader.get_node()) is not None:
        lines = _line_of_each_field(node)
        content = loader.construct_document(node)
        if content is not None:
            yield Document(content=content, line=node.start_mark.line + 1, lines=lines)


def _line_of_each_field(node: yaml.Node) -> dict[Path, int]:
    lines: dict[Path, int] = {}
    for path, line in _lines(node, path=()):
        lines[path] = line
        if len(lines) > _MOST_FIELDS:
            raise ManifestSyntaxError("the document has too many fields", line=line, column=1)
    return lines


def _lines(node: yaml.Node, *, path: Path) -> Iterator[tuple[Path, int]]:
    line = node.start_mark.line + 1
    if len(path) > _DEEPEST:
        raise ManifestSyntaxError("the document is nested too deeply", line=line, column=1)
    yield path, line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            yield from _lines(value, path=below)
            # A field's line is the one of its name: its value may start on the next.
            yield below, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _lines(item, path=(*path, index))


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    first: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        mark = key.start_mark
        if key.value in first:
            message = f"{key.value!r} stands here and on line {first[key.value]}"
            raise ManifestSyntaxError(
                message,
                line=mark.line + 1,
                column=mark.column + 1,
                hint="a field can be given once; remove one of them",
            )
        first[key.value] = mark.line + 1


def _syntax_error(error: yaml.MarkedYAMLError) -> ManifestSyntaxError:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    problem = error.problem or error.context or "not YAML"
    if "'\\t'" in problem:
        return ManifestSyntaxError(
            "a tab is used for indentation", line=line, column=column, hint="YAML is indented with spaces: use two"
        )
    message = f"{error.context}: {problem}" if error.context else problem
    return ManifestSyntaxError(message, line=line, column=column, hint=_hint(problem))


def _hint(problem: str) -> str:
    return next((hint for beginning, hint in _HINTS.items() if problem.startswith(beginning)), "")


_HINTS: Mapping[str, str] = {
    "mapping values are not allowed here": "a text that holds ': ' needs quotes, and the fields of one mapping need"
    " the same indentation",
    "could not find expected ':'": "a field is written as name: value",
    "found character": "put the text in quotes",
    "found unexpected end of stream": "a quotation mark is opened and never closed",
    "found unknown escape character": "in double quotes a backslash is written twice; single quotes take it as it is",
    "found undefined alias": "a text that starts with * needs quotes",
    "expected <block end>": "check the indentation and the quotes around this line",
    "expected '<document start>'": "the fields of one mapping need the same indentation",
    "expected ',' or '}'": "a mapping in braces needs commas between its fields and } at its end",
    "expected ',' or ']'": "a list in brackets needs commas between its items and ] at its end",
}
"""What to do, by the first words of what the parser says."""
