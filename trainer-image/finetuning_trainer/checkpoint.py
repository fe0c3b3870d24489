"""Checkpoints: folders that are whole or not there, verified before they are used, without pickle."""

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetuning_api.runconfig import HISTORY_NAME, ContractModel
from finetuning_trainer.folders import whole_folder
from finetuning_workload.artifact import read_manifest, require_intact
from finetuning_workload.errors import UserError

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"^step-(\d{8,})$")
_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


Whole = Callable[[torch.Tensor], torch.Tensor]
"""Makes the whole tensor of what this process keeps of it."""
Own = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Makes of a whole tensor what this process keeps of it, in the manner of a second one."""


class Position(ContractModel):
    """Where a training stands: all that is not a tensor. Data order, learning rate and chance follow from ``step``."""

    dtype: str
    """Number format that was chosen at the start: a training is not finished in another one."""
    step: int = 0
    """Optimizer steps that are done."""
    epoch_nll: float = 0.0
    """Summed negative log-likelihood of the running epoch, in nats."""
    epoch_tokens: int = 0
    """Supervised tokens of the running epoch."""
    tokens: int = 0
    """Tokens computed so far."""
    last_epoch_loss: float | None = None
    """Mean training loss of the last whole epoch."""
    evaluation_loss: float | None = None
    best_loss: float | None = None
    """Lowest held-out loss so far, where early stopping asks for it."""
    best_step: int | None = None
    """Step of ``best_loss``; its checkpoint is kept."""
    stale_evaluations: int = 0
    """Evaluations since that found no better one."""
    micro_batch_tokens: int | None = None
    """Most tokens of a forward pass: what the plan said, or less where memory ran out since."""
    resumptions: int = 0
    """How often this training went on from a checkpoint and came to save another."""
    given_up: bool = False
    """Whether this training, one of several trials, is given up: others are better."""
    damaged_checkpoints: tuple[int, ...] = ()
    """Steps whose checkpoints were found damaged so far, and passed over."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and found intact."""

    position: Position
    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    history: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The tensors of a checkpoint, whole, by the names of the weights."""

    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]

    def copied(self) -> "Snapshot":
        """Return the tensors as they are now, in memory of their own: a training changes its own in place."""
        return Snapshot(weights=_copies(self.weights), moments=_copies(self.moments))


def _copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    contiguous = torch.contiguous_format
    return {name: tensor.to("cpu", copy=True, memory_format=contiguous) for name, tensor in tensors.items()}


def snapshot(weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, *, whole: Whole) -> Snapshot:
    """Return the tensors as one process has them, however many share them. Every rank must call it."""
    return Snapshot(
        weights={name: whole(weight) for name, weight in weights.items()},
        moments={name: whole(moment) for name, moment in _moments(weights, optimizer).items()},
    )


def save_checkpoint(
    folder: Path,
    *,
    identity: str,
    position: Position,
    state: Snapshot,
    history: bytes,
    keep: int,
) -> Path:
    """Write a checkpoint aside, complete it with its manifest, move it to its name, and remove older ones."""
    final = folder / _name(position.step)
    with whole_folder(final, source="training", revision=identity, content_format="checkpoint") as partial:
        save_file({name: weight.contiguous() for name, weight in state.weights.items()}, partial / _WEIGHTS)
        save_file({name: moment.contiguous() for name, moment in state.moments.items()}, partial / _OPTIMIZER)
        (partial / _STATE).write_text(position.to_json())
        (partial / HISTORY_NAME).write_bytes(history)
    _prune(folder, newest=position.step, keep=keep, best=position.best_step)
    return final


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a training that has its result; its history stays."""
    for _, path in _checkpoints(folder):
        shutil.rmtree(path)


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest intact checkpoint, if any, and the steps of newer ones of this training that are damaged."""

    checkpoint: Checkpoint | None
    damaged: tuple[int, ...]


def latest_checkpoint(folder: Path, *, identity: str) -> Newest:
    """Return the newest intact checkpoint of this very training; damaged and foreign ones are passed over, and told."""
    damaged: list[int] = []
    for step, path in sorted(_checkpoints(folder), reverse=True):
        found = _read(step, path, identity)
        if found is not None:
            return Newest(found, tuple(damaged))
        if not _is_foreign(path, identity):
            damaged.append(step)
    return Newest(None, tuple(damaged))


def _is_foreign(path: Path, identity: str) -> bool:
    try:
        manifest = read_manifest(path)
    except UserError:
        return False  # Whose it was cannot be told; it is damaged in any case.
    return manifest is not None and manifest.resolved_revision != identity


def checkpoint_of(folder: Path, step: int, *, identity: str) -> Checkpoint | None:
    """Return the checkpoint of a step; None, and told, where it is not there, damaged or foreign."""
    return _read(step, folder / _name(step), identity)


def _read(step: int, path: Path, identity: str) -> Checkpoint | None:
    try:
        manifest = require_intact(path)
    except UserError as error:
        _LOG.warning("checkpoint of step %d is not used: %s", step, error.message)
        return None
    if manifest.resolved_revision != identity:
        _LOG.warning("checkpoint of step %d belongs to another configuration, model or data: not used", step)
        return None
    try:
        return Checkpoint(
            position=Position.model_validate_json((path / _STATE).read_bytes()),
            weights=load_file(path / _WEIGHTS),
            moments=load_file(path / _OPTIMIZER),
            history=(path / HISTORY_NAME).read_bytes(),
        )
    except (ValueError, SafetensorError) as error:
        _LOG.warning("checkpoint of step %d cannot be read: %s", step, error)
        return None


def restore(
    checkpoint: Checkpoint, *, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, own: Own
) -> None:
    """Put a checkpoint's weights and moments in place."""
    restore_weights(checkpoint, weights, own=own)

    def moment(name: str, kind: str) -> torch.Tensor:
        whole = checkpoint.moments[f"{name}/{kind}"]
        return whole if kind == STEP else own(whole, weights[name])

    state = {
        index: {kind: moment(name, kind) for kind in _KINDS}
        for index, name in enumerate(_names_in_order(weights, optimizer))
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_weights(checkpoint: Checkpoint, weights: dict[str, torch.nn.Parameter], *, own: Own) -> None:
    """Put a checkpoint's weights in place."""
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(own(checkpoint.weights[name], weight))


STEP = "step"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of each weight, beside the number of its steps; each is as large as the weight."""
_KINDS = (STEP, *MOMENTS)
SAVED_COPIES = 3
"""Tensors of a checkpoint that are as large as the trained weights: these and AdamW's two moments, all in fp32."""


def _moments(weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {f"{name}/{kind}": optimizer.state[weights[name]][kind] for name in weights for kind in _KINDS}


def _names_in_order(weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the weights in the order that the optimizer counts them."""
    names = {id(weight): name for name, weight in weights.items()}
    return [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        match = _NAME.match(path.name)
        if match and path.is_dir():
            yield int(match.group(1)), path


def _prune(folder: Path, *, newest: int, keep: int, best: int | None) -> None:
    """Keep the best checkpoint and the newest up to the step just written; higher ones were refused at the start."""
    mine = sorted((step for step, _ in _checkpoints(folder) if step <= newest), reverse=True)[:keep]
    for step, path in _checkpoints(folder):
        if step not in {*mine, best}:
            shutil.rmtree(path)
    for leftover in folder.glob(".step-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
