"""What a training takes of memory: counted on the model itself before the first step, and put together to its peak."""

import ctypes
import gc
import resource
import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetuning_trainer.adapters import Trainee
from finetuning_trainer.batching import Build, MicroBatch
from finetuning_trainer.checkpoint import SAVED_COPIES
from finetuning_trainer.cross_entropy import block_tokens
from finetuning_trainer.fusing import Fused, fused_parts
from finetuning_trainer.guard import training_memory_errors
from finetuning_trainer.loss import Forward
from finetuning_trainer.strategy import SingleProcess
from finetuning_workload.data import TokenizedSplit
from finetuning_workload.files import format_bytes
from finetuning_workload.models import vocabulary_size

FP32_BYTES = torch.float32.itemsize
_ROW_TOKENS = 16
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAPPED_BYTES, _KEPT_BYTES = 256 * 1024, 32 * 1024 * 1024


def give_back_large_tensors() -> None:
    """Have the C library give the memory of large tensors back to the system as soon as they are gone.

    It does so at first, and stops it for all sizes up to 32 MiB that it has seen once. Steps of ragged rows make
    tensors of other sizes each, and what is between those that are kept stays with the process: up to a third more than
    they take. Each tensor is then made of pages that the system has to clear, which costs a quarter of the speed: it is
    for those who have no more memory. Where there is no glibc, nothing happens.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if option is not None:
        option(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        # Setting the one makes the other as small as it was at first: small tensors would come and go with every use.
        option(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def taken_bytes(device: torch.device) -> int:
    """Return what this process takes now: resident memory, or what its tensors take of an accelerator."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _of_status("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Return the most that this process has taken so far, of the same memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _of_status("VmHWM")


def _of_status(name: str) -> int:
    """Return a figure of this process; without /proc, the peak. getrusage counts what a parent took before it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class _TensorBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active, as long as each of them is there.

    It sees what autograd keeps, whatever part of a model keeps it. What was there before counts nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401  (of torch)
        named = kwargs or {}
        for storage in _storages((args, named)):
            self._note(storage, 0)
        result = operation(*args, **named)
        for storage in _storages(result):
            self._note(storage, storage.nbytes())
        return result

    def _note(self, storage: torch.UntypedStorage, size: int) -> None:
        place = storage._cdata  # noqa: SLF001  (its identity: many Python objects may stand for it)
        if place not in self._known:
            self._known.add(place)
            self.now += size
            self.peak = max(self.peak, self.now)
            finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


@dataclass(frozen=True, slots=True)
class Linear:
    """Bytes that follow from the tokens of a pass, from those that carry loss, and from its rows' squared lengths.

    Attention has something of each pair of tokens where it drops some of it out, or is not one operation.
    """

    fixed: float
    per_token: float
    per_label: float
    per_pair: float = 0.0

    def at(self, tokens: int, labels: int, pairs: int = 0) -> int:
        """Return the bytes of a pass."""
        return int(self.fixed + self.per_token * tokens + self.per_label * labels + self.per_pair * pairs)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a forward and backward pass takes beside weights, gradients and moments.

    ``kept``: what is there between the two, for the backward pass. ``forward`` and ``backward``: what each of them has
    at its peak beside that. ``evaluated``: the peak of a forward pass of which nothing is kept. ``block``: most labels
    whose logits are there at once.
    """

    kept: Linear
    forward: Linear
    backward: Linear
    evaluated: Linear
    block: int

    def loss(self, labels: int) -> int:
        """Return what the logits take of the forward pass's peak."""
        return int(self.forward.per_label * min(labels, self.block))

    def passing(self, tokens: int, labels: int) -> int:
        """Return what comes on top of ``kept``: the greater of the two passes."""
        backward = self.backward.at(tokens, labels)
        return max(self.forward.at(tokens, 0) + self.loss(labels), backward)

    def evaluation(self, tokens: int, labels: int) -> int:
        """Return the peak of an evaluation."""
        return self.evaluated.at(tokens, min(labels, self.block))


