"""What strategies have in common whose ranks move weights in every pass: all of them run the model equally often."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from finetuning_trainer.adapters import Trainee
from finetuning_trainer.batching import Division, MicroBatch
from finetuning_trainer.loss import Forward
from finetuning_trainer.strategy import SingleProcess, shares


@dataclass(slots=True)
class Engine:
    """The module that is called in place of the model, once there is one."""

    root: torch.nn.Module | None = None


@dataclass(frozen=True, slots=True)
class InLockstep(SingleProcess):
    """Data parallel with divided tensors."""

    engine: Engine = field(default_factory=Engine)

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
        """Return True: every forward and backward pass moves tensors between the processes."""
        return True

    def with_loss(self, trainee: Trainee, forward: Forward) -> torch.nn.Module:
        """Return a model and its loss as one module: outside of it no weight is put together."""
        return _LossOf(trainee.wrapped, forward, self.computing)

    def summed_nll(self, forward: Forward, batch: MicroBatch) -> torch.Tensor:
        """Return the negative log-likelihood of the labels of a batch, summed, in nats and fp32."""
        if self.engine.root is not None:
            return torch.as_tensor(self.engine.root(batch))
        with self.computing():
            return forward.summed_nll(batch)

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


class _LossOf(torch.nn.Module):
    def __init__(
        self, model: torch.nn.Module, forward: Forward, computing: Callable[[], AbstractContextManager[None]]
    ) -> None:
        super().__init__()
        self.model = model
        self._loss = forward
        self._computing = computing

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """Return what `Forward.summed_nll` returns."""
        # Here, not around the call: an engine may have its own opinion of what was switched on outside.
        with self._computing():
            return self._loss.summed_nll(batch)


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers that are put together each by itself: those that transformers says must not be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]
