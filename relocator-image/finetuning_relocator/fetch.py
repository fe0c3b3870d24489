"""One file, from a source to the disk: resumed, hashed while it is written, tried again, verified."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from finetuning_api.reasons import Reason
from finetuning_relocator.faults import unavailable, wrong_bytes
from finetuning_relocator.meter import Meter
from finetuning_relocator.sources.base import BLOCK_BYTES, Block, ConnectionCut, RemoteFile, Source, SourceChanged
from finetuning_relocator.watch import Watch
from finetuning_workload.errors import EnvironmentFault

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

_TRIES = {Reason.NETWORK_UNREACHABLE: 2, Reason.SOURCE_UNAVAILABLE: 3}
"""How often a question is asked before its fault is believed; other failures are final at once."""
_CUTS_IN_A_ROW = 5
_CUT_FORGOTTEN_BYTES = 16 << 20
"""A connection that carried this much before it was cut counts as a new beginning."""
_BACKOFF_SECONDS = 0.5


def ask(question: Callable[[], T], *, watch: Watch, what: str) -> T:
    """Return the answer of a source to one question, asked again after a fault of the network or the server."""
    failures = 0
    while True:
        try:
            return watch.call(question, what=what)
        except ConnectionCut as error:
            fault = unavailable(what, error)
        except EnvironmentFault as error:
            fault = error
        failures += 1
        if failures >= _TRIES.get(fault.reason, 1):
            raise fault
        _LOG.warning("%s (try %d)", fault.message, failures)
        watch.pause(_BACKOFF_SECONDS * 2**failures)


def fetch(source: Source, file: RemoteFile, target: Path, *, watch: Watch, meter: Meter, what: str) -> str:
    """Bring a file and return its sha256 in hex. Bytes that are in ``target`` already are not fetched again.

    Raises EnvironmentFault: CHECKSUM_MISMATCH when the bytes are wrong twice, and what ``ask`` and ``Watch`` raise.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(source=source, file=file, target=target, watch=watch, meter=meter, what=what)
    try:
        return transfer.run()
    except EnvironmentFault as fault:
        if fault.reason is not Reason.CHECKSUM_MISMATCH:
            raise
        _LOG.warning("%s; fetching it once more from the beginning", fault.message)
    return transfer.run()


@dataclass(slots=True)
class _Transfer:
    """State of one file under way."""

    source: Source
    file: RemoteFile
    target: Path
    watch: Watch
    meter: Meter
    what: str
    _written: int = field(init=False, default=0)
    _digest: Any = field(init=False, default=None)
    _failures: int = field(init=False, default=0)
    _since_failure: int = field(init=False, default=0)

    def run(self) -> str:
        """Bring what is missing, verify the whole, and return its sha256; bytes that are wrong are removed."""
        with self.target.open("a+b") as opened:
            self._take_up(opened)
            while not self._is_whole():
                try:
                    self._read_on(opened)
                    break
                except (ConnectionCut, SourceChanged, EnvironmentFault) as error:
                    self._after(error, opened)
            opened.flush()
            os.fsync(opened.fileno())
        try:
            self._verify()
        except EnvironmentFault:
            self.meter.discarded(self._written)
            self.target.unlink()
            raise
        return str(self._digest.hexdigest())

    def _take_up(self, opened: IO[bytes]) -> None:
        """Hash the bytes that an earlier run left behind."""
        self._digest, self._written = hashlib.sha256(), 0
        opened.seek(0)
        while block := opened.read(BLOCK_BYTES):
            self._digest.update(block)
            self._written += len(block)
        self.meter.found(self._written)
        if self.file.size is not None and self._written > self.file.size:
            self._restart(opened)

    def _is_whole(self) -> bool:
        return self.file.size is not None and self._written == self.file.size

    def _restart(self, opened: IO[bytes]) -> None:
        opened.truncate(0)
        self.meter.discarded(self._written)
        self._digest, self._written = hashlib.sha256(), 0

    def _read_on(self, opened: IO[bytes]) -> None:
        """Read from where the bytes end to the end of the file; raises ConnectionCut when they end before that."""
        offset = self._written

        def blocks() -> Iterator[Block]:
            return self.source.read(self.file, offset=offset)

        for block in self.watch.stream(blocks, what=f"{self.file.key} of {self.what}"):
            if block.position != self._written:
                self._restart(opened)
            opened.write(block.data)
            self._digest.update(block.data)
            self._written += len(block.data)
            self._since_failure += len(block.data)
            if self.source.staged:
                self.meter.found(len(block.data))
            else:
                self.meter.arrived(len(block.data))
        if self.file.size is not None and self._written < self.file.size:
            message = f"the connection ended after {self._written} of {self.file.size} bytes"
            raise ConnectionCut(message)

    def _after(self, error: ConnectionCut | SourceChanged | EnvironmentFault, opened: IO[bytes]) -> None:
        """Make ready for another try, or raise what the failure amounts to."""
        opened.flush()
        if self._since_failure >= _CUT_FORGOTTEN_BYTES:
            self._failures = 0
        self._failures, self._since_failure = self._failures + 1, 0
        tries = _CUTS_IN_A_ROW + 1
        if isinstance(error, EnvironmentFault):
            tries = _TRIES.get(error.reason, 1)
        if self._failures >= tries:
            raise error if isinstance(error, EnvironmentFault) else unavailable(self.what, error) from error
        if isinstance(error, SourceChanged):
            self._restart(opened)
        _LOG.warning("%s: %s; going on at byte %d (try %d)", self.file.key, error, self._written, self._failures)
        self.watch.pause(_BACKOFF_SECONDS * 2 ** (self._failures - 1))

    def _verify(self) -> None:
        """Raise EnvironmentFault(CHECKSUM_MISMATCH) unless size and digests are those that the source announced."""
        file, name = self.file, f"{self.file.key} of {self.what}"
        if file.size is not None and self._written != file.size:
            raise wrong_bytes(name, expected=f"{file.size} bytes", found=f"{self._written} bytes")
        found = self._digest.hexdigest()
        if file.sha256 is not None and found != file.sha256:
            raise wrong_bytes(name, expected=f"sha256 {file.sha256}", found=found)
        if file.git_blob is not None and (blob := _git_blob(self.target)) != file.git_blob:
            raise wrong_bytes(name, expected=f"git object {file.git_blob}", found=blob)


def _git_blob(path: Path) -> str:
    """Return the identity that git gives to a file: sha1 over ``blob <size>``, a zero byte, and the bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as opened:
        while block := opened.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