@dataclass(frozen=True, slots=True)
class Measured:
    """What the plan is made of: the footprint, and what was taken when model and libraries were loaded and probed.

    ``begun_with``: the micro-batches that an earlier attempt came to, in tokens; None for the first.
    """

    footprint: Footprint
    taken: int
    peak: int
    begun_with: int | None = None


def measure(trainee: Trainee, forward: Forward, strategy: SingleProcess, *, build: Build, fused: Fused) -> Measured:
    """Count what passes take, and look at what is taken already, which is the last thing before the plan."""
    footprint = count_footprint(trainee, forward, strategy, build=build, fused=fused)
    gc.collect()
    return Measured(footprint, taken_bytes(strategy.device), peak_bytes(strategy.device))


def count_footprint(
    trainee: Trainee, forward: Forward, strategy: SingleProcess, *, build: Build, fused: Fused
) -> Footprint:
    """Count on four small micro-batches, from which all others follow.

    Bytes are those of the tensors, which do not depend on the machine. Leaves the model and its weights as they were.
    """
    model, weights = trainee.wrapped, list(trainee.trainable().values())
    forward, training = replace(forward, fused_loss=fused.loss), model.training
    counter = _Counter(forward, strategy, build, vocabulary_size(forward.model.config), fused.loss)
    # Dropout keeps its draws.
    model.train()
    try:
        with strategy.prepared(trainee), fused_parts(trainee, fused):
            return counter.footprint()
    finally:
        model.train(training)
        for weight in weights:
            weight.grad = None


@dataclass(frozen=True, slots=True)
class _Counter:
    forward: Forward
    strategy: SingleProcess
    build: Build
    vocabulary: int
    fused_loss: bool

    def footprint(self) -> Footprint:
        batches = [
            self._batch(rows=1, labels=1),
            self._batch(rows=2, labels=1),
            self._batch(rows=2, labels=_ROW_TOKENS - 1),
        ]
        longer = self._batch(rows=1, labels=2, length=2 * _ROW_TOKENS)
        block = block_tokens(self.vocabulary) if self.fused_loss else sys.maxsize
        # Gradients are there before the passes that are counted: they are counted by themselves.
        self._passes(batches[0])
        kept, passing, backward = zip(*(self._passes(batch) for batch in batches), strict=True)
        evaluated = [self._evaluation(batch) for batch in batches]
        tokens = [batch.ids.numel() for batch in batches]
        labels = [len(batch.labels) for batch in batches]
        # What passes have of pairs beside what is kept is of one row and one layer at a time.
        fitted = _with_pairs(_fitted(tokens, labels, kept), kept[1], self._passes(longer)[0])
        at_once = [min(number, block) for number in labels]
        return Footprint(
            kept=fitted,
            forward=_fitted(tokens, at_once, passing),
            backward=_fitted(tokens, labels, backward),
            evaluated=_fitted(tokens, at_once, evaluated),
            block=block,
        )

    def _batch(self, *, rows: int, labels: int, length: int = _ROW_TOKENS) -> MicroBatch:
        ids = np.random.default_rng(0).integers(0, self.vocabulary, rows * length).astype(np.int32)
        supervised = np.zeros((rows, length), dtype=np.uint8)
        supervised[:, -labels:] = 1
        split = TokenizedSplit(
            ids=ids,
            supervised=supervised.reshape(-1),
            offsets=np.arange(rows + 1, dtype=np.int64) * length,
            row_ids=np.asarray([str(row) for row in range(rows)]),
        )
        return self.build(split, range(rows)).to(self.strategy.loading_device)

    def _passes(self, batch: MicroBatch) -> tuple[int, int, int]:
        """Return what is kept between the passes, and what each has at its peak beside it."""
        with self._counted(batch) as counted:
            summed = self._loss(batch)
            kept, forward = counted.now, counted.peak
            counted.peak = kept
            summed.backward()
        return kept, forward - kept, counted.peak - kept

    @torch.no_grad()
    def _evaluation(self, batch: MicroBatch) -> int:
        with self._counted(batch) as counted:
            self._loss(batch)
        return counted.peak

    def _loss(self, batch: MicroBatch) -> torch.Tensor:
        with self.strategy.computing():
            return self.forward.summed_nll(batch)

    @contextmanager
    def _counted(self, batch: MicroBatch) -> Iterator[_TensorBytes]:
        with training_memory_errors(f"a pass over {batch.tokens} tokens"), _TensorBytes() as counted:
            yield counted


