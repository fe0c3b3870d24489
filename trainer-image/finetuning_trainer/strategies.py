"""Which strategy a training has, and which are not there."""

import torch

from finetuning_api.finetuningjob import ParallelismSpec, ParallelStrategy
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import TrainingInputs
from finetuning_trainer.group import Group
from finetuning_trainer.sharded import Sharded
from finetuning_trainer.strategy import Replicated, SingleProcess
from finetuning_workload.errors import UserError


def require_known(config: TrainingInputs) -> None:
    """Raise UserError(UNSUPPORTED) for what this release does not have."""
    parallelism = config.parallelism
    if config.script is not None and parallelism.workers * parallelism.processes_per_worker > 1:
        message = (
            f"spec.script runs as one program, and spec.parallelism asks for {parallelism.workers} workers with"
            f" {parallelism.processes_per_worker} processes each"
        )
        raise UserError(Reason.UNSUPPORTED, message, "Set workers and processesPerWorker to 1.")
    if parallelism.strategy is ParallelStrategy.DEEPSPEED:
        message = "spec.parallelism.strategy is deepspeed, which this release does not have"
        raise UserError(Reason.UNSUPPORTED, message, "Use fsdp, which divides weights and moments as ZeRO-3 does.")


def choose_strategy(
    parallelism: ParallelismSpec, group: Group, *, device: torch.device, dtype: torch.dtype
) -> SingleProcess:
    """Return how a group trains. With one process there is nothing to share, whatever the strategy."""
    if group.world.size == 1:
        return SingleProcess(device, dtype, group)
    if parallelism.strategy is ParallelStrategy.FSDP:
        return Sharded(device, dtype, group)
    return Replicated(device, dtype, group)
