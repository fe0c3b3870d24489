"""Tokenised data on disk: flat arrays that are mapped, not read, in an artifact named after what shaped it."""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from finetuning_workload.artifact import require_intact, write_manifest
from finetuning_workload.data.encoding import TokenizedSample
from finetuning_workload.errors import UserError
from finetuning_workload.files import fsync_path

_LOG = logging.getLogger(__name__)
_IDS = "ids.npy"
_SUPERVISED = "supervised.npy"
_OFFSETS = "offsets.npy"
_ROW_IDS = "row_ids.npy"
FORMAT = "tokenized"


@dataclass(frozen=True, eq=False)
class TokenizedSplit:
    """The samples of one side of the split: sample ``i`` lies at ``offsets[i]:offsets[i + 1]`` of the flat arrays."""

    ids: NDArray[np.int32]
    """Token ids, [tokens]."""
    supervised: NDArray[np.uint8]
    """1 where a token is a target of the loss, [tokens]."""
    offsets: NDArray[np.int64]
    """[samples + 1]."""
    row_ids: NDArray[np.str_]
    """[samples]; a piece of a long plain text has its row's id, # and its number."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the arrays of a folder that a SplitWriter wrote."""
        return cls(*(_map(folder / name) for name in (_IDS, _SUPERVISED, _OFFSETS, _ROW_IDS)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, [samples]."""
        return np.diff(self.offsets)

    def sample(self, index: int) -> TokenizedSample:
        """Return one sample."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return TokenizedSample(
            row_id=str(self.row_ids[index]),
            ids=self.ids[start:end].tolist(),
            supervised=self.supervised[start:end].astype(bool).tolist(),
        )


def _map(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


class SplitWriter:
    """Writes the arrays of one side as samples arrive; memory holds only offsets and row ids."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._raw: tuple[IO[bytes], IO[bytes]] = (
            (folder / f"{_IDS}.raw").open("w+b"),
            (folder / f"{_SUPERVISED}.raw").open("w+b"),
        )
        self._offsets = [0]
        self._row_ids: list[str] = []

    def append(self, sample: TokenizedSample) -> None:
        """Add one sample."""
        ids, supervised = self._raw
        np.asarray(sample.ids, dtype=np.int32).tofile(ids)
        np.asarray(sample.supervised, dtype=np.uint8).tofile(supervised)
        self._offsets.append(self._offsets[-1] + len(sample))
        self._row_ids.append(sample.row_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Turn the raw streams into arrays; an error leaves them as they are, in a folder that is never used."""
        if kind is None:
            for raw, name, dtype in zip(self._raw, (_IDS, _SUPERVISED), (np.int32, np.uint8), strict=True):
                raw.flush()
                empty = not self._row_ids  # Nothing cannot be mapped.
                _save(self._folder / name, np.empty(0, dtype) if empty else np.memmap(raw, dtype=dtype, mode="r"))
            _save(self._folder / _OFFSETS, np.asarray(self._offsets, dtype=np.int64))
            _save(self._folder / _ROW_IDS, np.asarray(self._row_ids, dtype=np.str_))
        for raw in self._raw:
            raw.close()
            Path(raw.name).unlink()


def _save(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def cached_folder(cache: Path, *, digest: str, source: str, build: Callable[[Path], None]) -> Path:
    """Return the artifact folder for a digest, built by ``build`` unless it is there and intact.

    A damaged folder is built again. Of several processes one builds and the others wait for it and use the result.
    """
    folder = cache / digest.removeprefix("sha256:")[:20]
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f".{folder.name}.lock"):
        if _is_intact(folder):
            return folder
        # Only the holder of the lock gets here: what is left of a process that was killed is safe to remove.
        building = cache / f".building-{folder.name}"
        for leftover in (building, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        building.mkdir()
        try:
            build(building)
            write_manifest(
                building,
                source=source,
                resolved_revision=digest,
                content_format=FORMAT,
                created_at=datetime.now(UTC),
                tool="finetuning_workload.data",
            )
            building.rename(folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        fsync_path(cache)
    return folder


def _is_intact(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        require_intact(folder)
    except UserError as error:
        _LOG.warning("tokenised data is made again: %s", error.message)
        return False
    return True


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("waiting for another process that tokenises the same data")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def total_tokens(splits: Sequence[TokenizedSplit]) -> tuple[int, int]:
    """Return the tokens and the supervised tokens of splits."""
    return (
        sum(len(split.ids) for split in splits),
        sum(int(np.count_nonzero(split.supervised)) for split in splits),
    )
