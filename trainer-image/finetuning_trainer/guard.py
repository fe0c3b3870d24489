"""What stops a training before it does harm: losses that are no numbers, and memory that runs out."""

import math
from functools import partial

from finetuning_api.finetuningjob import TrainingSpec
from finetuning_api.reasons import Reason
from finetuning_workload.errors import UserError
from finetuning_workload.memory import explained_memory_errors


class Stopped(Exception):
    """Asked to stop in the middle of a step; the step is given up and the position before it is saved."""


training_memory_errors = partial(
    explained_memory_errors,
    hint="Lower spec.training.batchSize, spec.training.microBatchSize or spec.training.maxLength, or give the job more"
    " memory.",
)
"""Tells what to lower when an allocation of the training fails."""


def require_finite(value: float, *, what: str, step: int, training: TrainingSpec, saved_step: int | None) -> None:
    """Raise UserError(LOSS_DIVERGED) for NaN and infinity, saying what is kept and what to try."""
    if math.isfinite(value):
        return
    kept = "no checkpoint was written yet" if saved_step is None else f"the checkpoint of step {saved_step} is kept"
    message = f"{what} is {value} at step {step}; {kept}"
    hint = (
        f"Try a lower spec.training.learningRate (it is {training.learning_rate:g}), spec.training.precision fp32,"
        " a longer spec.training.warmupRatio, and look for broken rows in the data."
    )
    raise UserError(Reason.LOSS_DIVERGED, message, hint)
