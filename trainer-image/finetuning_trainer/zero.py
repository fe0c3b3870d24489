"""Weights, gradients and moments that DeepSpeed divides among processes (ZeRO, Rajbhandari et al. 2020)."""

import importlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from finetuning_api.deepspeed import ZERO_OPTIMIZATION, DeepSpeedOffload, DeepSpeedSpec
from finetuning_api.finetuningjob import TrainingSpec
from finetuning_api.reasons import Reason
from finetuning_trainer.adapters import Trainee
from finetuning_trainer.checkpoint import MOMENTS, STEP, Checkpoint, Snapshot
from finetuning_trainer.group import explained_losses
from finetuning_trainer.lockstep import InLockstep
from finetuning_trainer.loss import Forward
from finetuning_trainer.optim import make_optimizer
from finetuning_trainer.strategy import Divided
from finetuning_workload.errors import UserError

_GRADIENTS_DIVIDED, _WEIGHTS_DIVIDED = 2, 3
"""The stages of ZeRO from which on these are divided too."""
_MOST_WORDS = 500


@dataclass(frozen=True, slots=True)
class Zero(InLockstep):
    """Data parallel upon DeepSpeed's engine; steps, rates and checkpoints stay those of this loop."""

    spec: DeepSpeedSpec = field(default_factory=DeepSpeedSpec)

    @property
    def name(self) -> str:
        """Return what plan and provenance call it."""
        offloaded = "" if self.spec.offload is DeepSpeedOffload.NONE else f", {self.spec.offload} offloaded"
        return f"deepspeed stage {self.spec.stage}{offloaded}"

    @property
    def divided(self) -> Divided:
        """Return what its stage divides."""
        world, stage = self.group.world, self.spec.stage
        return Divided(
            weights=world.size if stage >= _WEIGHTS_DIVIDED else 1,
            gradients=world.size if stage >= _GRADIENTS_DIVIDED else 1,
            moments=world.size,
        )

    def distribute(self, trainee: Trainee, forward: Forward) -> None:
        """Begin with the same weights everywhere; they are divided once there is an optimizer to divide."""
        self.group.copy_from_first(trainee.trainable().values())
        self.engine.root = self.with_loss(trainee, forward)

    def optimizer(self, weights: Iterable[torch.nn.Parameter], training: TrainingSpec) -> torch.optim.Optimizer:
        """Give model and AdamW to DeepSpeed, which divides them; return AdamW, whose rates stay this loop's."""
        deepspeed = load_deepspeed(self.device)
        optimizer = make_optimizer(weights, training)
        try:
            with explained_losses(self.group.world):
                self.engine.root, *_ = deepspeed.initialize(
                    model=self.engine.root,
                    optimizer=optimizer,
                    config=engine_config(self.spec, training),
                    dist_init_required=False,
                )
        except (AssertionError, ValueError) as error:  # Its ways to refuse a configuration, pydantic's among them.
            message = f"DeepSpeed refuses spec.parallelism.deepspeed.config: {str(error)[:_MOST_WORDS]}"
            raise UserError(Reason.INVALID_SPEC, message, "Mend or remove what it names.") from error
        self._begin_moments(optimizer)
        return optimizer

    def forget_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave it to the engine, which does so after each step and keeps a place for offloaded ones."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a part of the step's loss. DeepSpeed takes the mean of the ranks; wanted is the sum."""
        self._engine.backward(loss * self.group.world.size)

    def update(
        self,
        optimizer: torch.optim.Optimizer,  # noqa: ARG002  (the engine has it)
        weights: Iterable[torch.nn.Parameter],  # noqa: ARG002
        *,
        greatest_norm: float,  # noqa: ARG002
    ) -> float:
        """Let the engine clip and step; return the norm before. Where it is not finite, it does not step."""
        with explained_losses(self.group.world):
            self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Put all of a weight together, on every process."""
        with explained_losses(self.group.world):
            return torch.as_tensor(load_deepspeed(self.device).utils.safe_get_full_fp32_param(tensor)).detach()

    def snapshot(self, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> Snapshot:
        """Return the tensors of a checkpoint, whole. Every rank must call it."""
        get = load_deepspeed(self.device).utils.safe_get_full_optimizer_state
        step = next(iter(optimizer.state.values()))[STEP]
        moments = {}
        for name, weight in weights.items():
            moments[f"{name}/{STEP}"] = step.detach().clone()
            with explained_losses(self.group.world):
                moments |= {f"{name}/{kind}": get(weight, kind).detach() for kind in MOMENTS}
        return Snapshot(weights={name: self.whole(weight) for name, weight in weights.items()}, moments=moments)

    def restore(
        self, checkpoint: Checkpoint, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        """Put a checkpoint's weights and moments in place."""
        self.restore_weights(checkpoint, weights)
        step = checkpoint.moments[f"{next(iter(weights))}/{STEP}"]
        for state in optimizer.state.values():
            state[STEP].copy_(step)
        for name, weight in weights.items():
            for kind in MOMENTS:
                self._put(weight, checkpoint.moments[f"{name}/{kind}"].to(self.device), kind)

    def restore_weights(self, checkpoint: Checkpoint, weights: dict[str, torch.nn.Parameter]) -> None:
        """Put a checkpoint's weights in place: those that compute, and those that AdamW steps on."""
        deepspeed, divided = load_deepspeed(self.device), self.spec.stage == _WEIGHTS_DIVIDED
        for name, weight in weights.items():
            value = checkpoint.weights[name].to(self.device)
            with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=divided), torch.no_grad():
                weight.copy_(value)
            self._put(weight, value)

    def _put(self, weight: Any, value: torch.Tensor, *kind: str) -> None:  # noqa: ANN401  (DeepSpeed adds to weights)
        """Set what this process keeps of a weight that AdamW steps on or, of a kind, of its moments."""
        utils = load_deepspeed(self.device).utils
        if self.spec.stage < _WEIGHTS_DIVIDED:
            put = utils.safe_set_full_optimizer_state if kind else utils.safe_set_full_fp32_param
            put(weight, value, *kind)
            return
        # The last part is padded, which DeepSpeed's own way to set a whole weight does not expect.
        size, world = weight.ds_tensor.numel(), self.group.world
        padded = torch.nn.functional.pad(value.flatten(), (0, size * world.size - value.numel()))
        put = utils.safe_set_local_optimizer_state if kind else utils.safe_set_local_fp32_param
        put(weight, padded.narrow(0, size * world.rank, size), *kind)

    @property
    def _engine(self) -> Any:  # noqa: ANN401  (DeepSpeed has no types)
        return self.engine.root

    def _begin_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Give AdamW the moments that it begins with: DeepSpeed links them, and after a first step not those of all."""
        for part in self._parts():
            made = {kind: torch.zeros_like(part) for kind in MOMENTS}
            optimizer.state[part] = {STEP: torch.zeros((), device=part.device)} | made
        if self.spec.stage < _WEIGHTS_DIVIDED:
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()  # noqa: SLF001  (there is no public way)

    def _parts(self) -> list[torch.Tensor]:
        """Return what AdamW steps on in this process, a flat tensor for each of its groups."""
        optimizer = self._engine.optimizer
        divided = self.spec.stage == _WEIGHTS_DIVIDED
        return list(optimizer.fp32_partitioned_groups_flat if divided else optimizer.single_partition_of_fp32_groups)


def load_deepspeed(device: torch.device) -> Any:  # noqa: ANN401  (DeepSpeed has no types)
    """Return DeepSpeed, set to what needs no compiler: an image has none."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    deepspeed = importlib.import_module("deepspeed")
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # Between CPUs it would compile a way of its own through shared memory; without one it uses gloo.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def engine_config(spec: DeepSpeedSpec, training: TrainingSpec) -> dict[str, Any]:
    """Return DeepSpeed's own configuration: what the user says, and under it what this loop relies on."""
    zero = {"overlap_comm": False} | dict(spec.config.get(ZERO_OPTIMIZATION, {})) | {"stage": spec.stage}
    if spec.offload is not DeepSpeedOffload.NONE:
        zero["offload_optimizer"] = {"device": "cpu"}
    if spec.offload is DeepSpeedOffload.ALL:
        zero["offload_param"] = {"device": "cpu"}
    return spec.config | {
        # A step is a list of rows that this loop divides; to the engine a backward pass is one, however large.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": training.max_grad_norm,
        # torch's AdamW: DeepSpeed's own are compiled where they run.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        ZERO_OPTIMIZATION: zero,
    }
