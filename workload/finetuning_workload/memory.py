"""Memory that runs out, told in words whichever allocator reports it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetuning_workload.program import out_of_memory

_ALLOCATION_FAILURES = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
"""How torch's CPU allocator and CUDA word it in a plain RuntimeError."""


@contextmanager
def explained_memory_errors(what: str, *, hint: str) -> Iterator[None]:
    """Turn an allocation that failed into UserError(OUT_OF_MEMORY); ``hint`` names what to lower."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise out_of_memory(what, hint=hint) from error
    except RuntimeError as error:
        if any(words in str(error).lower() for words in _ALLOCATION_FAILURES):
            raise out_of_memory(what, hint=hint) from error
        raise
