"""Bytes of files on this machine, as every source that has them here reads them."""

from collections.abc import Iterator
from pathlib import Path

from finetuning_relocator.sources.base import BLOCK_BYTES, Block


def read_local(path: Path, *, offset: int) -> Iterator[Block]:
    """Yield the bytes of a file from a position on."""
    with path.open("rb") as file:
        file.seek(offset)
        position = offset
        while data := file.read(BLOCK_BYTES):
            yield Block(position, data)
            position += len(data)
