"""``file://`` and paths, and claims that are copied: a file or a folder on this machine."""

from collections.abc import Iterator
from pathlib import Path

from finetuning_api.reasons import Reason
from finetuning_api.sources import Scheme
from finetuning_relocator.archives import is_archive_name
from finetuning_relocator.faults import not_found, unsafe
from finetuning_relocator.sources.base import Block, Listing, RemoteFile, Request, Source
from finetuning_relocator.sources.local import read_local
from finetuning_workload.artifact import artifact_files
from finetuning_workload.errors import EnvironmentFault


class FolderSource(Source):
    """A file or a folder that this program can see."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._root = _root(request)

    def list_files(self) -> Listing:
        """List the folder; a file is a folder of one. Raises UserError for links that leave the folder."""
        parsed = self._request.parsed
        if self._root.is_file():
            member = parsed.member if is_archive_name(self._root.name) else ""
            return Listing(files=(_announced(self._root, self._root.name),), member=member)
        if not self._root.is_dir():
            raise not_found(f"the path {self._root}", "Check source; a relative path starts at the working folder.")
        files = artifact_files(self._root)
        if not files:
            raise not_found(f"any file in {self._root}", "Fill the folder, or correct source.")
        return Listing(files=tuple(_announced(path, path.relative_to(self._root).as_posix()) for path in files))

    def read(self, file: RemoteFile, *, offset: int) -> Iterator[Block]:
        """Read the file itself, or the file in the folder."""
        path = self._root if self._root.is_file() else self._root / file.key
        yield from read_local(path, offset=offset)


def _root(request: Request) -> Path:
    """Return the file or folder; the first part of the location of a claim is the claim itself."""
    parsed = request.parsed
    if parsed.scheme is Scheme.FILE:
        return Path(parsed.location).expanduser().absolute()
    if request.mount is None:
        message = f"{parsed.canonical} is not mounted"
        raise EnvironmentFault(Reason.INTERNAL, message, "A claim can be used on a cluster only.")
    inside = request.mount / parsed.location.partition("/")[2]
    if not inside.resolve().is_relative_to(request.mount.resolve()):
        raise unsafe(f"the path of {parsed.canonical} leaves the claim", "Name a folder inside the claim.")
    return inside


def _announced(path: Path, name: str) -> RemoteFile:
    found = path.stat()
    return RemoteFile(path=name, key=name, size=found.st_size, etag=f"{found.st_mtime_ns}-{found.st_ino}")
