"""Preparing a data set: what is counted, what is refused, and when the cache is used."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.support.tokenizing import CHATML, byte_tokenizer
from transformers import PreTrainedTokenizerBase

from finetuning_api.dataset import DatasetSplit, OverlongPolicy, RowFormat
from finetuning_api.finetuningjob import TrainingSpec
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import DatasetCounts, DatasetInput, Provenance
from finetuning_workload.data import (
    PreparedData,
    TokenizedSplit,
    held_out_rows,
    load_table,
    preparation_digest,
    prepare,
    render_rows,
    split_rows,
    tokenizer_digest,
)
from finetuning_workload.errors import UserError
from finetuning_workload.progress import Reporter

SPLIT = DatasetSplit(test=0.3)
PAIRS = RowFormat(prompt="{q}\n", completion="{a}", split=SPLIT)
Rows = list[dict[str, object]]


def pairs(count: int) -> Rows:
    return [{"q": f"question {number}", "a": f"answer {number}"} for number in range(count)]


def dataset(folder: Path, rows: Rows, row_format: RowFormat = PAIRS) -> DatasetInput:
    path = folder / "data" / "rows.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    provenance = Provenance(source="file:rows.jsonl", digest=f"sha256:{'0' * 64}")
    return DatasetInput(path=str(path.parent), rows=row_format, provenance=provenance)


def prepared(
    folder: Path,
    rows: Rows,
    row_format: RowFormat = PAIRS,
    *,
    training: TrainingSpec | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreparedData:
    return prepare(
        dataset(folder, rows, row_format),
        tokenizer or byte_tokenizer(),
        training=training or TrainingSpec(),
        cache=folder / "cache",
    )


def failure(
    folder: Path, rows: Rows, row_format: RowFormat = PAIRS, *, training: TrainingSpec | None = None
) -> UserError:
    with pytest.raises(UserError) as caught:
        prepared(folder, rows, row_format, training=training)
    assert not [path for path in (folder / "cache").glob("*") if path.is_dir()], "something half-done was left"
    return caught.value


def texts(split: TokenizedSplit, tokenizer: PreTrainedTokenizerBase | None = None) -> set[str]:
    decode = (tokenizer or byte_tokenizer()).decode
    return {str(decode(split.sample(index).ids)) for index in range(len(split))}


def test_arrays_hold_every_row_on_its_side(tmp_path: Path) -> None:
    rows = pairs(40)
    data = prepared(tmp_path, rows)
    tokenizer = byte_tokenizer()
    table = load_table(tmp_path / "data", PAIRS)
    train, test = split_rows(render_rows(table, PAIRS, tokenizer), SPLIT)
    assert texts(data.train) == {f"{row.text}</s>" for row in train}
    assert texts(data.test) == {f"{row.text}</s>" for row in test}
    assert list(data.test.row_ids) == [row.row_id for row in test]
    arrays = (data.train.ids, data.train.supervised, data.train.offsets)
    assert [array.dtype for array in arrays] == [np.int32, np.uint8, np.int64]
    assert all(isinstance(array, np.memmap) for array in arrays)
    assert data.train.lengths.sum() == len(data.train.ids) == data.train.offsets[-1]
    sample = data.train.sample(0)
    learned = [token for token, on in zip(sample.ids, sample.supervised, strict=True) if on]
    assert str(tokenizer.decode(learned)).startswith("answer ")


def test_everything_is_counted(tmp_path: Path) -> None:
    rows: Rows = [*pairs(40), {"q": "no answer", "a": ""}, {"q": "x" * 60, "a": "gone"}, {"q": "y" * 40, "a": "z" * 60}]
    training = TrainingSpec(max_length=50)
    data = prepared(tmp_path, rows, training=training)
    counts = data.counts
    assert counts == DatasetCounts(
        rows=43,
        train_rows=len(data.train),
        test_rows=len(data.test),
        truncated_rows=1,
        dropped_rows=1,
        masked_rows=1,
        tokens=len(data.train.ids) + len(data.test.ids),
        supervised_tokens=int(data.train.supervised.sum() + data.test.supervised.sum()),
        columns=("q", "a"),
    )
    assert counts.rows == counts.train_rows + counts.test_rows + counts.dropped_rows + counts.masked_rows
    assert max(data.train.lengths.max(), data.test.lengths.max()) == 50


def test_held_out_rows_are_the_test_side(tmp_path: Path) -> None:
    rows: Rows = [*pairs(60), {"q": "no answer", "a": None}]
    data = prepared(tmp_path, rows)
    held_out = held_out_rows(dataset(tmp_path, rows), byte_tokenizer(), limit=None)
    assert sorted(row.row_id for row in held_out) == sorted(data.test.row_ids)


def test_held_out_rows_include_those_that_are_too_long_to_train_on(tmp_path: Path) -> None:
    rows = pairs(60)
    long: Rows = [{"q": f"{'x' * 100} {number}", "a": "y"} for number in range(60)]
    training = TrainingSpec(max_length=50, max_lost_rows=0.6)
    data = prepared(tmp_path, rows + long, training=training)
    held_out = {row.row_id for row in held_out_rows(dataset(tmp_path, rows + long), byte_tokenizer(), limit=None)}
    assert set(map(str, data.test.row_ids)) < held_out
    assert held_out.isdisjoint(map(str, data.train.row_ids))


def test_held_out_rows_do_not_depend_on_the_order_and_a_limit_takes_the_first(tmp_path: Path) -> None:
    rows = pairs(60)
    all_rows = held_out_rows(dataset(tmp_path, rows), byte_tokenizer(), limit=None)
    assert held_out_rows(dataset(tmp_path, rows[::-1]), byte_tokenizer(), limit=5) == all_rows[:5]


def test_limit_uses_the_same_rows_for_training_and_evaluation(tmp_path: Path) -> None:
    row_format = PAIRS.model_copy(update={"limit": 30})
    rows = pairs(100)
    data = prepared(tmp_path, rows, row_format)
    held_out = held_out_rows(dataset(tmp_path, rows, row_format), byte_tokenizer(), limit=None)
    assert (data.counts.rows, len(held_out)) == (30, len(data.test))
    assert prepared(tmp_path, rows[::-1], row_format).counts.model_dump(exclude={"columns"}) == data.counts.model_dump(
        exclude={"columns"}
    )


def test_evaluation_needs_no_row_to_train_on(tmp_path: Path) -> None:
    row_format = PAIRS.model_copy(update={"split": DatasetSplit(test=0.99)})
    assert len(held_out_rows(dataset(tmp_path, pairs(3), row_format), byte_tokenizer(), limit=None)) == 3


def test_evaluation_needs_a_completion(tmp_path: Path) -> None:
    rows: Rows = [{"q": "x", "a": ""}, {"q": "y", "a": None}]
    with pytest.raises(UserError) as caught:
        held_out_rows(dataset(tmp_path, rows), byte_tokenizer(), limit=None)
    assert caught.value.reason is Reason.COMPLETIONS_EMPTY


def test_group_by_keeps_groups_together(tmp_path: Path) -> None:
    rows: Rows = [{"q": f"q{number}", "a": "a", "author": f"author {number % 10}"} for number in range(60)]
    row_format = PAIRS.model_copy(update={"split": DatasetSplit(test=0.3, group_by="author")})
    held_out = held_out_rows(dataset(tmp_path, rows, row_format), byte_tokenizer(), limit=None)
    groups = {row.group for row in held_out}
    assert len(held_out) == 6 * len(groups)


def test_plain_text_goes_in_pieces_and_nothing_is_lost(tmp_path: Path) -> None:
    rows: Rows = [{"text": f"{number} " + "word " * 40} for number in range(20)]
    data = prepared(tmp_path, rows, RowFormat(split=SPLIT), training=TrainingSpec(max_length=64))
    assert (data.counts.truncated_rows, data.counts.train_rows + data.counts.test_rows) == (0, 20)
    assert data.counts.supervised_tokens == sum(len(str(row["text"])) + 1 for row in rows)
    assert len(data.train) + len(data.test) > 60


def test_chat_rows_are_prepared(tmp_path: Path) -> None:
    rows: Rows = [
        {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}]}
        for number in range(20)
    ]
    tokenizer = byte_tokenizer(eos="<|im_end|>", pad="<|im_end|>", chat_template=CHATML)
    data = prepared(tmp_path, rows, RowFormat(messages="messages", split=SPLIT), tokenizer=tokenizer)
    assert data.counts.supervised_tokens == 2 * 20
    assert all(text.endswith("assistant\na<|im_end|>") for text in texts(data.train, tokenizer))


def test_progress_is_reported(tmp_path: Path) -> None:
    stream = io.StringIO()
    reporter = Reporter("tokenise", stream=stream)
    prepare(
        dataset(tmp_path, pairs(20)),
        byte_tokenizer(),
        training=TrainingSpec(),
        cache=tmp_path / "cache",
        reporter=reporter,
    )
    assert "100% 20 of 20 rows" in stream.getvalue()


# Refused


@pytest.mark.parametrize("empty", ["", None, " \n", float("nan")])
def test_half_of_the_completions_empty_is_refused(tmp_path: Path, empty: object) -> None:
    rows: Rows = [{"q": f"q{number}", "a": "yes" if number % 2 else empty} for number in range(40)]
    error = failure(tmp_path, rows)
    assert error.reason is Reason.COMPLETIONS_EMPTY
    assert error.message == (
        "20 of 40 rows (1, 3, 5, 7, 9, ...) have an empty completion; spec.training.maxLostRows allows 10%"
    )


def test_text_around_an_empty_cell_is_no_completion(tmp_path: Path) -> None:
    rows: Rows = [{"q": f"q{number}", "a": None} for number in range(10)]
    row_format = RowFormat(prompt="{q}", completion="Answer: {a}.")
    assert failure(tmp_path, rows, row_format).reason is Reason.COMPLETIONS_EMPTY


def test_max_length_that_cuts_every_completion_says_what_would_fit(tmp_path: Path) -> None:
    error = failure(tmp_path, pairs(10), training=TrainingSpec(max_length=8))
    assert error.reason is Reason.TOO_MANY_ROWS_LOST
    assert error.message == (
        "10 of 10 rows (1, 2, 3, 4, 5, ...) keep no completion token at spec.training.maxLength 8;"
        " the longest prompt has 11 tokens, the longest row 20; spec.training.maxLostRows allows 10%"
    )
    assert error.hint == "Set spec.training.maxLength to 20 to keep every row whole, or shorten the prompts."


def test_dropping_every_row_is_refused_even_where_all_may_be_lost(tmp_path: Path) -> None:
    training = TrainingSpec(max_length=8, overlong=OverlongPolicy.DROP, max_lost_rows=1)
    error = failure(tmp_path, pairs(10), training=training)
    assert (error.reason, "are dropped" in error.message) == (Reason.TOO_MANY_ROWS_LOST, True)


def test_overlong_row_is_an_error_where_the_user_wants_one(tmp_path: Path) -> None:
    training = TrainingSpec(max_length=30, overlong=OverlongPolicy.ERROR)
    error = failure(tmp_path, [*pairs(20), {"q": "x" * 50, "a": "y"}], training=training)
    assert (error.reason, error.message) == (
        Reason.TOO_MANY_ROWS_LOST,
        "row 21 has 53 tokens, spec.training.maxLength is 30",
    )


def test_dropped_rows_are_counted(tmp_path: Path) -> None:
    training = TrainingSpec(max_length=30, overlong=OverlongPolicy.DROP)
    data = prepared(tmp_path, [*pairs(20), {"q": "short", "a": "y" * 50}], training=training)
    assert (data.counts.dropped_rows, data.counts.truncated_rows) == (1, 0)


def test_one_sided_split_is_refused(tmp_path: Path) -> None:
    rows: Rows = [{"q": "the same", "a": f"answer {number}"} for number in range(20)]
    error = failure(tmp_path, rows)
    assert (error.reason, "groupBy" in error.hint) == (Reason.SPLIT_EMPTY, True)
    with pytest.raises(UserError) as caught:
        held_out_rows(dataset(tmp_path, rows), byte_tokenizer(), limit=None)
    assert caught.value.message == error.message


@pytest.mark.parametrize(
    ("row_format", "field"),
    [
        (RowFormat(completion="{answer}"), "spec.dataset.completion"),
        (RowFormat(prompt="{question}", completion="{a}"), "spec.dataset.prompt"),
        (RowFormat(messages="chat"), "spec.dataset.messages"),
        (RowFormat(text="body"), "spec.dataset.text"),
        (RowFormat(), "spec.dataset sets none of completion, messages and text"),
        (PAIRS.model_copy(update={"split": DatasetSplit(group_by="author")}), "spec.dataset.split.groupBy"),
    ],
)
def test_missing_column_names_the_field_and_lists_the_columns(
    tmp_path: Path, row_format: RowFormat, field: str
) -> None:
    rows = [{**row, "messages": []} for row in pairs(5)]
    error = failure(tmp_path, rows, row_format)
    assert error.reason is Reason.COLUMN_NOT_FOUND
    assert error.message.startswith(field)
    assert error.message.endswith("its columns are q, a, messages")


def test_empty_data_is_refused(tmp_path: Path) -> None:
    assert failure(tmp_path, []).reason is Reason.DATASET_EMPTY


# Cache


def test_second_preparation_comes_from_the_cache(tmp_path: Path) -> None:
    first = prepared(tmp_path, pairs(20))
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    second = prepared(tmp_path, pairs(20))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert (second.digest, second.counts, texts(second.test)) == (first.digest, first.counts, texts(first.test))


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "train" / "ids.npy").write_bytes(b"short"),
        lambda folder: (folder / "test" / "supervised.npy").unlink(),
        lambda folder: (folder / "counts.json").write_text("{}"),
    ],
)
def test_torn_cache_is_made_again(tmp_path: Path, damage: Damage) -> None:
    first = prepared(tmp_path, pairs(20))
    expected = (first.counts, texts(first.train), texts(first.test))
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    damage(folder)
    second = prepared(tmp_path, pairs(20))
    assert (second.counts, texts(second.train), texts(second.test)) == expected


def test_what_a_killed_process_left_is_not_used(tmp_path: Path) -> None:
    digest = prepared(tmp_path / "", pairs(20)).digest
    other = tmp_path / "other"
    leftover = other / "cache" / f".building-{digest.removeprefix('sha256:')[:20]}"
    (leftover / "train").mkdir(parents=True)
    (leftover / "train" / "ids.npy").write_bytes(b"half")
    data = prepared(other, pairs(20))
    assert (data.digest, leftover.exists(), len(data.train) + len(data.test)) == (digest, False, 20)


def test_digest_changes_with_everything_that_shapes_the_data(tmp_path: Path) -> None:
    rows = pairs(5)

    def digest(
        *,
        data: Rows = rows,
        row_format: RowFormat = PAIRS,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **training: object,
    ) -> str:
        spec = TrainingSpec.model_validate(training)
        return preparation_digest(dataset(tmp_path, data, row_format), tokenizer or byte_tokenizer(), training=spec)

    assert digest() == digest(learning_rate=0.1, seed=7)
    changed = [
        digest(),
        digest(data=rows[1:]),
        digest(row_format=PAIRS.model_copy(update={"prompt": "{q}"})),
        digest(row_format=PAIRS.model_copy(update={"limit": 3})),
        digest(row_format=PAIRS.model_copy(update={"split": DatasetSplit(test=0.3, seed=1)})),
        digest(tokenizer=byte_tokenizer(eos="<|im_end|>")),
        digest(tokenizer=byte_tokenizer(adds_bos=True)),
        digest(tokenizer=byte_tokenizer(chat_template=CHATML)),
        digest(max_length=512),
        digest(overlong=OverlongPolicy.DROP),
        digest(max_lost_rows=0.2),
    ]
    assert len(set(changed)) == len(changed)


def test_digest_of_a_tokenizer_does_not_change_with_its_use() -> None:
    tokenizer = byte_tokenizer()
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(tokenizer) == before
