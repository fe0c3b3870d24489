"""Files of every format become rows with the values that the user wrote; broken ones are told with their place."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from finetuning_api.dataset import DataFormat, RowFormat
from finetuning_api.reasons import Reason
from finetuning_workload.data import load_table
from finetuning_workload.errors import UserError

ROWS = [{"q": "one", "a": "1"}, {"q": "twö", "a": "2"}]


def rows_of(path: Path, data_format: DataFormat = DataFormat.AUTO) -> list[dict[str, object]]:
    return [dict(row) for row in load_table(path, RowFormat(format=data_format))]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(rows: list[dict[str, object]] | list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def failure(path: Path, data_format: DataFormat = DataFormat.AUTO) -> UserError:
    with pytest.raises(UserError) as caught:
        load_table(path, RowFormat(format=data_format))
    return caught.value


def write_every_format(folder: Path) -> dict[str, Path]:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, folder / "rows.parquet")
    for name, writer in (("stream.arrow", pa.ipc.new_stream), ("file.feather", pa.ipc.new_file)):
        with pa.OSFile(str(folder / name), "wb") as sink, writer(sink, table.schema) as stream:
            stream.write_table(table)
    return {
        "jsonl": written(folder, "rows.jsonl", jsonl(ROWS)),
        "ndjson": written(folder, "rows.ndjson", jsonl(ROWS).replace("\n", "\r\n\r\n")),
        "gzip": written(folder, "rows.jsonl.gz", gzip.compress(jsonl(ROWS).encode())),
        "json list": written(folder, "rows.json", json.dumps(ROWS, indent=2)),
        "json wrapped": written(folder, "wrapped.json", json.dumps({"data": ROWS})),
        "json that is jsonl": written(folder, "lines.json", jsonl(ROWS)),
        "csv": written(folder, "rows.csv", "q,a\none,1\ntwö,2\n"),
        "tsv": written(folder, "rows.tsv", "q\ta\none\t1\ntwö\t2\n"),
        "csv in gzip": written(folder, "rows.csv.gz", gzip.compress("q,a\none,1\ntwö,2\n".encode())),
        "parquet": folder / "rows.parquet",
        "arrow stream": folder / "stream.arrow",
        "arrow file": folder / "file.feather",
    }


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    found = {name: rows_of(path) for name, path in write_every_format(tmp_path).items()}
    assert found == dict.fromkeys(found, ROWS)


def test_same_content_has_the_same_ids_in_every_format(tmp_path: Path) -> None:
    ids = {load_table(path, RowFormat()).row_ids for path in write_every_format(tmp_path).values()}
    assert len(ids) == 1


def test_data_saved_by_datasets_is_read_without_its_bookkeeping(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert rows_of(tmp_path / "saved") == ROWS


def test_table_can_be_gone_through_again_and_knows_its_columns(tmp_path: Path) -> None:
    table = load_table(written(tmp_path, "x.jsonl", '{"a": 1}\n{"b": 2, "a": 3}\n'), RowFormat())
    assert (table.columns, len(table), list(table)) == (("a", "b"), 2, list(table))


def test_nothing_is_left_in_the_scratch_folder(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    table = load_table(written(tmp_path, "x.csv", "a\n1\n"), RowFormat(), scratch=scratch)
    assert ([dict(row) for row in table], list(scratch.iterdir())) == ([{"a": "1"}], [])


def test_changed_file_is_never_served_from_an_older_copy(tmp_path: Path) -> None:
    path = written(tmp_path, "x.jsonl", '{"a": 1}\n')
    before = rows_of(path)
    written(tmp_path, "x.jsonl", '{"a": 2}\n')
    assert (before, rows_of(path)) == ([{"a": 1}], [{"a": 2}])


@pytest.mark.parametrize("folder", [".finetuning/x", "we [v1] *?", "a::b", "ü #1%20"])
def test_names_of_folders_are_never_patterns_or_addresses(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    found = {name: rows_of(path) for name, path in write_every_format(tmp_path / folder).items()}
    assert found == dict.fromkeys(found, ROWS)


# What must survive


def test_json_values_are_not_guessed_at(tmp_path: Path) -> None:
    row = {
        "day": "2024-05-01",
        "big": 12345678901234567890123,
        "half": 0.5,
        "nothing": None,
        "nested": {"z": 1, "a": []},
    }
    assert rows_of(written(tmp_path, "x.jsonl", json.dumps(row))) == [row]


def test_mixed_types_in_one_column_stay_what_they_are(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"a": 1}, {"a": "two"}, {"a": {"k": [3]}}, {"a": True}, {"a": None}, {}]
    assert rows_of(written(tmp_path, "x.jsonl", jsonl(rows))) == rows


def test_csv_cells_stay_text(tmp_path: Path) -> None:
    path = written(tmp_path, "x.csv", 'a,b\n007,NA\n1.50,null\n,true\n"q ""x""","two\nlines"\n2024-05-01,None\n')
    assert [tuple(row.values()) for row in rows_of(path)] == [
        ("007", "NA"),
        ("1.50", "null"),
        ("", "true"),
        ('q "x"', "two\nlines"),
        ("2024-05-01", "None"),
    ]


