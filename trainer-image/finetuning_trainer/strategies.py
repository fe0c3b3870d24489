"""Which strategy a training has, and which are not there."""

from importlib.util import find_spec

import torch

from finetuning_api.deepspeed import DeepSpeedSpec
from finetuning_api.finetuningjob import ParallelismSpec, ParallelStrategy
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import TrainingInputs
from finetuning_trainer.group import Group
from finetuning_trainer.sharded import Sharded
from finetuning_trainer.strategy import Replicated, SingleProcess
from finetuning_trainer.zero import Zero
from finetuning_workload.errors import UserError


def require_known(config: TrainingInputs) -> None:
    """Raise UserError(UNSUPPORTED) for what this release, or the environment that runs it, does not have."""
    parallelism = config.parallelism
    several = parallelism.workers * parallelism.processes_per_worker > 1
    if config.script is not None and several:
        message = (
            f"spec.script runs as one program, and spec.parallelism asks for {parallelism.workers} workers with"
            f" {parallelism.processes_per_worker} processes each"
        )
        raise UserError(Reason.UNSUPPORTED, message, "Set workers and processesPerWorker to 1.")
    if several and parallelism.strategy is ParallelStrategy.DEEPSPEED and find_spec("deepspeed") is None:
        message = "spec.parallelism.strategy is deepspeed, and deepspeed is not installed beside the trainer"
        hint = (
            "pip install 'finetuning-operator[deepspeed]' on this machine, or an image with it (docs/images.md); or use"
            " fsdp, which divides what ZeRO-3 does."
        )
        raise UserError(Reason.UNSUPPORTED, message, hint)


def choose_strategy(
    parallelism: ParallelismSpec, group: Group, *, device: torch.device, dtype: torch.dtype
) -> SingleProcess:
    """Return how a group trains. With one process there is nothing to share, whatever the strategy."""
    if group.world.size == 1:
        return SingleProcess(device, dtype, group)
    if parallelism.strategy is ParallelStrategy.FSDP:
        return Sharded(device, dtype, group)
    if parallelism.strategy is ParallelStrategy.DEEPSPEED:
        return Zero(device, dtype, group, spec=parallelism.deepspeed or DeepSpeedSpec())
    return Replicated(device, dtype, group)
