"""What every relocation test starts from."""

from pathlib import Path

import pytest
from tests.support.relocator import Relocator


@pytest.fixture
def relocator(tmp_path: Path) -> Relocator:
    return Relocator(tmp_path / "home")


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "artifact"
