"""Reading data files into a table of rows, without changing a value on the way.

Files are read by `datasets`. Two of its readers guess types and so change what a user wrote: a CSV cell ``007``
becomes the number 7, a JSON string ``2024-05-01`` a point in time. Templates render text, so CSV cells are read as
text, and JSON is read line by line (or as a document) and parsed by the standard library.
"""

import hashlib
import json
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from finetuning_api.dataset import DataFormat, RowFormat
from finetuning_api.reasons import Reason
from finetuning_workload.data.files import encoding_of, find_data_files, is_blank, undecodable
from finetuning_workload.errors import UserError

Row = Mapping[str, object]
"""One row: values by column. A column that a row lacks is a missing value."""

RowSource = Callable[[], Iterator[Row]]
"""Goes through rows from the first one on, every time that it is called."""

_BATCH_ROWS = 1000
TEXT_COLUMN = "text"
"""Column of the paragraphs of plain text files."""


@dataclass(frozen=True)
class Table:
    """The rows of a data set, read again from disk at every iteration."""

    columns: tuple[str, ...]
    row_ids: tuple[str, ...]
    """For every row: 16 hex digits of the hash of its content, and an ordinal for repeated rows."""
    _parts: tuple["_Part", ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.row_ids)

    def __iter__(self) -> Iterator[Row]:
        for part in self._parts:
            yield from part.rows()


@dataclass(frozen=True)
class _Part:
    """One file: its name for messages, and a way to go through its rows."""

    name: str
    rows: RowSource


@dataclass(frozen=True)
class _Workspace:
    """Where `datasets` works."""

    cache: str
    """Folder of its Arrow copies."""
    links: Path
    """Folder of links to the files."""

    def plain_path(self, file: Path) -> str:
        """Return a path without the characters that `datasets` takes for a pattern (``*?[``) or an address (``::``)."""
        link = self.links / (content_hash(str(file)) + (file.suffix if file.suffix.lower() == ".gz" else ""))
        if not link.is_symlink():
            link.symlink_to(file.resolve())
        return str(link)


@contextmanager
def _workspace(scratch: Path | None) -> Iterator[_Workspace]:
    with (
        tempfile.TemporaryDirectory(prefix=".reading-", dir=scratch) as cache,
        tempfile.TemporaryDirectory(prefix="reading-") as links,
    ):
        yield _Workspace(cache=cache, links=Path(links))


def load_table(path: Path, rows: RowFormat, *, scratch: Path | None = None) -> Table:
    """Read a data file, or all data files of a folder, as one table.

    ``scratch`` is where `datasets` puts its Arrow copy (default: the folder for temporary files). The copy is made anew
    every time and unlinked at once, so that nobody can be served the rows of an older file; it stays readable through
    the open mapping. Raises UserError with DATASET_UNREADABLE (naming file and line) or DATASET_EMPTY.
    """
    data_format, files = find_data_files(path, rows.format)
    root = path if path.is_dir() else path.parent
    with _workspace(scratch) as workspace, _quiet_libraries():
        parts = tuple(
            _read_file(file, name=file.relative_to(root).as_posix(), data_format=data_format, workspace=workspace)
            for file in files
        )
        columns, row_ids = _survey(parts)
    if not row_ids:
        names = ", ".join(file.name for file in files[:5])
        message = f"spec.dataset.source has no rows: {names}"
        raise UserError(Reason.DATASET_EMPTY, message, "Check that the right file was named and that it was written.")
    return Table(columns=columns, row_ids=row_ids, _parts=parts)


