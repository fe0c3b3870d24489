"""Which rows are held out follows from their content and the seed, never from their place or from other rows."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning_api.dataset import DatasetSplit
from finetuning_api.reasons import Reason
from finetuning_workload.data import RenderedRow, Segment, Side, side_of, split_rows
from finetuning_workload.data.splitting import chosen_ids, require_both_sides
from finetuning_workload.errors import UserError


def row(prompt: str, completion: str = "done", *, group: str | None = None) -> RenderedRow:
    segments = (Segment(prompt, supervised=False), Segment(completion, supervised=True))
    return RenderedRow(f"{prompt}/{completion}", segments, group=group)


ROWS = st.lists(st.builds(row, st.text(max_size=5), st.text(min_size=1, max_size=3)), max_size=40)
SPLITS = st.builds(DatasetSplit, test=st.floats(0.05, 0.95), seed=st.integers(0, 2**31 - 1))


@given(rows=ROWS, split=SPLITS, shuffle=st.randoms(use_true_random=False))
def test_side_does_not_depend_on_the_order_of_rows(
    rows: list[RenderedRow], split: DatasetSplit, shuffle: Random
) -> None:
    train, test = split_rows(rows, split)
    shuffled = list(rows)
    shuffle.shuffle(shuffled)
    again_train, again_test = split_rows(shuffled, split)
    assert sorted(train, key=str) == sorted(again_train, key=str)
    assert sorted(test, key=str) == sorted(again_test, key=str)


@given(rows=ROWS, more=ROWS, split=SPLITS)
def test_added_rows_move_no_other_row(rows: list[RenderedRow], more: list[RenderedRow], split: DatasetSplit) -> None:
    _, test = split_rows(rows, split)
    _, test_of_all = split_rows(rows + more, split)
    assert test_of_all[: len(test)] == test


@given(rows=ROWS, split=SPLITS)
def test_same_prompt_never_straddles(rows: list[RenderedRow], split: DatasetSplit) -> None:
    train, test = split_rows(rows, split)
    assert {row.prompt for row in train if row.prompt}.isdisjoint({row.prompt for row in test})


@given(prompts=st.lists(st.text(), min_size=2), split=SPLITS)
def test_same_group_never_straddles_whatever_the_prompts(prompts: list[str], split: DatasetSplit) -> None:
    assert len({side_of(row(prompt, group="one"), split) for prompt in prompts}) == 1


def test_text_without_a_prompt_is_split_by_the_text() -> None:
    texts = [RenderedRow(str(number), (Segment(f"text {number}", supervised=True),)) for number in range(200)]
    train, test = split_rows(texts, DatasetSplit(test=0.5))
    assert (len(train) > 60, len(test) > 60) == (True, True)


def test_share_of_held_out_rows_is_about_what_was_asked_for() -> None:
    _, test = split_rows([row(f"prompt {number}") for number in range(5000)], DatasetSplit(test=0.1))
    assert 400 < len(test) < 600


def test_seed_changes_the_side() -> None:
    rows = [row(f"prompt {number}") for number in range(200)]
    held_out = [[row.row_id for row in split_rows(rows, DatasetSplit(test=0.5, seed=seed))[1]] for seed in (1, 2)]
    assert held_out[0] != held_out[1]


def test_side_of_a_row_is_the_same_for_ever() -> None:
    # A change here moves held-out rows into training for everybody: PREPARATION_VERSION must be raised with it.
    split = DatasetSplit(test=0.5, seed=42)
    held_out = [number for number in range(16) if side_of(row(f"prompt {number}"), split) is Side.TEST]
    assert held_out == [0, 1, 4, 6, 7, 9, 10, 11, 13, 15]


@given(ids=st.lists(st.text(), unique=True), limit=st.integers(1, 50), seed=st.integers(0, 9))
def test_limit_picks_by_hash_and_a_smaller_limit_picks_a_part(ids: list[str], limit: int, seed: int) -> None:
    chosen = chosen_ids(ids, limit=limit, seed=seed) or frozenset(ids)
    smaller = chosen_ids(ids, limit=max(1, limit // 2), seed=seed) or frozenset(ids)
    assert len(chosen) == min(limit, len(ids))
    assert smaller <= chosen == (chosen_ids(ids[::-1], limit=limit, seed=seed) or frozenset(ids))


@pytest.mark.parametrize(
    ("train", "test", "keys", "group_by", "told", "hint"),
    [
        (
            5,
            0,
            5,
            None,
            "no row to test: of 5 usable rows with 5 different prompts",
            "a larger spec.dataset.split.test",
        ),
        (0, 5, 5, None, "no row to train: of 5 usable rows", "a smaller spec.dataset.split.test"),
        (9, 0, 1, None, "9 usable rows with 1 different prompts", "spec.dataset.split.groupBy"),
        (9, 0, 2, "author", "2 different values of 'author'", "another spec.dataset.split.seed"),
    ],
)
def test_empty_side_is_refused_with_numbers(
    train: int, test: int, keys: int, group_by: str | None, told: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        require_both_sides(train=train, test=test, keys=keys, split=DatasetSplit(group_by=group_by))
    assert caught.value.reason is Reason.SPLIT_EMPTY
    assert told in caught.value.message
    assert hint in caught.value.hint


def test_sides_are_named_as_folders_are() -> None:
    assert [str(side) for side in Side] == ["train", "test"]
