"""Which rows a step sees, and how they become tensors: one flat row without padding, or padded rows."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from finetuning_workload.data import TokenizedSplit

Build = Callable[[TokenizedSplit, Sequence[int]], "MicroBatch"]
"""Makes a micro-batch of rows: ``pack`` or ``pad``."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass computes.

    ``ids`` and ``positions`` have the shape [rows, width]. ``boundaries`` (packed batches) holds the ends of samples
    inside the one flat row, starting with 0; ``mask`` (padded batches) is [rows, width], 1 for real tokens. ``sources``
    are the flat indices of the tokens whose successor carries loss, ``labels`` those successors.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sources: torch.Tensor
    labels: torch.Tensor
    tokens: int
    boundaries: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def without_labels(self) -> "MicroBatch":
        """Return the batch with nothing that carries loss."""
        return replace(self, sources=self.sources[:0], labels=self.labels[:0], tokens=0)

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the batch on a device."""

        def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return MicroBatch(
            ids=self.ids.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
            sources=self.sources.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            tokens=self.tokens,
            boundaries=moved(self.boundaries),
            mask=moved(self.mask),
        )


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return the optimizer steps of one pass; the last one may have fewer rows."""
    return math.ceil(rows / batch_size)


def total_steps(rows: int, *, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Return the optimizer steps of the whole training; a fraction of an epoch is rounded up to whole steps."""
    steps = max(1, math.ceil(round(epochs * steps_per_epoch(rows, batch_size), 6)))
    return steps if max_steps is None else min(steps, max_steps)


def rows_of_step(step: int, *, rows: int, batch_size: int, seed: int) -> list[int]:
    """Return the rows of a step (counted from 0), in order.

    Every epoch is a permutation that follows from (seed, epoch) alone: a training that resumes at any step sees the
    batches that it would have seen.
    """
    epoch, place = divmod(step, steps_per_epoch(rows, batch_size))
    order = _order(epoch, rows=rows, seed=seed)
    return [int(row) for row in order[place * batch_size : (place + 1) * batch_size]]


def largest_step(split: TokenizedSplit, *, steps: int, batch_size: int, seed: int) -> tuple[int, int, int]:
    """Return the most that a step has of tokens, of those that carry loss, and of its rows' squared lengths."""
    rows, places = len(split), np.arange(0, len(split), batch_size)
    lengths = np.asarray(split.lengths, dtype=np.int64)
    sizes = np.stack([lengths, _supervised_counts(split), lengths**2])
    most = np.zeros(len(sizes), dtype=np.int64)
    for epoch in range(math.ceil(steps / len(places))):
        order, here = _order(epoch, rows=rows, seed=seed), steps - epoch * len(places)
        most = np.maximum(most, np.add.reduceat(sizes[:, order], places, axis=1)[:, :here].max(axis=1))
    tokens, labels, pairs = (int(each) for each in most)
    return tokens, labels, pairs


def _supervised_counts(split: TokenizedSplit) -> np.ndarray:
    """Return the tokens of each row that carry loss, as `supervised_count` counts them."""
    begins = np.asarray(split.offsets[:-1])
    return np.asarray(np.add.reduceat(split.supervised, begins, dtype=np.int64) - split.supervised[begins])


def _order(epoch: int, *, rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)


@dataclass(slots=True)
class TokenBudget:
    """The most tokens of one forward pass, padding included; lowered when memory runs out."""

    tokens: int

    def halve(self, lengths: Sequence[int], *, padded: bool) -> bool:
        """Make the micro-batches of these rows half as large; return whether there is anything left to divide."""
        longest = max(lengths)
        whole = longest * len(lengths) if padded else sum(lengths)
        largest = min(self.tokens, whole)
        if largest <= longest:
            return False
        self.tokens = max(largest // 2, longest)
        return True


def supervised_count(split: TokenizedSplit, rows: Sequence[int]) -> int:
    """Return the tokens that carry loss; the first token of a sample has nothing that could predict it."""
    return sum(int(split.supervised[split.offsets[row] + 1 : split.offsets[row + 1]].sum()) for row in rows)


def lengths_of(split: TokenizedSplit, rows: Sequence[int]) -> list[int]:
    """Return the tokens of each row."""
    return [int(split.offsets[row + 1] - split.offsets[row]) for row in rows]


def divide(
    rows: Sequence[int], lengths: Sequence[int], *, token_budget: int, most_rows: int | None, padded: bool
) -> Iterator[list[int]]:
    """Divide the rows of a step into micro-batches of at most ``token_budget`` tokens, padding included.

    A row longer than the budget is a micro-batch of its own. The order is kept, so the division follows from the rows.
    """
    current: list[int] = []
    used = longest = 0
    for row, length in zip(rows, lengths, strict=True):
        longest = max(longest, length)
        size = longest * (len(current) + 1) if padded else used + length
        if current and (size > token_budget or len(current) == most_rows):
            yield current
            current, used, longest = [], 0, length
        current.append(row)
        used += length
    if current:
        yield current


@dataclass(frozen=True, slots=True)
class Division:
    """How rows are divided into micro-batches."""

    token_budget: int
    most_rows: int | None
    padded: bool

    def of(self, rows: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Divide rows of these lengths."""
        return divide(rows, lengths, token_budget=self.token_budget, most_rows=self.most_rows, padded=self.padded)


def micro_batch(build: Build, split: TokenizedSplit, rows: Sequence[int]) -> MicroBatch:
    """Return the micro-batch of these rows; without rows, one that is run for its company and adds nothing."""
    return build(split, rows) if rows else build(split, [int(split.lengths.argmin())]).without_labels()


def pack(split: TokenizedSplit, rows: Sequence[int]) -> MicroBatch:
    """Put the rows into one flat row [1, tokens]; positions restart at 0 with every row."""
    lengths = lengths_of(split, rows)
    ids = np.concatenate([_ids(split, row) for row in rows])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    sources = np.concatenate([start + _sources(split, row) for start, row in zip(ends[:-1], rows, strict=True)])
    return MicroBatch(
        ids=torch.from_numpy(ids)[None],
        positions=torch.cat([torch.arange(length) for length in lengths])[None],
        sources=torch.from_numpy(sources),
        labels=torch.from_numpy(ids[sources + 1]),
        tokens=len(ids),
        boundaries=torch.from_numpy(ends.astype(np.int32)),
    )


def pad(split: TokenizedSplit, rows: Sequence[int]) -> MicroBatch:
    """Put the rows under each other [rows, longest], padded on the right."""
    lengths = lengths_of(split, rows)
    width = max(lengths)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[place, :length] = _ids(split, row)
        mask[place, :length] = 1
    sources = np.concatenate([place * width + _sources(split, row) for place, row in enumerate(rows)])
    return MicroBatch(
        ids=torch.from_numpy(ids),
        positions=torch.arange(width).expand(len(rows), width),
        sources=torch.from_numpy(sources),
        labels=torch.from_numpy(ids.reshape(-1)[sources + 1]),
        tokens=sum(lengths),
        mask=torch.from_numpy(mask),
    )


def _ids(split: TokenizedSplit, row: int) -> np.ndarray:
    return np.asarray(split.ids[split.offsets[row] : split.offsets[row + 1]], dtype=np.int64)


def _sources(split: TokenizedSplit, row: int) -> np.ndarray:
    """Return the places inside a row whose successor is supervised."""
    supervised = np.asarray(split.supervised[split.offsets[row] : split.offsets[row + 1]], dtype=bool)
    return np.flatnonzero(supervised[1:])
