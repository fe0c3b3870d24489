"""Files that are either whole or not there."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetuning_api.reasons import Reason
from finetuning_workload.errors import EnvironmentFault


def fsync_path(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or all of the new one, even after a power cut."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


@contextmanager
def explained_os_errors(action: str) -> Iterator[None]:
    """Turn a full disk or a read-only file system into a fault that says so; ``action`` completes "cannot ..."."""
    try:
        yield
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            message = f"cannot {action}: no space left on the disk{where}"
            hint = "Free space, or give the volume a larger size (finetune run: another disk with --state)."
            raise EnvironmentFault(Reason.DISK_FULL, message, hint) from error
        if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
            message = f"cannot {action}:{where} is not writable ({error.strerror})"
            hint = "Choose a folder that this user may write to (finetune run: with --state)."
            raise EnvironmentFault(Reason.READ_ONLY_FILE_SYSTEM, message, hint) from error
        raise


def require_free_space(folder: Path, needed: int, *, purpose: str) -> None:
    """Raise before the first byte is written when ``needed`` bytes do not fit on the folder's file system."""
    existing = next(candidate for candidate in (folder, *folder.parents) if candidate.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        message = f"{purpose} needs {format_bytes(needed)}, but {folder} has {format_bytes(free)} free"
        hint = "Free space, or give the volume a larger size (finetune run: another disk with --state)."
        raise EnvironmentFault(Reason.DISK_FULL, message, hint)


def format_bytes(count: float) -> str:
    """Return a count of bytes for a person, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:  # noqa: PLR2004  (SI prefixes)
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
