"""Keys and values of many rows side by side, each as long as its own text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

_WIDTH_STEP = 128
"""Tokens by which the cache grows: it is copied once for so many."""
_ROOMY = 4
"""A cache that is so many times wider than it needs to be is made smaller."""

LayerStates = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one row in one layer, each [heads, tokens, size]."""


@dataclass(slots=True)
class _Window:
    """The rows of a step, and the places that their new tokens take."""

    first: int
    last: int
    rows: torch.Tensor
    positions: torch.Tensor
    width: int


class RowLayer(CacheLayerMixin):
    """One layer's keys and values, [rows, heads, tokens, size]; the token at position p of a row lies at place p."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window: _Window | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make tensors without room from the first row's heads, sizes, device and number format."""
        if self.keys is None:
            self.keys, self.values = (
                one.new_empty((0, one.shape[1], 0, one.shape[3])) for one in (key_states, value_states)
            )
            self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new token of each row of the window and return all states of these rows."""
        window = self.window
        if window is None or self.keys is None or self.values is None:
            raise RuntimeError("no rows were chosen for this step")
        self.keys[window.rows, :, window.positions] = key_states[:, :, 0]
        self.values[window.rows, :, window.positions] = value_states[:, :, 0]
        rows = slice(window.first, window.last)
        return self.keys[rows, :, : window.width], self.values[rows, :, : window.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the states that ``update`` will return."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the tokens before the new one, in the longest row of the window."""
        return 0 if self.window is None else self.window.width - 1

    def get_max_length(self) -> int:
        return -1

    def resize(self, *, rows: int, width: int) -> None:
        """Give both tensors another size; what lies within it is kept."""
        if self.keys is not None and self.values is not None:
            # One after the other: of one tensor only there are two at a time.
            self.keys = _resized(self.keys, rows=rows, width=width)
            self.values = _resized(self.values, rows=rows, width=width)

    def put(self, place: int, states: LayerStates) -> None:
        """Write the states of a row; there must be room."""
        keys, values = states
        if self.keys is not None and self.values is not None:
            self.keys[place, :, : keys.shape[1]] = keys
            self.values[place, :, : values.shape[1]] = values

    def move(self, source: int, target: int, *, length: int) -> None:
        """Copy a row to another place."""
        for states in (self.keys, self.values):
            if states is not None:
                states[target, :, :length] = states[source, :, :length]


class RowCache(Cache):
    """A cache that rows join and leave between steps. In a step each row of its window gets one token.

    Rows have places 0, 1, 2 ... without gaps; a row that leaves is replaced by the last one.
    """

    def __init__(self, *, layers: int) -> None:
        self._rows = [RowLayer() for _ in range(layers)]
        super().__init__(layers=list(self._rows))
        self.lengths: list[int] = []
        """Tokens of each row whose states are held."""
        self._capacity = (0, 0)

    def join(self, states: Sequence[LayerStates], *, length: int) -> None:
        """Add a row behind the last one, with the states of its first ``length`` tokens."""
        for layer, layer_states in zip(self._rows, states, strict=True):
            keys, values = layer_states
            layer.lazy_initialization(keys[None], values[None])
        place = len(self.lengths)
        self._require(rows=place + 1, width=max([length, *self.lengths]) + 1)
        for layer, layer_states in zip(self._rows, states, strict=True):
            layer.put(place, layer_states)
        self.lengths.append(length)

    def leave(self, place: int) -> None:
        """Remove a row; the last row takes its place."""
        last = len(self.lengths) - 1
        if place != last:
            for layer in self._rows:
                layer.move(last, place, length=self.lengths[last])
        self.lengths[place] = self.lengths[last]
        self.lengths.pop()
        self._shrink()

    def open(self, first: int, last: int, *, device: torch.device) -> torch.Tensor:
        """Choose the rows of the next step and return the positions of their new tokens, [rows, 1]."""
        self._require(rows=len(self.lengths), width=max(self.lengths) + 1)
        lengths = self.lengths[first:last]
        positions = torch.tensor(lengths, device=device)
        rows = torch.arange(first, last, device=device)
        window = _Window(first, last, rows, positions, width=max(lengths) + 1)
        for layer in self._rows:
            layer.window = window
        return positions[:, None]

    def commit(self, first: int, last: int) -> None:
        """Keep the tokens that the step wrote; without this the next step writes over them."""
        for place in range(first, last):
            self.lengths[place] += 1

    def _require(self, *, rows: int, width: int) -> None:
        has_rows, has_width = self._capacity
        if rows > has_rows or width > has_width:
            more_rows = has_rows if rows <= has_rows else max(rows, has_rows + has_rows // 4)
            self._resize(more_rows, max(_rounded(width), has_width))

    def _shrink(self) -> None:
        """Give memory back that long or many rows have left behind."""
        rows, width = len(self.lengths), max(self.lengths, default=0) + 1
        if rows == 0:
            for layer in self._rows:
                layer.keys = layer.values = layer.window = None
            self._capacity = (0, 0)
        elif self._capacity[1] > _ROOMY * max(width, _WIDTH_STEP) or self._capacity[0] > _ROOMY * rows:
            self._resize(rows, _rounded(width))

    def _resize(self, rows: int, width: int) -> None:
        # Rows as they are: of a resize that fails half-way every layer still holds what it held.
        for layer in self._rows:
            layer.resize(rows=rows, width=width)
        self._capacity = (rows, width)


def _rounded(width: int) -> int:
    return -(-width // _WIDTH_STEP) * _WIDTH_STEP


def _resized(states: torch.Tensor, *, rows: int, width: int) -> torch.Tensor:
    if (states.shape[0], states.shape[2]) == (rows, width):
        return states
    # Zeros, not whatever memory held: masked places are multiplied by zero, and zero times NaN is NaN.
    resized = states.new_zeros((rows, states.shape[1], width, states.shape[3]))
    kept_rows, kept_width = min(rows, states.shape[0]), min(width, states.shape[2])
    resized[:kept_rows, :, :kept_width] = states[:kept_rows, :, :kept_width]
    return resized
