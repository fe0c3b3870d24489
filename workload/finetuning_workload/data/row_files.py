"""Rows as files that any program reads: JSON lines of either side, in the forms that TRL's trainers know."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning_api.dataset import RowFormat
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import DatasetInput
from finetuning_workload.data.chat import read_messages
from finetuning_workload.data.preparing import content_digest, rows_with_sources, tokenizer_digest
from finetuning_workload.data.reading import Row
from finetuning_workload.data.rendering import FIELD, RenderedRow, says_nothing
from finetuning_workload.data.splitting import Side, side_of
from finetuning_workload.data.store import cached_folder
from finetuning_workload.data.templates import parse_template
from finetuning_workload.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)
ROW_FILES_VERSION = 1
"""Enters the digest: raise it with every change of what the files hold."""


@dataclass(frozen=True, slots=True)
class RowFiles:
    """The usable rows of a data set; held-out ones are in the second file alone."""

    train: Path
    test: Path


def write_row_files(dataset: DatasetInput, tokenizer: "PreTrainedTokenizerBase", *, cache: Path) -> RowFiles:
    """Return the rows of a data set as JSON lines, from the cache where they are there.

    A row is ``{"messages": [...]}`` of a chat, ``{"prompt", "chosen", "rejected"}`` of two outputs of which one is
    preferred, ``{"prompt", "completion"}`` where there is a prompt, else ``{"text"}``. Raises UserError as reading and
    rendering do, and UserError(COMPLETIONS_EMPTY) where a side has no pair of different outputs.
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
    written, left_out = Counter[Side](), 0
    with ExitStack() as stack:
        files = {side: stack.enter_context(_file(folder, side).open("w", encoding="utf-8")) for side in Side}
        for source, row in _usable(dataset, tokenizer):
            side, fields = side_of(row, dataset.rows.split), _fields(source, row, dataset.rows)
            if fields is None:
                left_out += 1
                continue
            files[side].write(f"{json.dumps(fields, ensure_ascii=False)}\n")
            written[side] += 1
    if left_out:
        _LOG.warning("%d rows have no rejected output, or the same as completion: they are left out", left_out)
    lacking = [side for side in Side if not written[side]]
    if left_out and lacking:
        message = (
            f"spec.dataset.rejected: no row of the {lacking[0].value} side has an output that differs from completion"
        )
        raise UserError(Reason.COMPLETIONS_EMPTY, message, "Name the columns of the better and of the worse output.")


def _usable(dataset: DatasetInput, tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[Row, RenderedRow]]:
    return ((source, row) for source, row in rows_with_sources(dataset, tokenizer) if row.usable)


def _fields(source: Row, row: RenderedRow, rows: RowFormat) -> Mapping[str, Any] | None:
    if rows.messages is not None:
        messages = read_messages(source[rows.messages], where=row.row_id)
        return {"messages": [{"role": message.role.value, "content": message.content} for message in messages]}
    if rows.rejected is not None:
        rejected = parse_template(rows.rejected, field=f"{FIELD}.rejected")
        worse = "" if says_nothing(rejected, source) else rejected.render(source)
        is_pair = bool(worse) and worse != row.completion
        return {"prompt": row.prompt, "chosen": row.completion, "rejected": worse} if is_pair else None
    if rows.prompt is not None:
        return {"prompt": row.prompt, "completion": row.completion}
    return {"text": row.completion}