def test_text_files_give_paragraphs(tmp_path: Path) -> None:
    path = written(tmp_path, "x.txt", "one\nstill one\r\n\r\n\n\n  \n\ntwo\n\nthree")
    assert [row["text"] for row in rows_of(path)] == ["one\nstill one", "two", "three"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("x.jsonl", '{"a": "é"}\n'), ("x.json", '[{"a": "é"}]'), ("x.csv", "a\né\n"), ("x.tsv", "a\né\n")],
)
def test_byte_order_marks_tell_the_encoding_and_are_no_part_of_the_data(
    tmp_path: Path, name: str, content: str, encoding: str
) -> None:
    assert rows_of(written(tmp_path, name, content.encode(encoding))) == [{"a": "é"}]


def test_every_file_of_a_folder_may_have_its_own_byte_order_mark(tmp_path: Path) -> None:
    written(tmp_path, "1.txt", "one\n".encode("utf-8-sig"))
    written(tmp_path, "2.txt", "two\n".encode("utf-8-sig"))
    assert rows_of(tmp_path) == [{"text": "one"}, {"text": "two"}]


def test_images_stay_bytes_and_need_no_decoder(tmp_path: Path) -> None:
    features = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("text", pa.string())], metadata=features)
    row = {"image": {"bytes": b"no image", "path": None}, "text": "t"}
    pq.write_table(pa.Table.from_pylist([row], schema=schema), tmp_path / "x.parquet")
    assert rows_of(tmp_path) == [row]


def test_repeated_rows_get_ids_of_their_own(tmp_path: Path) -> None:
    table = load_table(written(tmp_path, "x.jsonl", '{"a": 1, "b": 2}\n{"b": 2, "a": 1}\n{"a": 2}\n'), RowFormat())
    first, second, other = table.row_ids
    assert (len(first), second, other == first) == (16, f"{first}-1", False)


# Folders


def test_manifest_hidden_files_and_read_me_are_no_data(tmp_path: Path) -> None:
    for name in ("manifest.json", ".cache/x.csv", ".hidden.jsonl", "README.txt", "LICENSE", "dataset_infos.json"):
        written(tmp_path, name, "not data")
    written(tmp_path, "data/train/a.jsonl", '{"a": 1}\n')
    written(tmp_path, "data/test/b.jsonl", '{"a": 2}\n')
    assert sorted(str(row["a"]) for row in rows_of(tmp_path)) == ["1", "2"]


def test_several_formats_need_a_choice(tmp_path: Path) -> None:
    written(tmp_path, "a.jsonl", '{"a": 1}\n')
    written(tmp_path, "b.csv", "a\n2\n")
    error = failure(tmp_path)
    assert (error.reason, "1 csv, 1 jsonl" in error.message) == (Reason.DATASET_UNREADABLE, True)
    assert rows_of(tmp_path, DataFormat.CSV) == [{"a": "2"}]


