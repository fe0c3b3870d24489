"""Rows as files that any program reads: JSON lines of either side, in the forms that TRL's trainers know."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning_api.dataset import RowFormat
from finetuning_api.runconfig import DatasetInput
from finetuning_workload.data.chat import read_messages
from finetuning_workload.data.preparing import content_digest, rows_with_sources, tokenizer_digest
from finetuning_workload.data.reading import Row
from finetuning_workload.data.rendering import RenderedRow
from finetuning_workload.data.splitting import Side, side_of
from finetuning_workload.data.store import cached_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROW_FILES_VERSION = 1
"""Enters the digest: raise it with every change of what the files hold."""


@dataclass(frozen=True, slots=True)
class RowFiles:
    """The usable rows of a data set; held-out ones are in the second file alone."""

    train: Path
    test: Path


def write_row_files(dataset: DatasetInput, tokenizer: "PreTrainedTokenizerBase", *, cache: Path) -> RowFiles:
    """Return the rows of a data set as JSON lines, from the cache where they are there.

    A row is ``{"messages": [...]}`` of a chat, ``{"prompt", "completion"}`` where there is a prompt, else ``{"text"}``.
    Raises UserError as reading and rendering do.
    """
    identity = {
        "version": ROW_FILES_VERSION,
        "data": content_digest(Path(dataset.path)),
        "rows": dataset.rows.to_wire(),
        # Which rows can be used, and so what is held out, is found out by rendering.
        "tokenizer": tokenizer_digest(tokenizer),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    build = partial(_build, dataset=dataset, tokenizer=tokenizer)
    folder = cached_folder(cache, digest=digest, source=dataset.provenance.source, build=build)
    return RowFiles(train=_file(folder, Side.TRAIN), test=_file(folder, Side.TEST))


def _file(folder: Path, side: Side) -> Path:
    return folder / f"{side.value}.jsonl"


def _build(folder: Path, *, dataset: DatasetInput, tokenizer: "PreTrainedTokenizerBase") -> None:
    with ExitStack() as stack:
        files = {side: stack.enter_context(_file(folder, side).open("w", encoding="utf-8")) for side in Side}
        for source, row in _usable(dataset, tokenizer):
            line = json.dumps(_fields(source, row, dataset.rows), ensure_ascii=False)
            files[side_of(row, dataset.rows.split)].write(f"{line}\n")


def _usable(dataset: DatasetInput, tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[Row, RenderedRow]]:
    return ((source, row) for source, row in rows_with_sources(dataset, tokenizer) if row.usable)


def _fields(source: Row, row: RenderedRow, rows: RowFormat) -> Mapping[str, Any]:
    if rows.messages is not None:
        messages = read_messages(source[rows.messages], where=row.row_id)
        return {"messages": [{"role": message.role.value, "content": message.content} for message in messages]}
    if rows.prompt is not None:
        return {"prompt": row.prompt, "completion": row.completion}
    return {"text": row.completion}
