"""Completions of one candidate, kept one line each as they come: a killed generation goes on with the rows it lacks."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import ValidationError

from finetuning_api.runconfig import ContractModel
from finetuning_workload.generation import Completion

_LOG = logging.getLogger(__name__)


class _Line(ContractModel):
    """A line of the file. The checksum tells a line that is torn, was changed, or is of another generation."""

    row: int
    """Number of the row, counted from 0."""
    seconds: float
    """Of work on this generation until then, in all attempts."""
    completion: Completion
    sha256: str


class OutputJournal:
    """A file that only grows, for the time of one generation.

    ``key`` is the identity of everything that shapes the completions. What was appended is there after the program was
    killed; a line that cannot be believed counts as none, and its row is generated again.
    """

    def __init__(self, path: Path, *, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._key = key
        self._file: IO[bytes] = path.open("a+b")
        self._known: dict[int, Completion] = {}
        self._earlier = 0.0
        self._read()
        self._clock = clock
        self._started = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Make durable what is kept, whatever happened."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    @property
    def known(self) -> Mapping[int, Completion]:
        """The completions that are kept, by row."""
        return self._known

    @property
    def seconds(self) -> float:
        """Wall time of this generation so far, in all attempts."""
        return self._earlier + self._clock() - self._started

    def append(self, number: int, completion: Completion) -> None:
        """Keep a completion."""
        line = _Line(row=number, seconds=self.seconds, completion=completion, sha256="")
        line = line.model_copy(update={"sha256": self._sum(line)})
        self._known[number] = completion
        self._file.write(f"{line.model_dump_json(by_alias=True)}\n".encode())
        self._file.flush()

    def _read(self) -> None:
        self._file.seek(0)
        lines = self._file.readlines()
        if lines and not lines[-1].endswith(b"\n"):
            # Torn by the end of the program; what is appended must not continue it.
            self._file.truncate(self._file.tell() - len(lines.pop()))
        believed = [line for line in map(self._believed, lines) if line is not None]
        self._known = {line.row: line.completion for line in believed}
        self._earlier = max((line.seconds for line in believed), default=0.0)
        if len(believed) < len(lines):
            damaged = len(lines) - len(believed)
            _LOG.warning("%d lines of %s are damaged: their rows are generated again", damaged, self._path)

    def _believed(self, text: bytes) -> _Line | None:
        try:
            line = _Line.model_validate_json(text)
        except ValidationError:
            return None
        return line if line.sha256 == self._sum(line) else None

    def _sum(self, line: _Line) -> str:
        content = line.model_copy(update={"sha256": ""}).model_dump_json()
        return hashlib.sha256(f"{self._key}\n{content}".encode()).hexdigest()
