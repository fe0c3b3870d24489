"""What an unfinished artifact remembers: which files it waits for, and which are complete."""

import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from finetuning_api.runconfig import MANIFEST_NAME, ContractModel
from finetuning_relocator.sources.base import Listing, RemoteFile
from finetuning_workload.artifact import PARTIAL_NAME, Manifest, hash_file, remove_all_but
from finetuning_workload.files import fsync_path, write_atomically

_LOG = logging.getLogger(__name__)


class BroughtFile(ContractModel):
    """A file that is complete on the disk."""

    path: str
    announced: RemoteFile
    """What the source said of it, or of the archive that it was taken from."""
    size: int
    sha256: str


@dataclass(slots=True)
class Partial:
    """The folder ``.partial`` of an artifact: files under way, their listing, and a journal of complete ones.

    Everything here can be lost at any moment: what the journal says is believed only after hashing the file again.
    """

    destination: Path
    brought: dict[str, BroughtFile] = field(default_factory=dict)
    """Complete files by path, verified by ``recover`` or brought in this run."""

    @property
    def root(self) -> Path:
        """The folder itself."""
        return self.destination / PARTIAL_NAME

    @property
    def staging(self) -> Path:
        """Folder for sources whose client brings everything at once."""
        return self.root / "staged"

    @property
    def archive(self) -> Path:
        """Folder for an archive that a member is taken from."""
        return self.root / "archive"

    @property
    def _journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def _listing(self) -> Path:
        return self.root / "listing.json"

    def path(self, name: str) -> Path:
        """Where the bytes of a file are written until all are there."""
        return self.root / "files" / name

    def belong_to(self, identity: str) -> None:
        """Throw everything away unless it was brought for the same identity; from now on it belongs to it."""
        marker = self.root / "identity"
        try:
            same = marker.read_text() == identity
        except OSError:
            same = False
        if not same:
            self.remove()
            write_atomically(marker, identity)

    def recorded_listing(self) -> Listing | None:
        """Return the listing that an interrupted run was working on."""
        try:
            return Listing.model_validate_json(self._listing.read_bytes())
        except (OSError, ValidationError):
            return None

    def reopen(self, manifest: Manifest, damaged: tuple[str, ...], *, identity: str) -> None:
        """Turn a damaged artifact into an unfinished one that keeps its intact files."""
        self.belong_to(identity)
        intact = [file for file in manifest.files if file.path not in damaged]
        lines = (
            BroughtFile(
                path=file.path,
                announced=RemoteFile(path=file.path, key="", size=file.size, sha256=file.sha256),
                size=file.size,
                sha256=file.sha256,
            ).model_dump_json(by_alias=True)
            for file in intact
        )
        write_atomically(self._journal, "".join(f"{line}\n" for line in lines))
        listing = Listing(files=(), resolved_revision=manifest.resolved_revision)
        write_atomically(self._listing, listing.to_json())
        (self.destination / MANIFEST_NAME).unlink()
        fsync_path(self.destination)

    def recover(self, listing: Listing) -> None:
        """Keep of an interrupted run what belongs to ``listing`` and is whole; throw the rest away.

        Complete files are hashed again. Files under way are kept only where the announcement can tell that their bytes
        are still the same.
        """
        before = {file.path: file for file in (self.recorded_listing() or Listing(files=())).files}
        wanted = {file.path: file for file in listing.files}
        journal = self._read_journal()
        self.brought = {
            path: entry for path, entry in journal.items() if self._is_whole(path, entry, wanted, listing.member)
        }
        under_way = {path for path, file in wanted.items() if path in before and _resumable(before[path], file)}
        files = self.root / "files"
        if files.exists():
            remove_all_but(files, self.brought.keys() | under_way)
        if self.archive.exists() and not under_way:
            shutil.rmtree(self.archive)
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(self._listing, listing.to_json())

    def _is_whole(self, path: str, entry: BroughtFile, wanted: dict[str, RemoteFile], member: str) -> bool:
        expected = next(iter(wanted.values()), None) if member else wanted.get(path)
        found = self.located(path)
        if expected is None or found is None or not entry.announced.same_bytes(expected):
            return False
        whole = found.stat().st_size == entry.size and hash_file(found) == entry.sha256
        if not whole:
            _LOG.warning("%s changed on the disk since it was brought; it is brought again", path)
            found.unlink()
        return whole

    def located(self, name: str) -> Path | None:
        """Where a complete file lies: still here, or already in its place."""
        return next((path for path in (self.path(name), self.destination / name) if path.is_file()), None)

    def add(self, announced: RemoteFile, *, path: str, sha256: str) -> None:
        """Record a file whose bytes are complete, verified and durable."""
        entry = BroughtFile(path=path, announced=announced, size=self.path(path).stat().st_size, sha256=sha256)
        with self._journal.open("a") as journal:
            # A line that a crash cut short ends here and is skipped when it is read.
            journal.write(f"\n{entry.model_dump_json(by_alias=True)}")
            journal.flush()
            os.fsync(journal.fileno())
        self.brought[path] = entry

    def _read_journal(self) -> dict[str, BroughtFile]:
        entries = {}
        try:
            lines = self._journal.read_text(errors="replace").splitlines()
        except OSError:
            return {}
        for line in filter(None, lines):
            try:
                entry = BroughtFile.model_validate_json(line)
            except ValidationError:
                continue
            entries[entry.path] = entry
        return entries

    def move_into_place(self) -> None:
        """Move complete files to where they belong, and remove every other file of the artifact's folder."""
        for name in self.brought:
            source, target = self.path(name), self.destination / name
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
        remove_all_but(self.destination, self.brought)

    def remove(self) -> None:
        """Forget everything; called when the manifest is written, or when what was brought must not be used."""
        shutil.rmtree(self.root, ignore_errors=True)

    def remove_with_empty_destination(self) -> None:
        """Forget everything, and leave no folder behind where there was nothing else in it."""
        self.remove()
        with suppress(OSError):  # A volume's own folder cannot be removed, and a folder that is not empty stays.
            self.destination.rmdir()


def _resumable(before: RemoteFile, now: RemoteFile) -> bool:
    """Whether bytes of ``before`` may be continued with bytes of ``now``."""
    told = any(
        mine is not None and mine == theirs
        for mine, theirs in ((before.sha256, now.sha256), (before.git_blob, now.git_blob), (before.etag, now.etag))
    )
    return told and before.same_bytes(now)
