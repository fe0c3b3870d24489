"""Cross entropy of an output layer without its logits: a block of tokens at a time, gradient included."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

_BLOCK_VALUES = 8_000_000
"""Logits that are there at once: enough for full matrix products, few enough for the last cache."""
_SMALLEST_SHARE = 1e-30


def summed_nll(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of labels [tokens], summed, in nats and fp32.

    ``hidden`` is [tokens, size], ``weight`` [vocabulary, size] is frozen: it gets no gradient. The logits are computed
    in the weight's format, everything behind them in fp32.
    """
    result: torch.Tensor = _SummedNll.apply(hidden, weight, labels)  # type: ignore[no-untyped-call]  # of torch
    return result


def block_tokens(vocabulary: int) -> int:
    """Return how many tokens have their logits at once."""
    return max(1, _BLOCK_VALUES // vocabulary)


class _SummedNll(torch.autograd.Function):
    """The gradient is made in the forward pass, where the logits are at hand: it is as small as the hidden states."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (torch gives it no type)
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Return a scalar."""
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        total = hidden.new_zeros((), dtype=_exact(weight.dtype))
        block = block_tokens(len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(labels), block):
                part = slice(start, start + block)
                logits = torch.mm(hidden[part].to(weight.dtype), weight.t())
                nll, shares = _nll_and_shares(logits, labels[part])
                total += nll
                if gradient is not None:
                    shares[torch.arange(len(shares), device=shares.device), labels[part]] -= 1
                    gradient[part] = torch.mm(shares.to(weight.dtype), weight)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Return the gradient of the hidden states."""
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _nll_and_shares(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed negative log-likelihood and softmax(logits) [tokens, vocabulary]."""
    shares = torch.softmax(logits, dim=-1, dtype=_exact(logits.dtype))
    chosen = shares.gather(1, labels[:, None])
    if bool((chosen < _SMALLEST_SHARE).any()):  # Its logarithm would lose digits, and at last be infinite.
        return cross_entropy(logits.to(shares.dtype), labels, reduction="sum"), shares
    return -chosen.log().sum(), shares
