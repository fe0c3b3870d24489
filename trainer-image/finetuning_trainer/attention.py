"""Attention inside packed rows: every sample sees itself and nothing else."""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

SEGMENT_ATTENTION = "finetuning_segments"
"""Name in transformers' registry. No mask function is registered with it, so models build no mask for it."""
_UNKNOWN_TO_US = ("softcap", "s_aux", "position_bias")


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
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    dtype = query.dtype
    if query.device.type == "cpu":
        # On CPUs the kernel's backward pass is about twice as fast in fp32 as in bf16, and more exact.
        query, key, value = query.float(), key.float(), value.float()
    lengths = cu_seq_lens_q.diff().tolist()
    rate = dropout if module.training else 0.0
    outputs = [
        _attend(*segment, dropout=rate, scaling=scaling, window=sliding_window)
        # Slices would each fill a gradient of the whole row with zeros; the parts of a split are joined once.
        for segment in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).to(dtype), None


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
