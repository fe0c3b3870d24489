"""Preparing a data set: read, render, split, tokenise, count, and keep the result by the digest of what shaped it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning_api.dataset import OverlongPolicy
from finetuning_api.finetuningjob import TrainingSpec
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import DatasetCounts, DatasetInput, ProgressMetric
from finetuning_workload.artifact import artifact_files, hash_file, read_manifest
from finetuning_workload.data.encoding import Encoder, TokenizedSample, pieces, truncated
from finetuning_workload.data.reading import Row, Table, content_hash, load_table
from finetuning_workload.data.rendering import RenderedRow, iterate_rendered
from finetuning_workload.data.splitting import Side, chosen_ids, require_both_sides, side_of, unit_hash
from finetuning_workload.data.store import SplitWriter, TokenizedSplit, cached_folder, total_tokens
from finetuning_workload.errors import UserError
from finetuning_workload.files import write_atomically
from finetuning_workload.progress import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREPARATION_VERSION = 1
"""Enters the digest: raise it with every change that makes other tokens, masks or sides of the same rows."""
_COUNTS = "counts.json"
_BATCH_ROWS = 1000
_EXAMPLES = 5


@dataclass(frozen=True)
class PreparedData:
    """A data set ready for training."""

    train: TokenizedSplit
    test: TokenizedSplit
    counts: DatasetCounts
    digest: str
    """sha256 of everything that shaped the data: equal digest, equal tokens."""


def prepare(
    dataset: DatasetInput,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    training: TrainingSpec,
    cache: Path,
    reporter: Reporter | None = None,
) -> PreparedData:
    """Return the tokenised train and test rows of a data set, from the cache where they are there.

    Safe to call from several processes at once. Raises UserError: DATASET_UNREADABLE, DATASET_EMPTY, COLUMN_NOT_FOUND,
    INVALID_SPEC, UNSUPPORTED, COMPLETIONS_EMPTY, TOO_MANY_ROWS_LOST or SPLIT_EMPTY; nothing is left in the cache then.
    """
    digest = preparation_digest(dataset, tokenizer, training=training)
    build = partial(_build, dataset=dataset, tokenizer=tokenizer, training=training, reporter=reporter)
    folder = cached_folder(cache, digest=digest, source=dataset.provenance.source, build=build)
    return PreparedData(
        train=TokenizedSplit.open(folder / Side.TRAIN),
        test=TokenizedSplit.open(folder / Side.TEST),
        counts=DatasetCounts.model_validate_json((folder / _COUNTS).read_bytes()),
        digest=digest,
    )


def held_out_rows(
    dataset: DatasetInput, tokenizer: "PreTrainedTokenizerBase", *, limit: int | None
) -> list[RenderedRow]:
    """Return the rows that ``prepare`` holds out, in an order that depends on their content alone.

    These are the usable rows of the test side, also those that are too long for training. ``limit`` takes the first
    ones of that order, so a smaller limit is a subset of a larger one. Nothing need be left to train on. Raises
    UserError as prepare does, but for TOO_MANY_ROWS_LOST.
    """
    rows, seed = dataset.rows, dataset.rows.split.seed
    table = load_table(Path(dataset.path), rows)
    held_out: list[RenderedRow] = []
    usable, keys = 0, set[str]()
    for row in (row for _, row in _selected(table, dataset, tokenizer) if row.usable):
        usable += 1
        keys.add(content_hash(row.split_key))
        if side_of(row, rows.split) is Side.TEST:
            held_out.append(row)
    if not usable:
        message = f"none of {len(table)} rows has a completion to compare with"
        hint = "Check spec.dataset.completion (or messages, text) and the data."
        raise UserError(Reason.COMPLETIONS_EMPTY, message, hint)
    if not held_out:
        require_both_sides(train=usable, test=0, keys=len(keys), split=rows.split)
    held_out.sort(key=lambda row: (unit_hash(seed, "evaluation", row.row_id), row.row_id))
    return held_out[:limit]


def training_rows(dataset: DatasetInput, tokenizer: "PreTrainedTokenizerBase") -> Iterator[RenderedRow]:
    """Go through the usable rows that ``prepare`` trains on, in the order of the data, too long ones included.

    Raises UserError as reading and rendering do.
    """
    table = load_table(Path(dataset.path), dataset.rows)
    return (
        row
        for _, row in _selected(table, dataset, tokenizer)
        if row.usable and side_of(row, dataset.rows.split) is Side.TRAIN
    )


def rows_with_sources(dataset: DatasetInput, tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[Row, RenderedRow]]:
    """Go through the rows that the limit leaves, each behind the row of the data that it was made of."""
    table, rows = load_table(Path(dataset.path), dataset.rows), dataset.rows
    chosen = chosen_ids(table.row_ids, limit=rows.limit, seed=rows.split.seed)
    made = zip(table, iterate_rendered(table, rows, tokenizer), strict=True)
    return ((source, row) for source, row in made if chosen is None or row.row_id in chosen)


def preparation_digest(dataset: DatasetInput, tokenizer: "PreTrainedTokenizerBase", *, training: TrainingSpec) -> str:
    """Return the sha256 of everything that shapes tokenised data: bytes, rendering, split, tokenizer and lengths."""
    identity = {
        "version": PREPARATION_VERSION,
        "data": content_digest(Path(dataset.path)),
        "rows": dataset.rows.to_wire(),
        "tokenizer": tokenizer_digest(tokenizer),
        "max_length": training.max_length,
        "overlong": training.overlong.value,
        # Not a shape, but a cached result must not pass where a new one would be refused.
        "max_lost_rows": training.max_lost_rows,
    }
    return f"sha256:{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()}"


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the sha256 of what a tokenizer does with text: its pipeline, vocabulary, special tokens and template."""
    pipeline = getattr(tokenizer, "backend_tokenizer", None)
    if pipeline is None:
        state = json.dumps([tokenizer.get_vocab(), repr(tokenizer)], sort_keys=True)
    else:
        # Left over from the last call, and set anew by every call: no part of the tokenizer.
        pipeline.no_truncation()
        pipeline.no_padding()
        state = pipeline.to_str()
    # The class decides how text is cut before the pipeline sees it.
    facts = [type(tokenizer).__name__, state, str(tokenizer.special_tokens_map), str(tokenizer.chat_template)]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def content_digest(path: Path) -> str:
    """Return a digest of the bytes of a data set: from its manifest, or, where it has none, from the files."""
    if path.is_file():
        return hash_file(path)
    manifest = read_manifest(path)
    if manifest is not None:
        return manifest.digest
    listing = [(file.relative_to(path).as_posix(), hash_file(file)) for file in artifact_files(path)]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _selected(
    table: Table, dataset: DatasetInput, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[int, RenderedRow]]:
    """Go through the rows that the limit leaves, with their numbers in the table, counted from 1."""
    rows = dataset.rows
    chosen = chosen_ids(table.row_ids, limit=rows.limit, seed=rows.split.seed)
    for number, row in enumerate(iterate_rendered(table, rows, tokenizer), start=1):
        if chosen is None or row.row_id in chosen:
            yield number, row


