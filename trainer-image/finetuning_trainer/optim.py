"""AdamW, the course of the learning rate, and clipping."""

import math
from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor

from finetuning_api.finetuningjob import Schedule, TrainingSpec

_ADAM_BETAS, _ADAM_EPSILON = (0.9, 0.999), 1e-8
MOMENTS = 2
"""AdamW's, each as large as the weights that are trained."""


def make_optimizer(weights: Iterable[torch.nn.Parameter], training: TrainingSpec) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019); weight decay spares biases and norms, which have one dimension."""
    all_weights = list(weights)
    groups = [
        {"params": [weight for weight in all_weights if weight.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [weight for weight in all_weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=training.learning_rate, betas=_ADAM_BETAS, eps=_ADAM_EPSILON, fused=True)


def warmup_steps(training: TrainingSpec, total: int) -> int:
    """Return the steps during which the learning rate rises; at least one step has the full rate."""
    return min(math.ceil(training.warmup_ratio * total), total - 1)


def learning_rate(step: int, *, training: TrainingSpec, total: int) -> float:
    """Return the rate of a step, counted from 0. It follows from the step alone, so resuming needs no scheduler state.

    After a linear warm-up to the peak, cosine and linear fall to 0 just after the last step.
    """
    warmup = warmup_steps(training, total)
    if step < warmup:
        return training.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / (total - warmup)
    match training.schedule:
        case Schedule.COSINE:
            factor = (1 + math.cos(math.pi * done)) / 2
        case Schedule.LINEAR:
            factor = 1 - done
        case Schedule.CONSTANT:
            factor = 1.0
    return training.learning_rate * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use a rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(weights: Iterable[torch.nn.Parameter], greatest: float) -> float:
    """Scale the gradients so that their L2 norm is at most ``greatest``; return the norm before.

    A norm that is not finite scales nothing: the caller must not step then.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    # Of gradients that are divided among processes every one of them gets the norm of all.
    value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if math.isfinite(value) and value > greatest:
        for gradient in gradients:
            gradient.mul_(greatest / (value + 1e-6))
    return value
