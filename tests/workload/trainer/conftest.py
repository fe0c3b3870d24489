"""What every test of the trainer starts from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.models import tiny_llama
from tests.support.trained import threads_as_before
from tests.support.training import Workshop, colour_rows, write_rows


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, tiny_llama(tmp_path / "model"), write_rows(tmp_path / "data", colour_rows()))


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    with threads_as_before():
        yield
