"""Manifests are read as Kubernetes reads them, and what is not YAML is told with its line and a remedy."""

import pytest

from finetuning_api.manifests import ManifestSyntaxError, load_manifests


def test_every_document_of_a_file_is_read_with_its_line_and_empty_ones_are_left_out() -> None:
    documents = load_manifests("# only a comment\n---\na: 1\n---\n\n---\nb:\n  c: [1, 2]\n")
    assert [(document.content, document.line) for document in documents] == [({"a": 1}, 3), ({"b": {"c": [1, 2]}}, 7)]


@pytest.mark.parametrize("text", ["", "---\n---\n", "# nothing\n", "\ufeff"])
def test_a_file_without_documents_is_an_empty_list(text: str) -> None:
    assert load_manifests(text) == []


def test_fields_know_their_lines() -> None:
    (document,) = load_manifests("spec:\n  training:\n    epochs: 3\n  gate:\n    - metric: cola\n")
    assert document.line_of(("spec", "training", "epochs")) == 3
    assert document.line_of(("spec", "gate", 0, "metric")) == 5
    assert document.line_of(("spec", "training", "seed")) == 2
    assert document.line_of(("status",)) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2.0e-4", 0.0002),
        ("5E2", 500.0),
        (".5", 0.5),
        ("-3", -3),
        ("16", 16),
        ("12:30", "12:30"),
        ("2026-01-31", "2026-01-31"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ("1_000", "1_000"),
        ("true", True),
        ("~", None),
        ("16Gi", "16Gi"),
        ("v1.0", "v1.0"),
    ],
)
def test_plain_values_get_the_types_that_a_reader_expects(text: str, value: object) -> None:
    (document,) = load_manifests(f"a: {text}")
    assert document.content == {"a": value}


def test_anchors_and_merges_are_read() -> None:
    (document,) = load_manifests("a: &base {x: 1, y: 2}\nb:\n  <<: *base\n  y: 3\n")
    assert document.content == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", 4, "'c' stands here and on line 3", "remove one of them"),
        ("a:\n\tb: 1\n", 2, "a tab is used for indentation", "spaces"),
        ("a: b: c\n", 1, "mapping values are not allowed here", "quotes"),
        ("a: [1, 2\n", 2, "expected ',' or ']'", "brackets"),
        ("a: {b: 1\n", 2, "expected ',' or '}'", "braces"),
        ("a: 'b\n", 2, "unexpected end of stream", "quotation mark"),
        ("  a: 1\n b: 2\n", 2, "expected '<document start>'", "indentation"),
        ("a: @b\n", 1, "cannot start any token", "quotes"),
        ('a: "\\q"\n', 1, "unknown escape", "backslash"),
        ("a: *b\n", 1, "undefined alias", "quotes"),
        ("a: 1\nb: \x00\n", 2, "0x0000 cannot stand in YAML", "UTF-8"),
        ("a: &a [*a]\n", 1, "nested too deeply", ""),
        ("a: 1\n---\nb: [\n", 4, "expected the node content", ""),
        ("a: !!python/object:os.system {}\n", 1, "could not determine a constructor", ""),
        ("? [a, b]\n: 1\n", 1, "unhashable key", ""),
    ],
)
def test_what_is_not_yaml_is_told_with_its_line_and_a_remedy(text: str, line: int, message: str, hint: str) -> None:
    with pytest.raises(ManifestSyntaxError) as raised:
        load_manifests(text)
    assert raised.value.line == line
    assert message in raised.value.message
    assert hint in raised.value.hint


def test_aliases_cannot_make_a_short_text_enormous() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ManifestSyntaxError, match="too many fields"):
        load_manifests("\n".join(lines))
