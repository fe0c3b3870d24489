"""What stops a training before it does harm: losses that are no numbers, and memory that runs out."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetuning_api.finetuningjob import TrainingSpec
from finetuning_api.reasons import Reason
from finetuning_workload.errors import UserError
from finetuning_workload.program import out_of_memory

_ALLOCATION_FAILURES = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
"""How torch's CPU allocator and CUDA word it in a plain RuntimeError."""


def require_finite(value: float, *, what: str, step: int, training: TrainingSpec, saved_step: int | None) -> None:
    """Raise UserError(LOSS_DIVERGED) for NaN and infinity, saying what is kept and what to try."""
    if math.isfinite(value):
        return
    kept = "no checkpoint was written yet" if saved_step is None else f"the checkpoint of step {saved_step} is kept"
    message = f"{what} is {value} at step {step}; {kept}"
    hint = (
        f"Try a lower training.learningRate (it is {training.learning_rate:g}), training.precision fp32, a longer"
        " training.warmupRatio, and look for broken rows in the data."
    )
    raise UserError(Reason.LOSS_DIVERGED, message, hint)


@contextmanager
def explained_memory_errors(what: str) -> Iterator[None]:
    """Turn an allocation that failed into UserError(OUT_OF_MEMORY), which names what to lower."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise out_of_memory(what) from error
    except RuntimeError as error:
        if any(words in str(error).lower() for words in _ALLOCATION_FAILURES):
            raise out_of_memory(what) from error
        raise
