"""Steps of one model: prompts are read in pieces, then many rows get one token each at once."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from finetuning_server.engine.cache import LayerStates, RowCache
from finetuning_server.engine.library import Network
from finetuning_server.engine.rows import Row

_FULL, _SLIDING = "full_attention", "sliding_attention"
"""Transformers' names of kinds of layers."""

Masks = torch.Tensor | dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Attention:
    """What the layers of a model attend to."""

    windows: tuple[tuple[str, int | None], ...]
    """Kinds of layers, and the tokens that each looks back; None for all of them."""
    known: bool
    """Whether all layers hold keys and values; those that hold a state of another kind cannot be put side by side."""

    @classmethod
    def of(cls, network: Network) -> "Attention":
        """Read it from the cache that transformers makes for the model."""
        layers = DynamicCache(config=network.model.config).layers
        sliding = {int(layer.sliding_window) for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)}
        full = any(type(layer) is DynamicLayer for layer in layers)
        windows = ((_FULL, None),) * full + tuple((_SLIDING, window) for window in sliding)
        known = all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers)
        return cls(windows, known=known and bool(layers) and len(sliding) <= 1)

    def masks(self, positions: torch.Tensor, *, width: int, dtype: torch.dtype) -> Masks:
        """Return what is added to the scores, [rows, 1, 1, width]: by kind of layers where there are several.

        ``positions`` is [rows, 1]; row r sees places up to its own position, and no farther back than its window.
        """
        places = torch.arange(width, device=positions.device)[None, :]
        masks = {}
        for kind, window in self.windows:
            seen = places <= positions
            if window is not None:
                seen &= places > positions - window
            hidden = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=positions.device)
            masks[kind] = hidden.masked_fill(seen, 0)[:, None, None, :]
        return masks if len(masks) > 1 else next(iter(masks.values()))


class Lane:
    """The rows of one network. Rows with a whole prompt join a shared cache and go on together.

    A step that fails leaves its rows as they were, so that it can be tried again with fewer of them.
    """

    def __init__(self, network: Network, *, together: bool = True) -> None:
        self._network = network
        self._device = network.model.device
        self._attention = Attention.of(network)
        self._cache = RowCache(layers=len(DynamicCache(config=network.model.config).layers))
        self._joined: list[Row] = []
        self._keeps_logits = "logits_to_keep" in inspect.signature(network.model.forward).parameters
        self.together = together and self._attention.known
        """Whether rows can share steps; else each goes by itself."""

    @property
    def joined(self) -> tuple[Row, ...]:
        """The rows that share the cache, in its order."""
        return tuple(self._joined)

    def read(self, rows: Sequence[Row], *, most: int) -> torch.Tensor | None:
        """Read whole prompts from their beginning, or at most so many tokens of one.

        Returns the logits that follow, [rows, vocabulary]; None while a prompt is not read to its end.
        """
        if len(rows) > 1 or (self.together and rows[0].cached == 0 and rows[0].remaining <= most):
            return self._read_whole(rows)
        # States of other kinds are not made to be read in pieces by every model.
        return self._read_piece(rows[0], most=most if self._attention.known else len(rows[0].prompt))

    def join(self, row: Row) -> None:
        """Put a row whose prompt is read beside the others."""
        if not self.together:
            return
        if row.own is not None:
            row.states = [_row_states(layer, 0, length=row.cached) for layer in row.own.layers]
        self._cache.join(row.states, length=row.cached)
        row.own, row.states = None, ()
        self._joined.append(row)

    def leave(self, row: Row) -> None:
        """Forget a row."""
        row.own, row.states = None, ()
        if row in self._joined:
            place = self._joined.index(row)
            self._cache.leave(place)
            self._joined[place] = self._joined[-1]
            self._joined.pop()

    def write(self, rows: Sequence[Row]) -> torch.Tensor:
        """Compute what follows the last token of each row, [rows, vocabulary].

        ``rows`` lie side by side in the shared cache; where rows cannot share one, it is a single row.
        """
        ids = torch.tensor([[row.new[-1]] for row in rows])
        if not self.together:
            logits = self._forward(rows, ids, cache=_required(rows[0].own), start=rows[0].cached)[:, -1]
        else:
            logits = self._write_joined(rows, ids)
        for row in rows:
            row.cached += 1
        return logits

    def _write_joined(self, rows: Sequence[Row], ids: torch.Tensor) -> torch.Tensor:
        first = self._joined.index(rows[0])
        last = first + len(rows)
        positions = self._cache.open(first, last, device=self._device)
        width = max(row.cached for row in rows) + 1
        self._network.select([row.voice.adapter for row in rows])
        logits: torch.Tensor = self._network.model(
            input_ids=ids.to(self._device),
            position_ids=positions,
            attention_mask=self._attention.masks(positions, width=width, dtype=self._network.model.dtype),
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        self._cache.commit(first, last)
        return logits[:, -1]

    def _read_whole(self, rows: Sequence[Row]) -> torch.Tensor:
        width = max(len(row.prompt) for row in rows)
        # Padded on the right: no token sees the padding behind it, and positions count from 0 in every row.
        ids = torch.tensor([[*row.prompt, *row.prompt[-1:] * (width - len(row.prompt))] for row in rows])
        ends = [len(row.prompt) - 1 for row in rows]
        kept = sorted(set(ends))
        cache = DynamicCache()
        logits = self._forward(rows, ids, cache=cache, start=0, keep=kept)
        for place, row in enumerate(rows):
            row.cached = len(row.prompt)
            row.states = [_row_states(layer, place, length=row.cached) for layer in cache.layers]
        return logits[range(len(rows)), [kept.index(end) for end in ends]]

    def _read_piece(self, row: Row, *, most: int) -> torch.Tensor | None:
        piece = row.prompt[row.cached : row.cached + most]
        if row.own is None:
            row.own = DynamicCache() if self.together else DynamicCache(config=self._network.model.config)
        logits = self._forward([row], torch.tensor([piece]), cache=row.own, start=row.cached)
        row.cached += len(piece)
        return None if row.remaining else logits[:, -1]

    def _forward(
        self, rows: Sequence[Row], ids: torch.Tensor, *, cache: Cache, start: int, keep: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Return the logits of some places, or of the last; ``ids`` is [rows, tokens], the first at ``start``."""
        width = ids.shape[1]
        kept = torch.tensor([width - 1] if keep is None else keep, device=self._device)
        extra: dict[str, Any] = {"logits_to_keep": kept} if self._keeps_logits else {}
        self._network.select([row.voice.adapter for row in rows])
        logits: torch.Tensor = self._network.model(
            input_ids=ids.to(self._device),
            position_ids=torch.arange(start, start + width, device=self._device).expand(len(rows), -1),
            past_key_values=cache,
            use_cache=True,
            **extra,
        ).logits
        return logits if self._keeps_logits else logits[:, kept]


def _row_states(layer: Any, place: int, *, length: int) -> LayerStates:  # noqa: ANN401  (a layer of transformers' cache)
    return layer.keys[place, :, :length], layer.values[place, :, :length]


def _required(cache: DynamicCache | None) -> DynamicCache:
    if cache is None:
        raise RuntimeError("the row has no cache of its own")
    return cache
