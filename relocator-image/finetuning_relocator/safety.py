"""What never reaches a volume: paths that leave their folder, and files that run code when they are loaded."""

import pickletools
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from finetuning_api.runconfig import MANIFEST_NAME
from finetuning_relocator.faults import unsafe
from finetuning_workload.artifact import PARTIAL_NAME

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"})
PICKLE_HINT = "Ask for a safetensors version, or convert it on a machine that may run its code."
RESERVED_NAMES = frozenset({MANIFEST_NAME, PARTIAL_NAME, "lost+found"})
"""Names at the top of an artifact's folder that are the relocator's own."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"^[A-Za-z]:")
_MAX_PATH_BYTES = 1024
_MAX_NAME_BYTES = 255
_OPCODES_READ = 64


def require_safe_paths(paths: Iterable[str], *, source: str) -> None:
    """Raise UserError(UNSAFE_CONTENT) unless every path stays in its folder and no two can mean the same file."""
    seen: dict[str, str] = {}
    for path in paths:
        problem = path_problem(path)
        if problem:
            raise unsafe(f"{source} holds the path {path!r}, which {problem}", "Leave it out with exclude.")
        folded = path.casefold()
        if folded in seen:
            message = f"{source} holds both {seen[folded]!r} and {path!r}, which are one file on some file systems"
            raise unsafe(message, "Leave one of them out with exclude.")
        seen[folded] = path
    for folded, path in seen.items():
        for parent in PurePosixPath(folded).parents:
            if str(parent) in seen:
                message = f"{source} holds {seen[str(parent)]!r} both as a file and as the folder of {path!r}"
                raise unsafe(message, "Leave one of them out with exclude.")


def path_problem(path: str) -> str | None:
    """Return why a relative path must not be written, None for a safe one."""
    parts = path.split("/")
    if not path or path.startswith("/") or _DRIVE.match(path):
        return "is not relative"
    if any(part in {"", ".", ".."} for part in parts):
        return "leaves its folder" if ".." in parts else "has an empty part"
    if "\\" in path or _CONTROL.search(path):
        return "has a character that file systems read differently"
    if len(path.encode()) > _MAX_PATH_BYTES or any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        return "is too long"
    return None


def is_pickle_name(path: str) -> bool:
    """Whether files of this name are pickles by convention."""
    return PurePosixPath(path).suffix.lower() in PICKLE_SUFFIXES


def require_harmless(file: Path, *, name: str) -> None:
    """Raise UserError(UNSAFE_CONTENT) for a pickle under any name, and for a Git LFS pointer in place of a file.

    Looks at the first bytes (and at the list of names of a zip), so it is cheap for files of any size.
    """
    with file.open("rb") as opened:
        head = opened.read(256)
    if head.startswith(_LFS_POINTER):
        message = f"{name} is a Git LFS pointer, not the file itself"
        raise unsafe(message, "Git LFS is not supported; take the file from the hub (hf://) or an object store.")
    if _is_pickle(head) or (head.startswith(b"PK") and _holds_pickle(file)):
        raise unsafe(f"{name} is a pickle: loading it runs code", PICKLE_HINT)


def _is_pickle(head: bytes) -> bool:
    """Whether bytes begin like a pickle of protocol 2 to 5: its mark, then only opcodes that exist."""
    if len(head) < 3 or head[0] != 0x80 or not 2 <= head[1] <= 5:  # noqa: PLR2004  (the PROTO opcode and its argument)
        return False
    read = 0
    try:
        for read, (opcode, _, _) in enumerate(pickletools.genops(head), start=1):
            if opcode.name == "STOP" or read >= _OPCODES_READ:
                return True
    except ValueError:
        # The head ends in the middle of the pickle; text or numbers that only look like one fail at their first bytes.
        return read > 2  # noqa: PLR2004  (PROTO and a first real opcode)
    return False


def _holds_pickle(file: Path) -> bool:
    """Whether a zip is what torch.save writes: a pickle beside its tensors."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name == "data.pkl" or name.endswith("/data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False
