"""Finished parts of evaluations: a killed run goes on where it was, and what others computed is not computed again."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

import finetuning_evaluator
import finetuning_workload
from finetuning_api.runconfig import ContractModel, JobIdentity
from finetuning_evaluator.journal import OutputJournal
from finetuning_workload.files import write_atomically

PARTS_FOLDER = ".partial"
CACHE_BYTES = 1 << 30
"""What a lasting folder may hold; what was used longest ago is removed first."""
_LIBRARIES = ("torch", "transformers", "tokenizers", "peft")

Part = TypeVar("Part", bound=ContractModel)


class Origin(ContractModel):
    """Which evaluation computed a part, and when."""

    job: JobIdentity
    computed_at: datetime


class Entry(ContractModel):
    """A part as it lies in its file. The whole key and the checksum tell a torn, changed or misplaced one."""

    key: str
    origin: Origin
    sha256: str
    """Of the part."""
    part: str
    """JSON."""


@dataclass(frozen=True, slots=True)
class Found(Generic[Part]):
    """A part that was computed earlier."""

    part: Part
    origin: Origin


class Parts:
    """Folders of finished parts. A part is found again only under the key of everything that shaped it.

    ``folder`` is this evaluation's own and goes when the results are written. ``lasting``, where there is one, is
    shared with other evaluations and stays: parts lie there, but for those that hold for one evaluation only.
    """

    def __init__(self, folder: Path, *, job: JobIdentity, lasting: Path | None = None) -> None:
        self._folder = folder
        self._lasting = lasting
        self._job = job

    @property
    def is_shared(self) -> bool:
        """Whether parts come from and go to other evaluations."""
        return self._lasting is not None

    def find(self, name: str, kind: type[Part], *, key: str, own: bool = False) -> Found[Part] | None:
        """Return a finished part, None where there is none or it is damaged; ``own`` ones are of this evaluation."""
        path = self._path(name, key, own=own)
        try:
            entry = Entry.model_validate_json(path.read_bytes())
            if entry.key != key or entry.sha256 != _sha256(entry.part):
                return None
            found = Found(kind.model_validate_json(entry.part), entry.origin)
            # Changes its time: what is used stays.
            path.touch()
        except (OSError, ValidationError):
            return None
        return found

    def keep(self, name: str, part: ContractModel, *, key: str, own: bool = False) -> None:
        """Keep a finished part."""
        content = part.model_dump_json(by_alias=True, exclude_none=True)
        origin = Origin(job=self._job, computed_at=datetime.now(UTC))
        entry = Entry(key=key, origin=origin, sha256=_sha256(content), part=content)
        write_atomically(self._path(name, key, own=own), entry.to_json())

    def journal(self, key: str) -> OutputJournal:
        """Return the completions of a generation under way; they are this evaluation's own and go with its parts."""
        return OutputJournal(self._folder / f"outputs-{key[:32]}.jsonl", key=key)

    def clear(self) -> None:
        """Remove what is this evaluation's own, because its results are written, and what the rest has too much of."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lasting is not None:
            remove_least_used(self._lasting, most_bytes=CACHE_BYTES)

    def _path(self, name: str, key: str, *, own: bool) -> Path:
        folder = self._folder if own or self._lasting is None else self._lasting
        return folder / f"{name}-{key[:32]}.json"


def digest_of(value: object) -> str:
    """Return the sha256 in hex of a JSON-ready value."""
    return _sha256(json.dumps(value, sort_keys=True, ensure_ascii=False))


@cache
def code_digest() -> str:
    """Return the identity of the code that computes parts: our own sources and the versions of the libraries below.

    Sources rather than a number that somebody has to raise: a part of other code is never taken for one of this code.
    """
    sources = [_source(package.__path__) for package in (finetuning_evaluator, finetuning_workload)]
    return digest_of([sources, {name: version(name) for name in _LIBRARIES}])


def remove_least_used(folder: Path, *, most_bytes: int) -> None:
    """Remove the files that were used longest ago until those that are left are within ``most_bytes``."""
    files = []
    for path in folder.glob("*.json"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # Somebody else was quicker.
        files.append((status.st_mtime, path.name, status.st_size))
    excess = sum(size for _, _, size in files) - most_bytes
    for _, name, size in sorted(files):
        if excess <= 0:
            return
        (folder / name).unlink(missing_ok=True)
        excess -= size


def _source(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Return the sha256 of every source file of a package, by its place in it."""
    root = Path(next(iter(paths)))
    files = sorted(root.rglob("*.py"))
    return [(file.relative_to(root).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