def _fitted(tokens: list[int], labels: list[int], values: tuple[int, ...] | list[int]) -> Linear:
    """Return what goes through three points."""
    points = np.stack([np.ones(3), np.asarray(tokens), np.asarray(labels)], axis=1)
    fixed, per_token, per_label = (float(value) for value in np.linalg.solve(points, np.asarray(values, dtype=float)))
    return Linear(max(fixed, 0.0), max(per_token, 0.0), max(per_label, 0.0))


def _with_pairs(linear: Linear, two: int, one: int) -> Linear:
    """Tell what pairs of tokens take from what belongs to the tokens of all rows, which had one length.

    ``two`` is for two rows of that length and ``one`` for one row as long as both, with as many labels.
    """
    per_pair = max((one - two) / (2 * _ROW_TOKENS**2), 0.0)
    return replace(linear, per_token=max(linear.per_token - per_pair * _ROW_TOKENS, 0.0), per_pair=per_pair)


@dataclass(frozen=True, slots=True)
class Pass:
    """The largest pass of a kind: its tokens, padding included, how many carry loss, and its rows' squared lengths."""

    tokens: int
    labels: int
    pairs: int = 0

    def at_most(self, tokens: int) -> "Pass":
        """Return the pass where it is divided into passes of so many tokens."""
        share = min(tokens / max(self.tokens, 1), 1.0)
        return Pass(min(self.tokens, tokens), min(self.labels, tokens), int(self.pairs * share))


NOTHING = Pass(0, 0)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a training takes, in bytes, by what takes it.

    ``base`` is the process with its libraries, without ``weights``. ``copy`` is a checkpoint's, from which safetensors
    writes without another; ``beside`` tells that steps are computed meanwhile. Without ``accumulated`` a step is one
    pass, which begins without gradients.
    """

    base: int
    weights: int
    gradients: int
    moments: int
    footprint: Footprint
    copy: int = 0
    beside: bool = False
    accumulated: bool = False

    def peak(self, training: Pass, evaluation: Pass) -> int:
        """Return what is taken at the moment when it is most."""
        kept = self.footprint.kept.at(training.tokens, training.labels, training.pairs)
        passing = self.footprint.passing(training.tokens, training.labels)
        # Gradients come while what they are made of goes, unless those of an earlier micro-batch are there.
        both = kept + self.gradients if self.accumulated else max(kept, self.gradients)
        evaluating = self.gradients + self.footprint.evaluation(evaluation.tokens, evaluation.labels)
        computing = max(both + passing, evaluating) + (self.copy if self.beside else 0)
        return self.base + self.weights + self.moments + max(computing, self.gradients + self.copy)

    def with_copy(self, trained: int, *, beside: bool) -> "Memory":
        """Return this with checkpoints that are copied, ``trained`` being the bytes of what is trained."""
        return replace(self, copy=SAVED_COPIES * trained, beside=beside)

    def told(self, training: Pass) -> str:
        """Return in words what takes how much, the most first."""
        passing = self.footprint.passing(training.tokens, training.labels)
        kept = self.footprint.kept.at(training.tokens, training.labels, training.pairs)
        parts = {
            "process and libraries": self.base,
            "weights": self.weights,
            "gradients": self.gradients,
            "moments": self.moments,
            f"activations of {training.tokens} tokens": kept,
            "logits and the layer under way": passing,
            "the copy of a checkpoint": self.copy,
        }
        most = sorted(parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in most if size)

    def affordable(self, limit: int, *, longest: int, most: int) -> int:
        """Return the most tokens of a pass that fit into a limit, be they all of ``longest`` rows and carry loss."""

        def peak(tokens: int) -> int:
            whole = Pass(tokens, tokens, tokens * longest)
            return self.peak(whole, whole)

        return bisect_right(range(1, most + 1), limit, key=peak)
