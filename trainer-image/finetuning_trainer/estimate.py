"""What a training may take of memory, from the sizes of its model alone: preflight has no weights to count on.

It is an estimate from above. Before the first step the plan counts on the model itself.
"""

from dataclasses import dataclass

import torch

from finetuning_api.finetuningjob import MethodType, TrainingSpec
from finetuning_workload.data import PreparedData

FEWEST_TOKENS, MOST_TOKENS = 512, 8192
"""Of a forward pass. Below the first, matrices are too small to be fast; above the second, nothing gets faster."""
ACTIVATION_SHARE = 0.5
"""Of the memory that weights leave free, the share that one micro-batch may take."""
_RUNTIME_BYTES = 600_000_000
"""What the interpreter and its libraries take."""
_ADAM_COPIES = 3
"""Gradient and two moments of each trained weight, in fp32."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that memory follows from."""

    parameters: int
    trainable: int
    layers: int
    hidden: int
    vocabulary: int


def model_shape(config: object, *, parameters: int, trainable: int) -> ModelShape:
    """Return the sizes of a model from its configuration, whatever the architecture calls them."""
    text = config.get_text_config()  # type: ignore[attr-defined]
    return ModelShape(
        parameters=parameters,
        trainable=trainable,
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
    )


def weight_bytes(shape: ModelShape, method: MethodType, dtype: torch.dtype) -> int:
    """Return the memory of weights, gradients, moments and the runtime: what does not depend on the batch."""
    frozen = shape.parameters - shape.trainable
    # Full fine-tuning keeps the trained weights in fp32 and, in bf16, a copy of them in bf16 during the forward pass.
    copy = shape.trainable * dtype.itemsize if method is MethodType.FULL and dtype is not torch.float32 else 0
    return (
        frozen * dtype.itemsize + shape.trainable * torch.float32.itemsize * (1 + _ADAM_COPIES) + copy + _RUNTIME_BYTES
    )


def activation_bytes(shape: ModelShape, dtype: torch.dtype, *, tokens: int) -> int:
    """Return the memory of one micro-batch, from above.

    A layer keeps about 34 values of a hidden size for a token (Korthikanti et al. 2022, equation 1, without its
    attention scores, which flash kernels do not keep); LoRA adds about a third. The logits of the supervised tokens,
    at most all of them, are there in the model's format, in fp32, and as their gradient.
    """
    layer = 34 * 4 // 3 * shape.hidden * dtype.itemsize // 2
    logits = shape.vocabulary * (dtype.itemsize + 2 * torch.float32.itemsize)
    return tokens * (shape.layers * layer + logits)


def micro_batch_tokens(shape: ModelShape, *, weights: int, limit: int, longest: int, dtype: torch.dtype) -> int:
    """Return the token budget of a forward pass: what fits into memory, within reason; a whole row always passes."""
    affordable = int(max(limit - weights, 0) * ACTIVATION_SHARE) // activation_bytes(shape, dtype, tokens=1)
    return max(min(max(affordable, FEWEST_TOKENS), MOST_TOKENS), longest)


def step_tokens(data: PreparedData, training: TrainingSpec, *, budget: int) -> int:
    """Return the most tokens that one forward pass can have."""
    longest = int(data.train.lengths.max())
    return min(budget, longest * min(training.batch_size, training.micro_batch_size or training.batch_size))
