"""Memory that runs out, told in words whichever allocator reports it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetuning_api.reasons import Reason
from finetuning_workload.errors import UserError

_ALLOCATION_FAILURES = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
"""How torch's CPU allocator and CUDA word it in a plain RuntimeError."""


@contextmanager
def explained_memory_errors(what: str, *, hint: str) -> Iterator[None]:
    """Turn an allocation that failed into UserError(OUT_OF_MEMORY); ``hint`` names what to lower."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError(Reason.OUT_OF_MEMORY, f"out of memory in {what}", hint) from error
    except RuntimeError as error:
        if any(words in str(error).lower() for words in _ALLOCATION_FAILURES):
            raise UserError(Reason.OUT_OF_MEMORY, f"out of memory in {what}", hint) from error
        raise
