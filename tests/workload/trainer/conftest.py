"""What every test of the trainer starts from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.support.models import tiny_llama
from tests.support.training import Workshop, colour_rows, write_rows


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, tiny_llama(tmp_path / "model"), write_rows(tmp_path / "data", colour_rows()))


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """A training chooses its threads; here it shares a process with other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
