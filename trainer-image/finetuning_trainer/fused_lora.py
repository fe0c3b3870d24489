"""LoRA as one operation: the adapter's product is added into the frozen layer's, and little is kept of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from transformers.pytorch_utils import Conv1D


@contextmanager
def fused_lora(model: torch.nn.Module, *, active: bool = True) -> Iterator[int]:
    """Let the LoRA layers of a model that allow it compute fused, as long as the context lasts; yield their number.

    Parameters, names and files are PEFT's own throughout. A layer whose adapter is switched off or merged computes as
    PEFT has it.
    """
    layers = [layer for layer in lora_layers(model) if is_fusible(layer)] if active else []
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward  # The class's own is seen again.


def lora_layers(model: torch.nn.Module) -> list[LoraLinear]:
    """Return the linear layers that carry LoRA."""
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


def is_fusible(layer: LoraLinear) -> bool:
    """Tell whether a layer is plain LoRA on a plain frozen one: one adapter, no dropout, variant or own bias."""
    base = layer.get_base_layer()
    names = layer.active_adapters
    if type(layer) is not LoraLinear or type(base) not in {torch.nn.Linear, Conv1D} or len(names) != 1:
        return False
    (name,) = names
    return (
        name in layer.lora_A
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
        and not any(weight.requires_grad for weight in base.parameters())
    )


def _forward(layer: LoraLinear, plain: Any, x: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:  # noqa: ANN401
    (name,) = layer.active_adapters
    base: Any = layer.get_base_layer()
    if layer.disable_adapters or layer.merged or rest or named:
        return torch.as_tensor(plain(x, *rest, **named))
    weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
    down: Any = layer.lora_A[name]
    up: Any = layer.lora_B[name]
    return lora_linear(x, weight, base.bias, down=down.weight, up=up.weight, scale=layer.scaling[name])


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    down: torch.Tensor,
    up: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Return x W' + bias + scale (x A') B', in the frozen weight's format.

    ``x`` is [..., in], ``weight`` [out, in], ``down`` (A) [rank, in], ``up`` (B) [out, rank]. Weight and bias get no
    gradient.
    """
    result: torch.Tensor = _LoraLinear.apply(x, weight, bias, down, up, scale)  # type: ignore[no-untyped-call]  # of torch
    return result


class _LoraLinear(torch.autograd.Function):
    """Keeps x and the small xA' alone; gradients of A and B are products of the small ones, in the weights' fp32."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (torch gives it no type)
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Return [..., out]."""
        with torch.autocast(x.device.type, enabled=False):
            rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
            cast_down, cast_up = down.to(weight.dtype), up.to(weight.dtype)
            inner = rows @ cast_down.t()
            output = torch.nn.functional.linear(rows, weight, bias).addmm_(inner, cast_up.t(), alpha=scale)
        ctx.save_for_backward(rows, inner, weight, cast_down, cast_up)
        ctx.scale, ctx.x, ctx.master = scale, (x.shape, x.dtype), down.dtype
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of x, A and B."""
        rows, inner, weight, down, up = ctx.saved_tensors
        shape, dtype = ctx.x
        of_x = None
        with torch.autocast(rows.device.type, enabled=False):
            outward = gradients[0].reshape(-1, gradients[0].shape[-1]).to(weight.dtype)
            of_inner = (outward @ up).mul_(ctx.scale)
            if ctx.needs_input_grad[0]:
                of_x = (outward @ weight).addmm_(of_inner, down).view(shape).to(dtype)
            of_up = (inner.t() @ outward).t().to(ctx.master).mul_(ctx.scale)
            of_down = (of_inner.t() @ rows).to(ctx.master)
        return of_x, None, None, of_down, of_up, None
