"""Finished completions, kept one line each as they come, so that a killed run goes on where it was."""

import json
import os
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import ValidationError

from finetuning_api.runconfig import ContractModel


class Ending(StrEnum):
    """Why a completion ended, or why there is none."""

    STOP = "stop"
    LENGTH = "length"
    PROMPT_TOO_LONG = "prompt-too-long"
    EMPTY_PROMPT = "empty-prompt"

    @property
    def answered(self) -> bool:
        """Whether there is a completion."""
        return self in {Ending.STOP, Ending.LENGTH}


class Completed(ContractModel):
    """What one candidate made of one row."""

    row: int
    """Number of the row in the data, counted from 1."""
    candidate: str
    completion: str | None = None
    """None where the prompt could not be gone on from."""
    finish_reason: Ending
    prompt_tokens: int
    completion_tokens: int = 0
    """Tokens generated, a closing end-of-text token included."""


class Journal:
    """A file that only grows. What was appended is there after the program was killed, and at most once.

    The last line may be torn by the end of the program: it is dropped, and its completion is made again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._places: dict[tuple[str, int], int] = {}
        self.tokens = 0
        """Tokens generated for everything that is kept."""
        self._file: IO[bytes] = path.open("a+b")
        self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Make durable what is kept, whatever happened."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def __len__(self) -> int:
        return len(self._places)

    def holds(self, candidate: str, row: int) -> bool:
        """Return whether a completion is kept."""
        return (candidate, row) in self._places

    def append(self, completed: Completed) -> None:
        """Keep a completion."""
        self._file.seek(0, os.SEEK_END)
        self._take(completed, self._file.tell())
        self._file.write(f"{completed.model_dump_json(by_alias=True)}\n".encode())
        self._file.flush()

    def find(self, candidate: str, row: int) -> Completed:
        """Return a completion that is kept; raises KeyError for any other."""
        self._file.seek(self._places[candidate, row])
        return Completed.model_validate_json(self._file.readline())

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for line in iter(self._file.readline, b""):
            if not line.endswith(b"\n"):
                self._file.truncate(end)
                return
            # A damaged line is as good as none: its completion is made again, and kept further down.
            with suppress(ValidationError, json.JSONDecodeError):
                self._take(Completed.model_validate_json(line), end)
            end += len(line)

    def _take(self, completed: Completed, place: int) -> None:
        self._places[completed.candidate, completed.row] = place
        self.tokens += completed.completion_tokens
