"""One file out of a zip or a tar, without unpacking anything else."""

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from finetuning_api.reasons import Reason
from finetuning_relocator.faults import missing_member, unsafe
from finetuning_relocator.sources.base import BLOCK_BYTES
from finetuning_relocator.watch import Watch
from finetuning_workload.errors import UserError

ARCHIVE_SUFFIXES = (".zip", ".whl", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_LINK_HINT = "Pack the file itself in place of a link."


def is_archive_name(name: str) -> bool:
    """Whether a file of this name is an archive that a member can be taken from."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


@contextmanager
def open_member(archive: Path, member: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open one regular file of an archive; gives the stream and its size in bytes.

    Raises UserError: SOURCE_NOT_FOUND with the nearest names, UNSAFE_CONTENT for a link or a device, and
    CHECKSUM_MISMATCH for an archive that is damaged.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield _zip_member(zipped, member, archive.name)
        else:
            with tarfile.open(archive) as tarred:
                yield _tar_member(tarred, member, archive.name)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        message = f"{archive.name} cannot be read as an archive: {error}"
        raise UserError(Reason.CHECKSUM_MISMATCH, message, "Check the file at its source.") from error


def _zip_member(archive: zipfile.ZipFile, member: str, name: str) -> tuple[IO[bytes], int]:
    files = {info.filename.removeprefix("./"): info for info in archive.infolist() if not info.is_dir()}
    info = files.get(member)
    if info is None:
        raise missing_member(member, list(files), of=name)
    if (info.external_attr >> 28) == 0xA:  # noqa: PLR2004  (S_IFLNK in the upper bits of the Unix mode)
        raise unsafe(f"{member} in {name} is a symbolic link", _LINK_HINT)
    return archive.open(info), info.file_size


def _tar_member(archive: tarfile.TarFile, member: str, name: str) -> tuple[IO[bytes], int]:
    found = {info.name.removeprefix("./"): info for info in archive}
    info = found.get(member)
    if info is None or info.isdir():
        raise missing_member(member, [path for path, held in found.items() if held.isfile()], of=name)
    stream = archive.extractfile(info) if info.isreg() else None
    if stream is None:
        raise unsafe(f"{member} in {name} is a link or a device, not a file", _LINK_HINT)
    return stream, info.size


def copy_stream(stream: IO[bytes], target: Path, *, size: int, watch: Watch) -> str:
    """Write a stream of announced size to a durable file and return its sha256 in hex.

    Raises UserError(UNSAFE_CONTENT) for a stream that is longer than announced: an archive must not fill the disk.
    """
    digest, written = hashlib.sha256(), 0
    with target.open("wb") as file:
        while block := stream.read(BLOCK_BYTES):
            watch.check_stop()
            written += len(block)
            if written > size:
                raise unsafe(f"{target.name} is longer than its archive says", "Check the archive at its source.")
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
