"""Weights that are divided among processes: FSDP2, torch's ``fully_shard``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from finetuning_trainer.adapters import Trainee
from finetuning_trainer.batching import Division, MicroBatch
from finetuning_trainer.group import explained_losses
from finetuning_trainer.loss import Forward
from finetuning_trainer.strategy import SingleProcess, shares


@dataclass(slots=True)
class _Engine:
    """The module that is called in place of the model, once there is one."""

    root: torch.nn.Module | None = None


@dataclass(frozen=True, slots=True)
class Sharded(SingleProcess):
    """Data parallel with divided weights, gradients and moments: a layer is put together while it computes."""

    engine: _Engine = field(default_factory=_Engine)

    @property
    def name(self) -> str:
        """Return what plan and provenance call it."""
        return "fsdp"

    @property
    def loading_device(self) -> torch.device:
        """Return the CPU: the whole model need not fit into an accelerator."""
        return torch.device("cpu")

    @property
    def computing_device(self) -> torch.device:
        """Return where the model is now: it comes to its device when it is divided."""
        return self.loading_device if self.engine.root is None else self.device

    @property
    def in_lockstep(self) -> bool:
        """Return True: every forward and backward pass moves weights between the processes."""
        return True

    def distribute(self, trainee: Trainee, forward: Forward) -> None:
        """Divide the model: each of its layers by itself, and what is around them together."""
        self.group.copy_from_first(trainee.trainable().values())
        mesh = init_device_mesh(self.device.type, (self.group.world.size,))
        for layer in layers_of(trainee.causal):
            fully_shard(layer, mesh=mesh)
        root = _LossOf(trainee.wrapped, forward)
        fully_shard(root, mesh=mesh)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                # Each rank has divided its loss by the supervised tokens of all: gradients are summed, not averaged.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(enable=True)
        self.engine.root = root

    def summed_nll(self, forward: Forward, batch: MicroBatch) -> torch.Tensor:
        """Return the negative log-likelihood of the labels of a batch, summed, in nats and fp32."""
        run = self.engine.root if self.engine.root is not None else forward.summed_nll
        with self.computing():
            return torch.as_tensor(run(batch))

    def stops(self, asked: bool) -> bool:  # noqa: FBT001
        """Return what all ranks decide together: one that stopped alone would leave the others in the model."""
        return bool(self.group.sums(asked)[0])

    def parts(self, rows: Sequence[int], lengths: Sequence[int], division: Division) -> list[list[int]]:
        """Return the micro-batches of the share of this process, and empty ones until it has as many as any."""
        world = self.group.world
        divided = [
            list(division.of([rows[place] for place in places], [lengths[place] for place in places]))
            for places in shares(lengths, world.size)
        ]
        most = max(map(len, divided))
        own = divided[world.rank]
        return own + [[] for _ in range(most - len(own))]

    def add_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """FSDP has summed them in the backward pass."""

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Put all of a tensor together, on every process."""
        with explained_losses(self.group.world):
            return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()

    def own(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return the shard of this process."""
        if not isinstance(like, DTensor):
            return tensor
        return distribute_tensor(tensor.to(self.device), like.device_mesh, like.placements)


class _LossOf(torch.nn.Module):
    """A model and its loss as one module: outside of it no layer is put together."""

    def __init__(self, model: torch.nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self._loss = forward

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """Return what `Forward.summed_nll` returns."""
        return self._loss.summed_nll(batch)


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers that are divided each by itself: those that transformers says must not be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]