def content_hash(value: object) -> str:
    """Return 16 hex digits that follow from a value's content alone, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _survey(parts: tuple[_Part, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Go through all rows once: the columns in the order of their first appearance, and the row ids."""
    columns: dict[str, None] = {}
    row_ids = []
    seen: Counter[str] = Counter()
    for part in parts:
        for row in part.rows():
            columns.update(dict.fromkeys(row))
            identity = content_hash(row)
            row_ids.append(f"{identity}-{seen[identity]}" if seen[identity] else identity)
            seen[identity] += 1
    return tuple(columns), tuple(row_ids)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence the progress bars and the log of `datasets`: what is wrong is said by us, once."""
    import datasets
    from pandas.errors import ParserWarning

    verbosity = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # pandas only warns when it drops the cells of a row that is longer than the header.
            warnings.simplefilter("error", ParserWarning)
            yield
    finally:
        datasets.utils.logging.set_verbosity(verbosity)


def _read_file(file: Path, *, name: str, data_format: DataFormat, workspace: _Workspace) -> _Part:
    readers: dict[DataFormat, Callable[..., RowSource]] = {
        DataFormat.JSONL: _read_jsonl,
        DataFormat.JSON: _read_json,
        DataFormat.CSV: partial(_read_csv, separator=","),
        DataFormat.TSV: partial(_read_csv, separator="\t"),
        DataFormat.PARQUET: _read_parquet,
        DataFormat.ARROW: _read_arrow,
        DataFormat.TEXT: _read_text,
    }
    binary = data_format in {DataFormat.PARQUET, DataFormat.ARROW}
    try:
        blank = not binary and is_blank(file)
        return _Part(name=name, rows=_no_rows if blank else readers[data_format](file, name=name, workspace=workspace))
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The disk, not the data.
        causes = _causes(error)
        if any(isinstance(cause, UnicodeError) for cause in causes):
            raise undecodable(file, name) from error
        if any(isinstance(cause, OSError) and cause.errno is not None for cause in causes):
            raise
        raise _unreadable(name, data_format, causes[-1]) from error


def _no_rows() -> Iterator[Row]:
    return iter(())


def _causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _unreadable(name: str, data_format: DataFormat, cause: BaseException) -> UserError:
    detail = " ".join(str(cause).split()).removeprefix("Error tokenizing data. C error: ")
    message = f"{name} cannot be read as {data_format}: {detail}"
    return UserError(Reason.DATASET_UNREADABLE, message, "Repair the file, or set spec.dataset.format to what it is.")


def _text_rows(file: Path, *, workspace: _Workspace, sample_by: str) -> Any:  # noqa: ANN401  (`datasets` has no type hints)
    from datasets import Dataset

    return Dataset.from_text(
        workspace.plain_path(file), cache_dir=workspace.cache, sample_by=sample_by, encoding=encoding_of(file)
    )


def _read_jsonl(file: Path, *, name: str, workspace: _Workspace) -> RowSource:
    lines = _text_rows(file, workspace=workspace, sample_by="line")

    def rows() -> Iterator[Row]:
        for number, line in enumerate(_arrow_rows(lines), start=1):
            text = str(line[TEXT_COLUMN])
            if text.strip():
                yield _parse_line(text, name=name, number=number)

    return rows


def _parse_line(text: str, *, name: str, number: int) -> Row:
    hint = 'Every line is one JSON object, for example {"question": "...", "answer": "..."}.'
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        detail = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        )
        if text.lstrip().startswith("[") and number == 1:
            hint = "A file that is one JSON list is read with spec.dataset.format: json."
        raise UserError(Reason.DATASET_UNREADABLE, f"{name} line {number} is not JSON: {detail}", hint) from error
    if not isinstance(value, dict):
        message = f"{name} line {number} holds a {_json_type(value)}, not an object"
        raise UserError(Reason.DATASET_UNREADABLE, message, hint)
    return value


def _read_json(file: Path, *, name: str, workspace: _Workspace) -> RowSource:
    text = next(iter(_arrow_rows(_text_rows(file, workspace=workspace, sample_by="document"))))[TEXT_COLUMN]
    try:
        document = json.loads(str(text))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _read_jsonl(file, name=name, workspace=workspace)  # Many files named .json hold one object a line.
        message = f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        hint = "Repair the file, or set spec.dataset.format to what it is."
        raise UserError(Reason.DATASET_UNREADABLE, message, hint) from error
    records = _records(document, name=name)
    return lambda: iter(records)


def _records(document: object, *, name: str) -> list[Row]:
    """Return the rows of a JSON document: a list of objects, one object around such a list, or one object."""
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        wraps = len(document) == len(lists) == 1 and all(isinstance(item, dict) for item in lists[0])
        # A row with nothing but a chat looks the same as a wrapped list: its items tell.
        is_chat = wraps and any({"role", "from"} & set(item) for item in lists[0])
        return list(lists[0]) if wraps and not is_chat else [document]
    if not isinstance(document, list):
        message = f"{name} holds a {_json_type(document)}, not a list of objects"
        raise UserError(Reason.DATASET_UNREADABLE, message, 'Write [{"column": "value"}, ...].')
    for number, item in enumerate(document, start=1):
        if not isinstance(item, dict):
            message = f"{name} item {number} is a {_json_type(item)}, not an object"
            raise UserError(Reason.DATASET_UNREADABLE, message, 'Write [{"column": "value"}, ...].')
    return document


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return names[type(value)]


def _read_csv(file: Path, *, workspace: _Workspace, separator: str, **_: str) -> RowSource:
    import pandas as pd
    from datasets import Dataset, Features, Value

    # na_filter: a cell that says NA, null or None may be the very label that is to be learned.
    options = {"sep": separator, "encoding": encoding_of(file), "index_col": False, "na_filter": False}
    path = workspace.plain_path(file)
    start = pd.read_csv(path, nrows=1, dtype=str, **options)
    if start.empty:
        return _no_rows
    text = Features({str(column): Value("string") for column in start.columns})
    rows = Dataset.from_csv(path, cache_dir=workspace.cache, features=text, **options)
    return lambda: _arrow_rows(rows)


def _read_parquet(file: Path, *, workspace: _Workspace, **_: str) -> RowSource:
    import pyarrow.parquet as pq
    from datasets import Dataset

    if pq.read_metadata(file).num_rows == 0:
        return _no_rows
    rows = Dataset.from_parquet(workspace.plain_path(file), cache_dir=workspace.cache)
    return lambda: _arrow_rows(rows)


def _read_arrow(file: Path, **_: object) -> RowSource:
    """Read an Arrow file of either kind: the stream that `datasets` saves, or the file format (Feather)."""
    import pyarrow as pa
    from datasets import Dataset

    try:
        rows = Dataset.from_file(str(file))
    except pa.ArrowInvalid:
        with pa.memory_map(str(file)) as source:
            rows = Dataset(pa.ipc.open_file(source).read_all())
    return lambda: _arrow_rows(rows)


def _read_text(file: Path, *, workspace: _Workspace, **_: str) -> RowSource:
    paragraphs = _text_rows(file, workspace=workspace, sample_by="paragraph")

    def rows() -> Iterator[Row]:
        for row in _arrow_rows(paragraphs):
            text = str(row[TEXT_COLUMN]).strip("\n")
            if text.strip():
                yield {TEXT_COLUMN: text}

    return rows


def _arrow_rows(dataset: Any) -> Iterator[Row]:  # noqa: ANN401  (`datasets` has no type hints)
    """Go through a data set as plain values: images and sound stay the bytes that they are."""
    for batch in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield from batch.to_pylist()
