"""What tests of the evaluator start from that need no more."""

from pathlib import Path

import pytest
from tests.support.evaluation import write_adapter, write_rows
from tests.support.models import tiny_llama


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, an adapter for it, and rows."""
    folder = tmp_path_factory.mktemp("world")
    tiny_llama(folder / "base")
    write_adapter(folder / "base", folder / "adapter")
    write_rows(folder / "rows.jsonl")
    return folder
