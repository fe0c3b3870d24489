"""What the training will do on this machine: decided before the first step, logged, and kept in the provenance."""

import logging
from dataclasses import asdict, dataclass, replace

import torch

from finetuning_api.finetuningjob import TrainingSpec
from finetuning_api.runconfig import TrainingInputs
from finetuning_trainer.adapters import Trainee, parameter_counts
from finetuning_trainer.batching import largest_step, lengths_of, steps_per_epoch, supervised_count, total_steps
from finetuning_trainer.estimate import ACTIVATION_SHARE, FEWEST_TOKENS, MOST_TOKENS
from finetuning_trainer.evaluate import chosen_rows
from finetuning_trainer.fusing import Fused
from finetuning_trainer.memory import FP32_BYTES, NOTHING, Measured, Memory, Pass, taken_bytes
from finetuning_trainer.optim import MOMENTS, warmup_steps
from finetuning_trainer.probe import Paths
from finetuning_trainer.strategy import SingleProcess
from finetuning_workload.data import PreparedData
from finetuning_workload.files import format_bytes
from finetuning_workload.hardware import DtypeChoice, memory_limit

_LOG = logging.getLogger(__name__)
_LEAST_SHARE = 0.75
"""Of the micro-batches that a training began with, what memory must allow for it to keep them."""
_KEPT_BY_THE_SYSTEM = 1.5
"""What a process takes for each byte of its tensors, at most, where the C library keeps what they leave."""


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
    memory_reason: str
    gives_memory_back: bool
    background_checkpoints: bool

    def log(self) -> None:
        """Tell what was decided, one line a decision."""
        for name, value in asdict(self).items():
            _LOG.info("plan: %s = %s", name, format_bytes(value) if name.endswith("_bytes") else value)
        if self.memory_bytes > self.memory_limit_bytes:
            message = (
                "the training is expected to take %s of memory and %s are allowed, although no more than %d tokens are"
                " computed at once: it may be killed. Give the job more memory, or lower spec.training.maxLength"
            )
            told = format_bytes(self.memory_bytes), format_bytes(self.memory_limit_bytes)
            _LOG.warning(message, *told, self.micro_batch_tokens)


def make_plan(
    config: TrainingInputs,
    *,
    data: PreparedData,
    trainee: Trainee,
    strategy: SingleProcess,
    dtype: DtypeChoice,
    paths: Paths,
    fused: Fused,
    measured: Measured,
) -> TrainingPlan:
    """Decide how to train."""
    device, world = strategy.device, strategy.group.world
    training, rows = config.training, len(data.train)
    parameters, trainable = parameter_counts(trainee)
    steps = total_steps(rows, batch_size=training.batch_size, epochs=training.epochs, max_steps=training.max_steps)
    # The processes of one pod share its memory, and each has an accelerator of its own.
    host = memory_limit() // world.local_size
    limit = host if device.type == "cpu" else torch.cuda.get_device_properties(device).total_memory
    memory = training_memory(trainee, strategy, measured=measured, dtype=dtype.dtype)
    longest = int(max(data.train.lengths.max(), 1))
    budget = kept_tokens(micro_batch_tokens(memory, limit=limit, longest=longest), measured.begun_with)
    whole = _whole_step(data, training, steps=steps, packed=paths.packed, processes=world.size)
    several = whole.tokens > budget or (training.micro_batch_size or training.batch_size) < training.batch_size
    memory = replace(memory, accumulated=several)
    passes = whole.at_most(budget), _evaluation(data).at_most(budget)
    copied = memory.with_copy(trainable * FP32_BYTES, beside=_saves_before_its_end(training, steps))
    on_host = copied.peak(*passes) if device.type == "cpu" else taken_bytes(torch.device("cpu")) + copied.copy
    beside = on_host <= host
    if beside and device.type == "cpu":
        memory = copied
    expected = max(memory.peak(*passes), measured.peak)
    return TrainingPlan(
        strategy=strategy.name,
        processes=world.size,
        device=str(device),
        dtype=str(dtype.dtype).removeprefix("torch."),
        dtype_reason=dtype.why,
        threads=torch.get_num_threads(),
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
        memory_bytes=expected,
        memory_limit_bytes=limit,
        memory_reason=memory.told(passes[0]) + _bounded(budget, limit),
        gives_memory_back=device.type == "cpu" and expected * _KEPT_BY_THE_SYSTEM > limit,
        background_checkpoints=beside,
    )