@dataclass
class _Tally:
    """What became of the rows."""

    rows: dict[Side, int] = field(default_factory=lambda: {Side.TRAIN: 0, Side.TEST: 0})
    keys: set[str] = field(default_factory=set)
    """Hashes of split keys."""
    truncated: int = 0
    empty: list[int] = field(default_factory=list)
    """Numbers of the rows without a completion."""
    overlong: list[int] = field(default_factory=list)
    """Numbers of the rows dropped for their length."""
    masked: list[int] = field(default_factory=list)
    """Numbers of the rows without one supervised token after truncation."""
    longest: int = 0
    longest_prompt: int = 0

    @property
    def total(self) -> int:
        return sum(self.rows.values()) + len(self.lost)

    @property
    def lost(self) -> list[int]:
        return self.empty + self.overlong + self.masked


def _build(
    folder: Path,
    *,
    dataset: DatasetInput,
    tokenizer: "PreTrainedTokenizerBase",
    training: TrainingSpec,
    reporter: Reporter | None,
) -> None:
    """Write the arrays of both sides and the counts to a folder."""
    if reporter is not None:
        reporter.update(0.0, note="reading the files")
    table = load_table(Path(dataset.path), dataset.rows, scratch=folder)
    total = min(len(table), dataset.rows.limit or len(table))
    encoder, tally, done = Encoder(tokenizer), _Tally(), 0
    selected = _selected(table, dataset, tokenizer)
    with ExitStack() as stack:
        writers = {side: stack.enter_context(SplitWriter(folder / side)) for side in Side}
        while batch := list(islice(selected, _BATCH_ROWS)):
            usable = [(number, row) for number, row in batch if row.usable]
            tally.empty += (number for number, row in batch if not row.usable)
            samples = encoder.encode([row for _, row in usable])
            for (number, row), sample in zip(usable, samples, strict=True):
                _place(number, row, sample, writers=writers, tally=tally, dataset=dataset, training=training)
            done += len(batch)
            if reporter is not None:
                metrics: dict[str, float] = {ProgressMetric.ITEMS: done, ProgressMetric.TOTAL_ITEMS: total}
                reporter.update(done / total, note=f"{done} of {total} rows", metrics=metrics)
    _judge(tally, dataset=dataset, training=training)
    write_atomically(folder / _COUNTS, _counts(folder, table=table, tally=tally).to_json())


