"""A cache of keys and values with room for what comes next."""

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

_ROOM = 64
"""Tokens that a layer makes room for at a time."""


class _GrowingLayer(DynamicLayer):
    """A layer that copies what it holds once in many tokens, where transformers' own does at every one.

    What it hands out has the same numbers, as a part of a greater tensor.
    """

    _held: tuple[torch.Tensor, torch.Tensor] | None = None
    """Keys and values with their room; what is handed out is the part of them that is filled."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        held = self._with_room(end)
        if held is None:
            held = self._held = (_grown(self.keys, key_states, start), _grown(self.values, value_states, start))
        keys, values = held
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def _with_room(self, end: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return what is held, None where it is too short, or no longer what was handed out: rows have left."""
        if self._held is None or self.keys is None:
            return None
        held = self._held[0]
        same = self.keys.data_ptr() == held.data_ptr() and len(self.keys) == len(held)
        return self._held if same and end <= held.shape[-2] else None


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache for a model of this configuration; layers of other kinds stay as they are."""
    cache = DynamicCache(config=config)
    # Named as what it is made from, whose constructor has no types.
    growing: type[DynamicLayer] = _GrowingLayer
    cache.layers = [growing() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _grown(known: torch.Tensor | None, new: torch.Tensor, length: int) -> torch.Tensor:
    """Return a tensor shaped as ``new`` with the known tokens, and room for further ones."""
    grown = new.new_empty((*new.shape[:-2], length + new.shape[-2] + _ROOM, new.shape[-1]))
    if known is not None and length:
        grown[..., :length, :] = known
    return grown
