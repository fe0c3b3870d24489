"""What the training will do on this machine: decided before the first step, logged, and kept in the provenance."""

import logging
from dataclasses import asdict, dataclass, replace

import torch

from finetuning_api.finetuningjob import MethodType, TrainingSpec
from finetuning_api.runconfig import TrainingInputs
from finetuning_trainer.adapters import Trainee, parameter_counts
from finetuning_trainer.batching import steps_per_epoch, total_steps
from finetuning_trainer.checkpoint import SAVED_COPIES
from finetuning_trainer.cross_entropy import BLOCK_BYTES
from finetuning_trainer.fusing import Fused
from finetuning_trainer.optim import warmup_steps
from finetuning_trainer.probe import Paths
from finetuning_trainer.strategy import SingleProcess
from finetuning_workload.data import PreparedData
from finetuning_workload.files import format_bytes
from finetuning_workload.hardware import DtypeChoice, memory_limit

_LOG = logging.getLogger(__name__)
_FEWEST_TOKENS, _MOST_TOKENS = 512, 8192
"""Below the first, matrices are too small to be fast; above the second, nothing gets faster."""
_ACTIVATION_SHARE = 0.5
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


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The decisions. Sizes are in bytes."""

    strategy: str
    processes: int
    device: str
    dtype: str
    dtype_reason: str
    threads: int
    packed: bool
    split_head: bool
    paths_reason: str
    fused_loss: bool
    fused_lora: int
    fused_norms: int
    fused_reason: str
    micro_batch_tokens: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    parameters: int
    trainable_parameters: int
    memory_bytes: int
    memory_limit_bytes: int
    background_checkpoints: bool

    def log(self) -> None:
        """Tell what was decided, one line a decision."""
        for name, value in asdict(self).items():
            _LOG.info("plan: %s = %s", name, format_bytes(value) if name.endswith("_bytes") else value)


def make_plan(
    config: TrainingInputs,
    *,
    data: PreparedData,
    trainee: Trainee,
    strategy: SingleProcess,
    dtype: DtypeChoice,
    paths: Paths,
    fused: Fused,
    threads: int,
) -> TrainingPlan:
    """Decide how to train."""
    device, world = strategy.device, strategy.group.world
    training, rows = config.training, len(data.train)
    parameters, trainable = parameter_counts(trainee)
    shape = model_shape(trainee.causal.config, parameters=parameters, trainable=trainable)
    longest = int(max(data.train.lengths.max(), 1))
    on_cpu = device.type == "cpu"
    # The processes of one pod share its memory, and each has an accelerator of its own.
    host = memory_limit() // world.local_size
    limit = host if on_cpu else torch.cuda.get_device_properties(device).total_memory
    weights = weight_bytes(shape, config.method.type, dtype.dtype)
    if fused.loss:  # One block of logits is there at a time, however many tokens there are.
        shape, weights = replace(shape, vocabulary=0), weights + BLOCK_BYTES
    budget = micro_batch_tokens(shape, weights=weights, limit=limit, longest=longest, dtype=dtype.dtype)
    memory = weights + activation_bytes(shape, dtype.dtype, tokens=step_tokens(data, training, budget=budget))
    taken = memory if on_cpu else _RUNTIME_BYTES
    steps = total_steps(rows, batch_size=training.batch_size, epochs=training.epochs, max_steps=training.max_steps)
    return TrainingPlan(
        strategy=strategy.name,
        processes=world.size,
        device=str(device),
        dtype=str(dtype.dtype).removeprefix("torch."),
        dtype_reason=dtype.why,
        threads=threads,
        packed=paths.packed,
        split_head=paths.split_head,
        paths_reason=paths.why,
        fused_loss=fused.loss,
        fused_lora=fused.lora,
        fused_norms=fused.norms,
        fused_reason=fused.why,
        micro_batch_tokens=budget,
        steps_per_epoch=steps_per_epoch(rows, training.batch_size),
        total_steps=steps,
        warmup_steps=warmup_steps(training, steps),
        parameters=parameters,
        trainable_parameters=trainable,
        memory_bytes=memory,
        memory_limit_bytes=limit,
        background_checkpoints=taken + saved_bytes(shape) <= host,
    )


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


def saved_bytes(shape: ModelShape) -> int:
    """Return the memory of a copy of what a checkpoint holds, which is written while the training goes on."""
    return shape.trainable * torch.float32.itemsize * SAVED_COPIES


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
    affordable = int(max(limit - weights, 0) * _ACTIVATION_SHARE) // activation_bytes(shape, dtype, tokens=1)
    return max(min(max(affordable, _FEWEST_TOKENS), _MOST_TOKENS), longest)


def step_tokens(data: PreparedData, training: TrainingSpec, *, budget: int) -> int:
    """Return the most tokens that one forward pass can have."""
    longest = int(data.train.lengths.max())
    return min(budget, longest * min(training.batch_size, training.micro_batch_size or training.batch_size))
