"""Attention inside packed rows: every sample sees itself and nothing else."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

SEGMENT_ATTENTION = "finetuning_segments"
"""Name in transformers' registry. No mask function is registered with it, so models build no mask for it."""
_UNKNOWN_TO_US = ("softcap", "s_aux", "position_bias")
_QUERY_BLOCK = 256
"""Queries whose scores are there at once: few enough for the cache, and keys behind a block are never looked at."""


def register_segment_attention() -> None:
    """Make the attention known to transformers; registering it again changes nothing."""
    AttentionInterface.register(SEGMENT_ATTENTION, segment_attention)


def segment_attention(  # noqa: PLR0913  (the signature is that of transformers)
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention per segment of one flat row; the signature is that of transformers' attention functions.

    ``query`` is [1, heads, tokens, size], ``key`` and ``value`` have [1, key heads, ...]; ``cu_seq_lens_q`` holds the
    segments' ends, starting with 0. Returns [1, tokens, heads, size]. Raises ValueError for what it cannot compute.
    """
    strange = [name for name in _UNKNOWN_TO_US if others.get(name) is not None]
    if cu_seq_lens_q is None or attention_mask is not None or strange:
        message = f"segment attention needs boundaries and knows no mask, {', '.join(strange)}"
        raise ValueError(message)
    ends = cu_seq_lens_q.tolist()
    rate = dropout if module.training else 0.0
    longest = max(end - start for start, end in pairwise(ends))
    wide = sliding_window is None or longest <= sliding_window
    if query.device.type == "cpu" and query.dtype is torch.bfloat16 and wide and not rate:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return _Bf16Attention.apply(query, key, value, ends, scale), None  # type: ignore[no-untyped-call]  # of torch
    with torch.autocast(query.device.type, enabled=False):
        output = _each_segment(query, key, value, ends, dropout=rate, scaling=scaling, window=sliding_window)
    return output.transpose(1, 2), None


def _each_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: list[int],
    *,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    dtype = query.dtype
    if query.device.type == "cpu":
        # On CPUs the kernel's backward pass is about twice as fast in fp32 as in bf16, and more exact.
        query, key, value = query.float(), key.float(), value.float()
    lengths = [end - start for start, end in pairwise(ends)]
    outputs = [
        _attend(*segment, dropout=dropout, scaling=scaling, window=window)
        # Slices would each fill a gradient of the whole row with zeros; the parts of a split are joined once.
        for segment in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(outputs, dim=2).to(dtype)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    length = query.shape[2]
    if window is None or length <= window:
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling, is_causal=True)
    distance = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)[None, :]
    near = (distance >= 0) & (distance < window)
    return scaled_dot_product_attention(query, key, value, attn_mask=near, dropout_p=dropout, scale=scaling)


class _Bf16Attention(torch.autograd.Function):
    """Torch's kernel forward, and backward as matrix products of blocks, which bf16 units of CPUs are made for.

    Torch's own backward kernel in bf16 is several times slower than these products at the lengths of ordinary samples.
    Nothing of the size of the scores is kept: they are computed again, a block of queries at a time. Heads that share a
    key are rows of one product, so keys are never repeated and their gradients need no sum of copies.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (torch gives it no type)
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        ends: list[int],
        scale: float,
    ) -> torch.Tensor:
        """Return [1, tokens, heads, size]."""
        ctx.save_for_backward(query, key, value)
        ctx.ends, ctx.scale = ends, scale
        output = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        with torch.autocast("cpu", enabled=False):
            for start, end in pairwise(ends):
                attended = scaled_dot_product_attention(
                    query[:, :, start:end],
                    key[:, :, start:end],
                    value[:, :, start:end],
                    scale=scale,
                    is_causal=True,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
                output[:, start:end] = attended.transpose(1, 2)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of query, key and value in their shapes."""
        (gradient,) = gradients
        query, key, value = (tensor[0] for tensor in ctx.saved_tensors)
        outward = gradient[0].transpose(0, 1)
        results = [_empty_by_token(tensor) for tensor in (query, key, value)]
        future = _future(ctx.ends, query.dtype)
        with torch.autocast("cpu", enabled=False):
            for start, end in pairwise(ctx.ends):
                _segment_backward(
                    [tensor[:, start:end] for tensor in (query, key, value, outward)],
                    [tensor[:, start:end] for tensor in results],
                    scale=ctx.scale,
                    future=future,
                )
        return *(result[None] for result in results), None, None


def _empty_by_token(tensor: torch.Tensor) -> torch.Tensor:
    """Return an empty [heads, tokens, size] that lies in memory as [tokens, heads, size], as projections write it."""
    heads, tokens, size = tensor.shape
    return tensor.new_empty(tokens, heads, size).transpose(0, 1)


def _segment_backward(
    inputs: list[torch.Tensor], results: list[torch.Tensor], *, scale: float, future: torch.Tensor
) -> None:
    """Write the gradients of one segment; all are [heads or key heads, length, size].

    With P = softmax(scale QK') and O = PV: dV = P'dO, dP = dO V', dS = P * (dP - rowsum(P * dP)), dQ = scale dS K,
    dK = scale dS'Q. ``future`` [block, block] is 0 up to the diagonal and -inf behind it.
    """
    query, key, value, outward = inputs
    query_gradient, key_gradient, value_gradient = results
    key_heads, length = key.shape[:2]
    several = length > _QUERY_BLOCK
    key_sum, value_sum = (torch.zeros(tensor.shape if several else 0) for tensor in (key, value))
    for first, last in _blocks(length):
        asked, told = (_by_key_head(tensor[:, first:last], key_heads) for tensor in (query, outward))
        seen, carried = key[:, :last], value[:, :last]
        shares = _shares(asked, seen, scale=scale, future=future[: last - first, : last - first])
        of_shares = torch.bmm(told, carried.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)  # noqa: SLF001  (autograd's own)
        query_gradient[:, first:last] = _scaled(of_scores, seen, scale).view(query.shape[0], last - first, -1)
        of_key, of_value = _scaled(of_scores.transpose(1, 2), asked, scale), torch.bmm(shares.transpose(1, 2), told)
        if not several:
            key_gradient.copy_(of_key)
            value_gradient.copy_(of_value)
            return
        # Of many blocks the sum is kept in fp32.
        key_sum[:, :last] += of_key
        value_sum[:, :last] += of_value
    key_gradient.copy_(key_sum)
    value_gradient.copy_(value_sum)


def _shares(asked: torch.Tensor, seen: torch.Tensor, *, scale: float, future: torch.Tensor) -> torch.Tensor:
    """Return the softmax of a block's scores, [key heads, heads a key head * queries, keys].

    Only its last square holds keys behind their queries.
    """
    scores = _scaled(asked, seen.transpose(1, 2), scale)
    queries = len(future)
    scores.view(scores.shape[0], -1, queries, scores.shape[-1])[..., -queries:].add_(future)
    return torch.softmax(scores, dim=-1)


def _scaled(one: torch.Tensor, other: torch.Tensor, scale: float) -> torch.Tensor:
    """Return scale * one @ other."""
    return torch.baddbmm(one.new_empty(1, 1, 1), one, other, beta=0, alpha=scale)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for first in range(0, length, _QUERY_BLOCK):
        yield first, min(first + _QUERY_BLOCK, length)


def _by_key_head(tensor: torch.Tensor, key_heads: int) -> torch.Tensor:
    """Return [heads, length, size] as [key heads, heads a key head * length, size]."""
    return tensor.reshape(key_heads, -1, tensor.shape[-1])


def _future(ends: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to the scores of the largest block: nothing up to a query's own place, -inf behind it."""
    size = min(max(end - start for start, end in pairwise(ends)), _QUERY_BLOCK)
    return torch.full((size, size), float("-inf"), dtype=dtype).triu_(1)
