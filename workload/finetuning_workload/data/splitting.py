"""Which rows are used, and which of them are held out: by hash, never by place."""

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from enum import StrEnum

from finetuning_api.dataset import DatasetSplit
from finetuning_api.reasons import Reason
from finetuning_workload.data.rendering import RenderedRow
from finetuning_workload.errors import UserError


class Side(StrEnum):
    """What a row is used for."""

    TRAIN = "train"
    TEST = "test"


def unit_hash(seed: int, *parts: str) -> float:
    """Return a number in [0, 1) that follows from the seed and the parts alone, evenly spread over parts."""
    digest = hashlib.sha256("\0".join((str(seed), *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def side_of(row: RenderedRow, split: DatasetSplit) -> Side:
    """Return the side of a row.

    It depends on the row's split key (group or prompt) and the seed, not on its place or on other rows: rows that are
    added, removed or reordered move no other row, and equal keys never straddle the split.
    """
    return Side.TEST if unit_hash(split.seed, "side", row.split_key) < split.test else Side.TRAIN


def split_rows(rows: Iterable[RenderedRow], split: DatasetSplit) -> tuple[list[RenderedRow], list[RenderedRow]]:
    """Return the rows to train on and the rows held out, each in the order given."""
    sides: dict[Side, list[RenderedRow]] = {Side.TRAIN: [], Side.TEST: []}
    for row in rows:
        sides[side_of(row, split)].append(row)
    return sides[Side.TRAIN], sides[Side.TEST]


def chosen_ids(row_ids: Sequence[str], *, limit: int | None, seed: int) -> frozenset[str] | None:
    """Return the ids of the ``limit`` rows with the smallest hashes; None where all rows are used."""
    if limit is None or limit >= len(row_ids):
        return None
    return frozenset(heapq.nsmallest(limit, row_ids, key=lambda row_id: (unit_hash(seed, "limit", row_id), row_id)))


def require_both_sides(*, train: int, test: int, keys: int, split: DatasetSplit) -> None:
    """Raise UserError(SPLIT_EMPTY) when a side has no row. ``keys`` counts the groups or prompts that differ."""
    if train and test:
        return
    side = Side.TRAIN if not train else Side.TEST
    what = f"values of {split.group_by!r}" if split.group_by is not None else "prompts"
    message = (
        f"spec.dataset.split leaves no row to {side}: of {train + test} usable rows with {keys} different {what},"
        f" {train} are for training and {test} are held out (test: {split.test:g}, seed: {split.seed})"
    )
    if keys == 1:
        hint = "Rows with one prompt stay together. Set spec.dataset.split.groupBy to a column whose values differ."
    else:
        direction = "a smaller" if side is Side.TRAIN else "a larger"
        hint = f"Use more rows, set {direction} spec.dataset.split.test, or another spec.dataset.split.seed."
    raise UserError(Reason.SPLIT_EMPTY, message, hint)
