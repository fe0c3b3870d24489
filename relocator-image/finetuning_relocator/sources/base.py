"""What a source is to the engine: a list of files, and bytes of each from any position."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import Field

from finetuning_api.runconfig import ContractModel
from finetuning_api.sources import ParsedSource, SourceRef
from finetuning_relocator.credentials import Credentials

BLOCK_BYTES = 1 << 18
"""Bytes that are read at once: small enough to stop and to show progress within a moment."""
CONNECT_SECONDS = 5.0
"""Longest wait for a connection. A host that does not answer in this time is not reachable."""
ANSWER_SECONDS = 20.0
"""Longest wait for the answer to a question about a source (not for its bytes)."""


class RemoteFile(ContractModel):
    """One file of a source, as the source announces it."""

    path: str
    """Where it goes, relative to the artifact's folder."""
    key: str
    """Its name at the source."""
    size: int | None = Field(default=None, ge=0)
    sha256: str | None = None
    git_blob: str | None = None
    """Identity of the content in git: sha1 over a header and the bytes."""
    etag: str | None = None
    """Changes when the bytes change; lets an interrupted transfer go on only where it is safe."""

    def same_bytes(self, other: "RemoteFile") -> bool:
        """Whether nothing that both announcements hold says that the bytes differ."""
        pairs = (
            (self.size, other.size),
            (self.sha256, other.sha256),
            (self.git_blob, other.git_blob),
            (self.etag, other.etag),
        )
        return all(mine is None or theirs is None or mine == theirs for mine, theirs in pairs)


class Listing(ContractModel):
    """Everything that a source holds, at one revision."""

    files: tuple[RemoteFile, ...]
    resolved_revision: str | None = None
    member: str = ""
    """A file to take out of the archive that is the only file; empty keeps files as they are."""


class Announcement(NamedTuple):
    """What a source says of itself without being read."""

    listing: Listing | None
    """None where the source does not list itself before its bytes were brought."""
    resolved_revision: str | None


class Block(NamedTuple):
    """Some bytes of a file and where they belong."""

    position: int
    data: bytes


class ConnectionCut(Exception):
    """The connection ended before the last byte; reading can go on from where it stopped."""


class SourceChanged(Exception):
    """The file is no longer the one whose first bytes were read."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a source is made from."""

    ref: SourceRef
    credentials: Credentials
    environment: Mapping[str, str]
    revision: str | None
    """The revision to bring: what the measurement resolved, else what the user wrote, else None."""
    mount: Path | None
    """Where the bytes of a pvc:// or configmap:// source lie."""
    stall_seconds: int

    @property
    def parsed(self) -> ParsedSource:
        """The source in its parts."""
        return self.ref.parsed

    @property
    def read_seconds(self) -> float:
        """Longest wait of a client for a byte: longer than that of the watch, which ends a stall with its reason."""
        return self.stall_seconds + ANSWER_SECONDS


class Source(ABC):
    """Where bytes come from. Every method raises ProgramError for what a person must know.

    A source neither writes into the artifact nor retries: the engine does both, the same way for every scheme.
    """

    staged: ClassVar[bool] = False
    """Whether ``stage`` brings all bytes, so that ``read`` only copies what is on this machine already."""

    def announce(self) -> Announcement:
        """Say what is known without bringing any bytes."""
        listing = self.list_files()
        return Announcement(listing=listing, resolved_revision=listing.resolved_revision)

    def stage(self, folder: Path) -> Generator[int, None, None]:
        """Bring everything into a folder of the source's own, for sources whose client knows no single files.

        Yields how many bytes came since the last time, zero included, every fraction of a second.
        """
        del folder
        yield from ()

    @abstractmethod
    def list_files(self) -> Listing:
        """Return every file of the source, before any selection."""

    @abstractmethod
    def read(self, file: RemoteFile, *, offset: int) -> Iterator[Block]:
        """Yield the bytes of a file in order, from ``offset`` on, or from 0 where the source cannot start elsewhere.

        Raises ConnectionCut when the bytes end early and SourceChanged when they are not those of ``file`` any more.
        """
