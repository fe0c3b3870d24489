"""A row's own answers are read from a list, or from a cell of a CSV file that holds one as JSON."""

import pytest

from finetuning_api.reasons import Reason
from finetuning_workload.data.choices import read_choices
from finetuning_workload.errors import UserError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["red", " green "], ("red", "green")),
        ('["red", "green"]', ("red", "green")),
        ([1, 2.0, True], ("1", "2", "true")),
        (["rot", "grün"], ("rot", "grün")),
        (None, ()),
        (float("nan"), ()),
        ("  ", ()),
        ([], ()),
    ],
)
def test_answers_are_texts_without_white_space_around_them(value: object, expected: tuple[str, ...]) -> None:
    assert read_choices(value, where="row 1") == expected


@pytest.mark.parametrize("value", ["red, green", '{"a": 1}', {"a": 1}, 7, [["red"]], [{"text": "red"}]])
def test_what_is_no_list_of_answers_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(UserError) as caught:
        read_choices(value, where="row 3, column 'options'")

    assert caught.value.reason is Reason.DATASET_UNREADABLE
    assert caught.value.message.startswith(
        "row 3, column 'options': spec.dataset.choices needs a list of answers, found"
    )
