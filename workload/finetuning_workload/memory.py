"""Memory that runs out, told in words whichever allocator reports it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetuning_workload.program import out_of_memory

_ALLOCATION_FAILURES = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
"""How torch's CPU allocator and CUDA word it in a plain RuntimeError."""


def is_allocation_failure(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, whichever allocator reports it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _ALLOCATION_FAILURES)


@contextmanager
def explained_memory_errors(what: str, *, hint: str) -> Iterator[None]:
    """Turn an allocation that failed into UserError(OUT_OF_MEMORY); ``hint`` names what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_allocation_failure(error):
            raise out_of_memory(what, hint=hint) from error
        raise
