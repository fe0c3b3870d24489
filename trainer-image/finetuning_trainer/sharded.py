"""Weights that are divided among processes: FSDP2, torch's ``fully_shard``."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from finetuning_trainer.adapters import Trainee
from finetuning_trainer.group import explained_losses
from finetuning_trainer.lockstep import InLockstep, layers_of
from finetuning_trainer.loss import Forward
from finetuning_trainer.strategy import Divided


@dataclass(frozen=True, slots=True)
class Sharded(InLockstep):
    """Data parallel with divided weights, gradients and moments: a layer is put together while it computes."""

    @property
    def name(self) -> str:
        """Return what plan and provenance call it."""
        return "fsdp"

    @property
    def divided(self) -> Divided:
        """Return that everything is."""
        world = self.group.world
        return Divided(weights=world.size, gradients=world.size, moments=world.size)

    def distribute(self, trainee: Trainee, forward: Forward) -> None:
        """Divide the model: each of its layers by itself, and what is around them together."""
        self.group.copy_from_first(trainee.trainable().values())
        mesh = init_device_mesh(self.device.type, (self.group.world.size,))
        for layer in layers_of(trainee.causal):
            fully_shard(layer, mesh=mesh)
        root = self.with_loss(trainee, forward)
        fully_shard(root, mesh=mesh)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                # Each rank has divided its loss by the supervised tokens of all: gradients are summed, not averaged.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(enable=True)
        self.engine.root = root

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
