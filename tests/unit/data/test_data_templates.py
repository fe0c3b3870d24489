"""Templates render columns of any type, and mistakes in them are told with what to write instead."""

import datetime as dt
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning_api.reasons import Reason
from finetuning_workload.data.templates import cell_text, parse_template
from finetuning_workload.errors import UserError

FIELD = "spec.dataset.prompt"


def render(template: str, **row: object) -> str:
    return parse_template(template, field=FIELD).render(row)


def failure(template: str, *columns: str) -> UserError:
    with pytest.raises(UserError) as caught:
        parse_template(template, field=FIELD).require_columns(columns)
    return caught.value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (" kept as it is \n", " kept as it is \n"),
        (None, ""),
        (float("nan"), ""),
        ("", ""),
        (7, "7"),
        (7.0, "7"),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (True, "true"),
        (False, "false"),
        ({"b": 1, "a": [True, None, "é", float("nan")]}, '{"b":1,"a":[true,null,"é",null]}'),
        ([], "[]"),
        (dt.date(2024, 5, 1), "2024-05-01"),
        (dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC), "2024-05-01T12:00:00+00:00"),
        (dt.time(12, 30), "12:30:00"),
        (Decimal("1.50"), "1.50"),
        ("é漢🙂".encode(), "é漢🙂"),
        ({"when": dt.date(2024, 5, 1)}, '{"when":"2024-05-01"}'),
        (12345678901234567890123, "12345678901234567890123"),
    ],
)
def test_values_of_every_type_become_predictable_text(value: object, text: str) -> None:
    assert cell_text(value) == text


def test_half_of_a_surrogate_pair_becomes_text_that_utf8_can_hold() -> None:
    assert cell_text("a\ud83d b").encode().decode() == "a\ufffd b"
    assert cell_text("\ud83d\ude42") == "🙂"


def test_placeholders_are_filled_and_missing_cells_are_empty() -> None:
    assert render("Q: {q}\nA: {a}{gone}\n", q="why?", a=None) == "Q: why?\nA: \n"


def test_doubled_braces_are_literal() -> None:
    assert render('{{"answer": "{a}"}}', a="yes") == '{"answer": "yes"}'


def test_values_with_braces_are_not_rendered_again() -> None:
    assert render("{a}{b}", a="{b}", b="{{x}}") == "{b}{{x}}"


def test_column_names_may_hold_blanks_dots_and_colons() -> None:
    assert render("{my column}/{a.b}/{a:b}", **{"my column": 1, "a.b": 2, "a:b": 3}) == "1/2/3"


def test_placeholder_gives_no_access_to_attributes() -> None:
    error = failure("{a.__class__}", "a")
    assert error.reason is Reason.COLUMN_NOT_FOUND


def test_unknown_column_names_field_placeholder_and_columns() -> None:
    error = failure("Triage: {mesage}", "message", "triage")
    assert error.reason is Reason.COLUMN_NOT_FOUND
    expected = "spec.dataset.prompt: the data has no column for {mesage}; its columns are message, triage"
    assert (error.message, error.hint) == (expected, "Did you mean 'message'?")


def test_json_braces_in_a_template_are_explained() -> None:
    error = failure('{"answer": 1}', "answer")
    assert "{{ and }}" in error.hint


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ('{"answer": {a}}', "a single { at character 1"),
        ("open { only", "a single { at character 6"),
        ("close } only", "a single } at character 7"),
        ("nothing {} inside", "an empty placeholder at character 9"),
    ],
)
def test_lone_brace_is_refused_with_its_place(template: str, told: str) -> None:
    error = failure(template, "a")
    assert error.reason is Reason.INVALID_SPEC
    assert error.message.startswith(f"{FIELD} has {told}")
    assert "{{ and }}" in error.hint


@given(st.text())
def test_text_with_its_braces_doubled_renders_as_itself(text: str) -> None:
    assert render(text.replace("{", "{{").replace("}", "}}")) == text
