"""Where the work is done, in which precision, and how a step is shared among processes."""

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from peft.helpers import disable_input_dtype_casting

from finetuning_api.finetuningjob import TrainingSpec
from finetuning_trainer.adapters import Trainee
from finetuning_trainer.batching import Division, MicroBatch
from finetuning_trainer.checkpoint import Checkpoint, Snapshot, restore, restore_weights, snapshot
from finetuning_trainer.group import Alone, Group
from finetuning_trainer.loss import Forward
from finetuning_trainer.optim import clip_gradients, make_optimizer


@dataclass(frozen=True, slots=True)
class Divided:
    """By how many processes each part of what a training keeps is divided."""

    weights: int = 1
    gradients: int = 1
    moments: int = 1


@dataclass(frozen=True, slots=True)
class SingleProcess:
    """The whole model on one device. ``dtype`` is what matrices are multiplied in; trained weights are always fp32."""

    device: torch.device
    dtype: torch.dtype
    group: Group = field(default_factory=Alone)

    @property
    def name(self) -> str:
        """Return what plan and provenance call it."""
        return "single process"

    @property
    def loading_device(self) -> torch.device:
        """Return where the model is loaded and probed."""
        return self.device

    @property
    def computing_device(self) -> torch.device:
        """Return where the model is now."""
        return self.device

    @property
    def in_lockstep(self) -> bool:
        """Tell whether every rank must run the model as often as the others."""
        return False

    @property
    def divided(self) -> Divided:
        """Return what a process has a part of only."""
        return Divided()

    @contextmanager
    def prepared(self, trainee: Trainee) -> Iterator[None]:
        """Prepare the model for training or evaluation in this precision, as long as the context lasts."""
        # Autocast brings fp32 LoRA weights to bf16; PEFT's own cast would bring every input to fp32 and multiply there.
        with disable_input_dtype_casting(trainee.wrapped, active=self._mixed):
            yield

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute one forward pass in this precision."""
        with torch.autocast(self.computing_device.type, dtype=self.dtype, enabled=self._mixed):
            yield

    def distribute(self, trainee: Trainee, forward: Forward) -> None:
        """Bring the model to where it is trained; its weights may be other objects afterwards."""

    def summed_nll(self, forward: Forward, batch: MicroBatch) -> torch.Tensor:
        """Return the negative log-likelihood of the labels of a batch, summed, in nats and fp32."""
        with self.computing():
            return forward.summed_nll(batch)

    def stops(self, asked: bool) -> bool:  # noqa: FBT001
        """Return whether to stop between two micro-batches, where this process was or was not asked to."""
        return self.group.asked_to_stop(asked)

    def parts(self, rows: Sequence[int], lengths: Sequence[int], division: Division) -> list[list[int]]:
        """Return the micro-batches of a step that this process computes."""
        return list(division.of(rows, lengths))

    def optimizer(self, weights: Iterable[torch.nn.Parameter], training: TrainingSpec) -> torch.optim.Optimizer:
        """Return what updates the weights of a distributed model."""
        return make_optimizer(weights, training)

    def forget_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin a step without any."""
        optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a part of the step's loss."""
        loss.backward()

    def update(
        self, optimizer: torch.optim.Optimizer, weights: Sequence[torch.nn.Parameter], *, greatest_norm: float
    ) -> float:
        """Clip the gradients of all processes and step on them; return their norm before.

        Where it is not finite, the weights stay as they are.
        """
        self.add_gradients(weights)
        norm = clip_gradients(weights, greatest_norm)
        if math.isfinite(norm):
            optimizer.step()
        return norm

    def add_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Make the gradients of this process those of all."""

    def snapshot(self, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> Snapshot:
        """Return the tensors of a checkpoint, whole. Every rank must call it."""
        return snapshot(weights, optimizer, whole=self.whole)

    def restore(
        self, checkpoint: Checkpoint, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        """Put a checkpoint's weights and moments in place."""
        restore(checkpoint, weights=weights, optimizer=optimizer, own=self.own)

    def restore_weights(self, checkpoint: Checkpoint, weights: dict[str, torch.nn.Parameter]) -> None:
        """Put a checkpoint's weights in place."""
        restore_weights(checkpoint, weights, own=self.own)

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return all of a tensor of the model or the optimizer."""
        return tensor.detach()

    def own(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:  # noqa: ARG002  (of other strategies)
        """Return the part of a whole tensor that this process keeps, as it keeps ``like``."""
        return tensor

    def release(self) -> None:
        """Give memory back that nothing uses."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _mixed(self) -> bool:
        return self.dtype is not torch.float32


@dataclass(frozen=True, slots=True)
class Replicated(SingleProcess):
    """Data parallel: every process has the whole model and computes its share of each step's rows."""

    @property
    def name(self) -> str:
        """Return what plan and provenance call it."""
        return "ddp"

    def distribute(self, trainee: Trainee, forward: Forward) -> None:  # noqa: ARG002  (of other strategies)
        """Begin with the same weights everywhere, whatever machines made them."""
        self.group.copy_from_first(trainee.trainable().values())

    def parts(self, rows: Sequence[int], lengths: Sequence[int], division: Division) -> list[list[int]]:
        """Return the micro-batches of the share of this process, which may be none."""
        world = self.group.world
        places = shares(lengths, world.size)[world.rank]
        return list(division.of([rows[place] for place in places], [lengths[place] for place in places]))

    def add_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Sum over the processes: each of them divided its loss by the supervised tokens of the whole step."""
        self.group.add_gradients(weights)


def shares(lengths: Sequence[int], number: int) -> list[list[int]]:
    """Divide rows of these lengths into shares of about as many tokens each; return the places of each in order.

    The longest rows are given out first, each to the share that has least so far (Graham 1969). It follows from the
    lengths alone, so that every process knows the shares of all.
    """
    found: list[list[int]] = [[] for _ in range(number)]
    loads = [(0, share) for share in range(number)]
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        load, share = heapq.heappop(loads)
        found[share].append(place)
        heapq.heappush(loads, (load + lengths[place], share))
    return [sorted(places) for places in found]