def test_format_is_taken_at_its_word_for_a_name_without_one(tmp_path: Path) -> None:
    path = written(tmp_path, "download", '{"a": 1}\n')
    assert "format" in failure(path).hint
    assert rows_of(path, DataFormat.JSONL) == rows_of(tmp_path, DataFormat.JSONL) == [{"a": 1}]


def test_folder_without_data_says_what_it_holds(tmp_path: Path) -> None:
    written(tmp_path, "model.safetensors", "x")
    error = failure(tmp_path)
    assert (error.reason, "model.safetensors" in error.message) == (Reason.DATASET_UNREADABLE, True)


def test_missing_path_is_told(tmp_path: Path) -> None:
    assert failure(tmp_path / "nowhere").reason is Reason.DATASET_UNREADABLE


# Broken files


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.jsonl", ""), ("x.jsonl", "\n\n"), ("x.json", "[]"), ("x.csv", ""), ("x.csv", "a,b\n"), ("x.txt", "\ufeff \n")],
)
def test_empty_data_is_refused(tmp_path: Path, name: str, content: str) -> None:
    error = failure(written(tmp_path, name, content))
    assert (error.reason, name in error.message) == (Reason.DATASET_EMPTY, True)


def test_empty_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "x.parquet")
    assert failure(tmp_path).reason is Reason.DATASET_EMPTY


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"a": 1}\n\n{"a": \n', "x.jsonl line 3 is not JSON"),
        ('{"a": 1}\n[1]\n', "x.jsonl line 2 holds a list, not an object"),
        ('"text"\n', "x.jsonl line 1 holds a string, not an object"),
        ("[" * 100_000, "x.jsonl line 1 is not JSON"),
    ],
)
def test_broken_line_is_named(tmp_path: Path, content: str, told: str) -> None:
    error = failure(written(tmp_path, "x.jsonl", content))
    assert error.reason is Reason.DATASET_UNREADABLE
    assert error.message.startswith(told)


def test_json_list_under_the_wrong_name_is_recognised(tmp_path: Path) -> None:
    assert "spec.dataset.format: json" in failure(written(tmp_path, "x.jsonl", '[\n{"a": 1}\n]')).hint


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[{"a": 1},\n {"a": }]', "x.json is not JSON: Expecting value at line 2, column 8"),
        ("[1, 2]", "x.json item 1 is a number, not an object"),
        ('"text"', "x.json holds a string, not a list of objects"),
    ],
)
def test_broken_document_is_named(tmp_path: Path, content: str, told: str) -> None:
    assert failure(written(tmp_path, "x.json", content)).message == told


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt"])
def test_wrong_encoding_names_line_and_byte(tmp_path: Path, name: str) -> None:
    head = '{"a": "ok"}\n' if name.startswith("x.json") else "a,b\n"
    error = failure(written(tmp_path, name, head.encode() + '{"a": "é"}\n'.encode("latin-1")))
    assert error.reason is Reason.DATASET_UNREADABLE
    assert error.message == f"{name} is not valid UTF-8: line 2, byte {len(head) + 7} (0xe9)"
    assert f"iconv -f WINDOWS-1252 -t UTF-8 {name}" in error.hint


@pytest.mark.parametrize("content", ["a,b\n1,2,3\n", "a,b\n1,2\n4,5,6\n"])
def test_csv_row_with_more_cells_than_the_header_is_refused(tmp_path: Path, content: str) -> None:
    assert failure(written(tmp_path, "x.csv", content)).reason is Reason.DATASET_UNREADABLE


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.jsonl.gz"])
def test_damaged_binary_file_is_named(tmp_path: Path, name: str) -> None:
    error = failure(written(tmp_path, name, b"certainly nothing of the kind"))
    assert (error.reason, name in error.message) == (Reason.DATASET_UNREADABLE, True)