def _place(
    number: int,
    row: RenderedRow,
    sample: TokenizedSample,
    *,
    writers: dict[Side, SplitWriter],
    tally: _Tally,
    dataset: DatasetInput,
    training: TrainingSpec,
) -> None:
    """Write one row to its side, or count how it was lost."""
    tally.longest = max(tally.longest, len(sample))
    tally.longest_prompt = max(tally.longest_prompt, sample.prompt_length)
    fitted = _fitted(number, row, sample, tally=tally, training=training)
    if not fitted:
        return
    side = side_of(row, dataset.rows.split)
    tally.rows[side] += 1
    tally.keys.add(content_hash(row.split_key))
    for piece in fitted:
        writers[side].append(piece)


def _fitted(
    number: int, row: RenderedRow, sample: TokenizedSample, *, tally: _Tally, training: TrainingSpec
) -> list[TokenizedSample]:
    """Return what is trained on of a row: one sample, several pieces of plain text, or nothing."""
    if len(sample) <= training.max_length:
        return [sample]
    if training.overlong is OverlongPolicy.DROP:
        tally.overlong.append(number)
        return []
    if training.overlong is OverlongPolicy.ERROR:
        message = f"row {number} has {len(sample)} tokens, spec.training.maxLength is {training.max_length}"
        hint = "spec.training.overlong is error: set it to truncate or drop, or raise spec.training.maxLength."
        raise UserError(Reason.TOO_MANY_ROWS_LOST, message, hint)
    if row.is_plain:
        return pieces(sample, training.max_length)
    short = truncated(sample, training.max_length)
    if True not in short.supervised:
        tally.masked.append(number)
        return []
    tally.truncated += 1
    return [short]


def _judge(tally: _Tally, *, dataset: DatasetInput, training: TrainingSpec) -> None:
    """Raise UserError when too many rows were lost or a side of the split is empty."""
    lost, total = len(tally.lost), tally.total
    if lost > training.max_lost_rows * total or lost == total:
        raise _too_many_lost(tally, training=training)
    rows = tally.rows
    keys = len(tally.keys)
    require_both_sides(train=rows[Side.TRAIN], test=rows[Side.TEST], keys=keys, split=dataset.rows.split)


def _too_many_lost(tally: _Tally, *, training: TrainingSpec) -> UserError:
    """Return the error that tells the commonest way in which rows were lost."""
    limit = f"spec.training.maxLostRows allows {training.max_lost_rows:.0%}"
    if len(tally.empty) * 2 >= len(tally.lost):
        message = f"{_share(tally.empty, tally)} have an empty completion; {limit}"
        hint = "Check spec.dataset.completion (or messages, text) and the data; remove such rows or fill them."
        return UserError(Reason.COMPLETIONS_EMPTY, message, hint)
    too_long = sorted(tally.overlong + tally.masked)
    fate = "are dropped (spec.training.overlong: drop)" if tally.overlong else "keep no completion token"
    message = (
        f"{_share(too_long, tally)} {fate} at spec.training.maxLength {training.max_length}; the longest prompt has"
        f" {tally.longest_prompt} tokens, the longest row {tally.longest}; {limit}"
    )
    hint = f"Set spec.training.maxLength to {tally.longest} to keep every row whole, or shorten the prompts."
    return UserError(Reason.TOO_MANY_ROWS_LOST, message, hint)


def _share(numbers: list[int], tally: _Tally) -> str:
    examples = ", ".join(map(str, numbers[:_EXAMPLES])) + (", ..." if len(numbers) > _EXAMPLES else "")
    return f"{len(numbers)} of {tally.total} rows ({examples})"


def _counts(folder: Path, *, table: Table, tally: _Tally) -> DatasetCounts:
    tokens, supervised = total_tokens([TokenizedSplit.open(folder / side) for side in Side])
    return DatasetCounts(
        rows=tally.total,
        train_rows=tally.rows[Side.TRAIN],
        test_rows=tally.rows[Side.TEST],
        truncated_rows=tally.truncated,
        dropped_rows=len(tally.empty) + len(tally.overlong),
        masked_rows=len(tally.masked),
        tokens=tokens,
        supervised_tokens=supervised,
        columns=table.columns,
    )
