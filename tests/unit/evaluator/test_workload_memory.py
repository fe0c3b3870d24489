"""Memory that ran out is told in words, whichever allocator reports it; other errors stay what they are."""

import pytest
import torch

from finetuning_api.reasons import Reason
from finetuning_workload.errors import UserError
from finetuning_workload.memory import explained_memory_errors


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_failed_allocation_says_what_to_lower(error: Exception) -> None:
    with (
        pytest.raises(UserError, match="out of memory in scoring") as caught,
        explained_memory_errors("scoring", hint="Lower it."),
    ):
        raise error

    assert (caught.value.reason, caught.value.hint) == (Reason.OUT_OF_MEMORY, "Lower it.")


def test_another_error_passes_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained_memory_errors("scoring", hint="Lower it."):
        raise RuntimeError("shapes do not match")
