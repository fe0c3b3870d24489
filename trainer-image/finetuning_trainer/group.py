"""The processes of one training, and what they tell each other: sums, decisions of the first, and requests to stop."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch lists nothing as exported

from finetuning_api.reasons import Reason
from finetuning_workload.errors import EnvironmentFault, UserError

T = TypeVar("T")
_PATIENCE = timedelta(hours=2)
"""How long an operation waits for the other ranks: they may be writing a checkpoint or tokenising. One that ended is
noticed at once by its closed connections, and a machine that went silent by the launchers."""
_STOP_KEY = "stop"
_LOOK_SECONDS = 1.0
"""How often the other ranks' request to stop is looked for."""
_BUCKET_VALUES = 16_000_000
"""Gradients that are summed in one operation: enough to use the network, few enough to be copied."""
_SIGNS_OF_LOSS = ("connection", "by peer", "broken pipe", "socket", "timed out", "remote process", "ncclremoteerror")
"""How torch and its libraries word that they do not reach another process."""


@dataclass(frozen=True, slots=True)
class World:
    """Which process this is. Ranks count from 0 over all workers, local ranks within one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "World":
        """Return the place that torch's launcher gave to this process."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return cls(*(int(environment[name]) for name in names))


class Group(Protocol):
    """What ranks tell each other. Every rank must call the same functions in the same order."""

    @property
    def world(self) -> World:
        """Return which of them this is."""
        ...

    def sums(self, *values: float) -> list[float]:
        """Return the sum over the ranks of each value."""
        ...

    def add_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Give every weight the sum of its gradients over the ranks; None where no rank has one."""
        ...

    def from_first(self, value: T) -> T:
        """Return the value that the first rank has."""
        ...

    def copy_from_first(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Give every weight the values that it has on the first rank."""
        ...

    def wait(self) -> None:
        """Wait until every rank got here."""
        ...

    def asked_to_stop(self, asked: bool) -> bool:  # noqa: FBT001
        """Tell the others where this process was asked to stop, and return whether any was, as far as is known."""
        ...


class Board(Protocol):
    """The part of torch's key-value store that is used: any process sets, any process looks."""

    def set(self, key: str, value: str) -> None:
        """Keep a value."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Tell whether all of them were set."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """A group of one."""

    world: World = field(default_factory=World)

    def sums(self, *values: float) -> list[float]:
        """Return the values."""
        return list(values)

    def add_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """There is nobody to add anything."""

    def from_first(self, value: T) -> T:
        """Return the value."""
        return value

    def copy_from_first(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """This is the first."""

    def wait(self) -> None:
        """There is nobody to wait for."""

    def asked_to_stop(self, asked: bool) -> bool:  # noqa: FBT001
        """Return what is known here."""
        return asked


@dataclass(slots=True)
class Ranks:
    """A group of processes, upon torch.distributed: gloo between CPUs, NCCL between GPUs."""

    world: World
    device: torch.device
    board: Board
    """What need not be told at once."""
    clock: Callable[[], float] = time.monotonic
    _stops: bool = field(init=False, default=False)
    _looked_at: float = field(init=False, default=float("-inf"))

    def sums(self, *values: float) -> list[float]:
        """Return the sum over the ranks of each value, computed in fp64."""
        tensor = torch.tensor(values, dtype=torch.float64)
        with explained_losses(self.world):
            distributed.all_reduce(tensor)
        return [float(value) for value in tensor]

    def add_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Sum once a step, in few large operations: the gradients of an adapter are small."""
        with explained_losses(self.world):
            for bucket in _buckets(self._with_gradients(list(weights))):
                gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in bucket]
                flat = torch.cat([gradient.flatten() for gradient in gradients])
                distributed.all_reduce(flat)
                parts = flat.split([gradient.numel() for gradient in gradients])
                for weight, part in zip(bucket, parts, strict=True):
                    weight.grad = part.view_as(weight)

    def _with_gradients(self, weights: Sequence[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
        """Return the weights that have a gradient on any rank: an optimizer leaves those alone that have none."""
        known = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32)
        distributed.all_reduce(known)
        return [weight for weight, count in zip(weights, known.tolist(), strict=True) if count]

    def from_first(self, value: T) -> T:
        """Return the value that the first rank has."""
        told: list[T] = [value]
        with explained_losses(self.world):
            distributed.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        return told[0]

    def copy_from_first(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Give every weight the values that it has on the first rank."""
        with explained_losses(self.world), torch.no_grad():
            for weight in weights:
                distributed.broadcast(weight.data, src=0)

    def wait(self) -> None:
        """Wait until every rank got here."""
        self.sums(0.0)

    def asked_to_stop(self, asked: bool) -> bool:  # noqa: FBT001
        """Tell and ask through the store, at most once a second: whoever computes has no operation in common."""
        if self._stops or not (asked or self.clock() - self._looked_at >= _LOOK_SECONDS):
            return self._stops
        self._looked_at = self.clock()
        with explained_losses(self.world):
            if asked:
                self.board.set(_STOP_KEY, "1")
            self._stops = asked or self.board.check([_STOP_KEY])
        return self._stops


def _buckets(weights: Iterable[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    for weight in weights:
        fits = sum(each.numel() for each in bucket) + weight.numel() <= _BUCKET_VALUES
        if bucket and not (fits and weight.dtype == bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(weight)
    if bucket:
        yield bucket


@contextmanager
def explained_losses(world: World) -> Iterator[None]:
    """Turn an operation that failed because another rank is gone into EnvironmentFault(WORKER_LOST)."""
    try:
        yield
    except RuntimeError as error:
        if not is_loss(error):
            raise
        message = f"rank {world.rank} lost the other ranks: {str(error).splitlines()[0][:200]}"
        hint = "Look at the rank that ended first; the training goes on from its last checkpoint."
        raise EnvironmentFault(Reason.WORKER_LOST, message, hint) from error


def is_loss(error: RuntimeError) -> bool:
    """Tell whether an error says that another process cannot be reached."""
    return isinstance(error, distributed.DistError) or any(sign in str(error).lower() for sign in _SIGNS_OF_LOSS)


def choose_local_device(world: World) -> torch.device:
    """Return the accelerator of this process where there are any, else the CPU. Raises UserError(INVALID_SPEC)."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if world.local_size > torch.cuda.device_count():
        message = (
            f"spec.parallelism.processesPerWorker is {world.local_size}, and this worker sees"
            f" {torch.cuda.device_count()} accelerators"
        )
        hint = "Each process needs one: raise spec.resources.limits, or lower processesPerWorker."
        raise UserError(Reason.INVALID_SPEC, message, hint)
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device


@contextmanager
def joined(environment: Mapping[str, str]) -> Iterator[Ranks]:
    """Join the group that torch's launcher describes in the environment, as long as the context lasts."""
    world = World.of(environment)
    device = choose_local_device(world)
    with explained_losses(world):
        store = TCPStore(
            environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False, timeout=_PATIENCE
        )
        distributed.init_process_group(
            backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("group", store),
            rank=world.rank,
            world_size=world.size,
            timeout=_PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
    yield Ranks(world, device, PrefixStore("told", store))
    # Not after an error: ending in order would wait for ranks that are not coming. The process ends, and with it this.
    distributed.destroy_process_group()


def ranks_of(worker: int, *, processes: int) -> range:
    """Return the ranks of a worker."""
    return range(worker * processes, (worker + 1) * processes)