def training_memory(trainee: Trainee, strategy: SingleProcess, *, measured: Measured, dtype: torch.dtype) -> Memory:
    """Return what a training takes without its checkpoints."""
    parameters, trainable = parameter_counts(trainee)
    # Full fine-tuning in bf16 keeps its weights in fp32; the copy in bf16 is made in each pass, and counted there.
    frozen = (parameters - trainable) * dtype.itemsize
    trained = trainable * FP32_BYTES
    divided = strategy.divided
    return Memory(
        base=max(measured.taken - frozen - trained, 0),
        weights=(frozen + trained) // divided.weights,
        gradients=trained // divided.gradients,
        moments=MOMENTS * trained // divided.moments,
        footprint=measured.footprint,
    )


def micro_batch_tokens(memory: Memory, *, limit: int, longest: int) -> int:
    """Return the token budget of a forward pass: what fits into memory, within reason; a whole row always passes.

    Few figures are given: what a process takes differs by some megabytes each time, and its micro-batches shall not.
    """
    fixed = memory.peak(NOTHING, NOTHING)
    comfortable = memory.affordable(fixed + int((limit - fixed) * ACTIVATION_SHARE), longest=longest, most=MOST_TOKENS)
    if comfortable < FEWEST_TOKENS:
        comfortable = memory.affordable(limit, longest=longest, most=FEWEST_TOKENS)
    return max(_rounded(comfortable), longest)


def kept_tokens(affordable: int, begun_with: int | None) -> int:
    """Return the micro-batches of a training that goes on: those that it began with, so that sums stay bit for bit.

    Memory may have taught it smaller ones. Where there is much less of it now, they are what it allows.
    """
    return affordable if begun_with is None or affordable < _LEAST_SHARE * begun_with else begun_with


def _rounded(tokens: int) -> int:
    """Return a whole number of eighths of the power of two that is not above it."""
    eighth = max(1, 2 ** (tokens.bit_length() - 4)) if tokens > 0 else 1
    return tokens // eighth * eighth


def _bounded(budget: int, limit: int) -> str:
    return f"; micro-batches of {budget} tokens are what {format_bytes(limit)} allow" if budget < MOST_TOKENS else ""


def _whole_step(data: PreparedData, training: TrainingSpec, *, steps: int, packed: bool, processes: int) -> Pass:
    """Return the greatest share of a step that a process has, were it computed at once."""
    split, longest = data.train, int(data.train.lengths.max())
    tokens, labels, pairs = largest_step(split, steps=steps, batch_size=training.batch_size, seed=training.seed)
    at_once = min(training.micro_batch_size or training.batch_size, training.batch_size) * longest
    tokens = min(tokens, at_once) if packed else at_once
    if processes > 1:  # Rows are shared by their tokens: nobody has more than a row beyond the mean.
        tokens = min(tokens, tokens // processes + longest)
    return Pass(tokens, min(labels, tokens), min(pairs, tokens * longest) if packed else tokens * longest)


def _evaluation(data: PreparedData) -> Pass:
    rows = chosen_rows(data.test)
    return Pass(sum(lengths_of(data.test, rows)), supervised_count(data.test, rows))


def _saves_before_its_end(training: TrainingSpec, steps: int) -> bool:
    return training.checkpoint_every_steps < steps or training.early_stopping is not None
