"""RMS norm as one operation: its input and one number a token are kept, where plain code keeps fp32 copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_SAMPLE_ROWS = 3


@contextmanager
def fused_norms(model: torch.nn.Module, *, active: bool = True) -> Iterator[int]:
    """Let the RMS norms of a model compute fused, as long as the context lasts; yield their number."""
    norms = [module for module in model.modules() if is_fusible(module)] if active else []
    for norm in norms:
        norm.forward = partial(_forward, norm)
    try:
        yield len(norms)
    finally:
        for norm in norms:
            del norm.forward  # The class's own is seen again.


def is_fusible(module: torch.nn.Module) -> bool:
    """Tell whether a module is an RMS norm of a frozen weight, and computes what the formula says.

    Architectures name and write theirs alike and some mean another formula, so each is compared on numbers.
    """
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, torch.nn.Parameter) or not isinstance(epsilon, float) or weight.requires_grad:
        return False
    if not type(module).__name__.endswith("RMSNorm") or len(list(module.parameters())) != 1 or weight.ndim != 1:
        return False
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(_SAMPLE_ROWS, len(weight), generator=generator).to(weight.device, weight.dtype)
    with torch.no_grad():
        own = torch.as_tensor(module(sample))
        return own.dtype is sample.dtype and torch.allclose(
            own, rms_norm(sample, weight, epsilon), rtol=0.01, atol=1e-5
        )


def _forward(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    owner: Any = norm
    return rms_norm(x, owner.weight, owner.variance_epsilon)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019); the weight gets no gradient."""
    result: torch.Tensor = _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]  # of torch
    return result


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:  # noqa: ANN401
        exact = x.to(_exact(x.dtype))
        inverse = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = inverse.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return torch.as_tensor(weight * (exact * inverse).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """With y = x/rms: dx = (g - y mean(g y)) / rms, where g is the gradient times the weight."""
        x, weight, inverse = ctx.saved_tensors
        outward = (gradients[0] * weight).to(inverse.dtype)
        normal = x.to(inverse.dtype) * inverse
        share = torch.linalg.vecdot(outward, normal).unsqueeze(-1).div_(x.shape[-1])
        return outward.addcmul_(normal, share, value=-1).mul_(inverse).to(x.dtype), None, None


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32
