"""Artifacts: folders that are complete if and only if their manifest is there."""

import hashlib
import stat
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from pydantic import Field, ValidationError

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import MANIFEST_NAME, ArtifactResult, ContractModel
from finetuning_workload.errors import UserError
from finetuning_workload.files import fsync_path, write_atomically

PARTIAL_NAME = ".partial"
"""Folder inside an artifact that is not complete yet: what was brought so far. Never part of the artifact."""
_NOT_CONTENT = frozenset({PARTIAL_NAME, "lost+found"})  # A fresh ext4 volume is not empty.
_CHUNK = 1 << 20
_READABLE = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH


class ManifestFile(ContractModel):
    """One file of an artifact."""

    path: str
    """Relative, with forward slashes."""
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(ContractModel):
    """Everything that is known of an artifact; written last."""

    source: str
    resolved_revision: str | None = None
    files: tuple[ManifestFile, ...]
    total_bytes: int = Field(ge=0)
    format: str
    created_at: datetime
    tool: str

    @property
    def digest(self) -> str:
        """sha256 over the sorted (path, sha256) list: equal content, equal digest."""
        listing = "".join(f"{file.path}\0{file.sha256}\n" for file in sorted(self.files, key=lambda file: file.path))
        return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"

    def result(self, *, transferred_bytes: int = 0) -> ArtifactResult:
        """Return what a program reports of the artifact."""
        return ArtifactResult(
            digest=self.digest,
            size_bytes=self.total_bytes,
            files=len(self.files),
            format=self.format,
            resolved_revision=self.resolved_revision,
            transferred_bytes=transferred_bytes,
        )


def hash_file(path: Path, *, on_bytes: Callable[[int], None] | None = None) -> str:
    """Return the sha256 of a file in hex; ``on_bytes`` is told the size of every block read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
            if on_bytes is not None:
                on_bytes(len(block))
    return digest.hexdigest()


def artifact_files(folder: Path) -> tuple[Path, ...]:
    """Return every regular file of an artifact's folder but its manifest, sorted by relative path.

    Raises UserError(UNSAFE_CONTENT) for a symlink that leaves the folder.
    """
    root = folder.resolve()
    found = []
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).parts[0] in _NOT_CONTENT:
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            message = f"{path.relative_to(folder)} is a link out of its folder"
            raise UserError(Reason.UNSAFE_CONTENT, message, "Replace the link by the file that it points to.")
        if path.is_file() and path != folder / MANIFEST_NAME:
            found.append(path)
    return tuple(found)


def write_manifest(
    folder: Path,
    *,
    source: str,
    resolved_revision: str | None,
    content_format: str,
    created_at: datetime,
    tool: str,
    known_hashes: dict[str, str] | None = None,
) -> Manifest:
    """Complete an artifact: hash its files, make them durable, and write the manifest last.

    ``known_hashes`` holds sha256 by relative path of files that were hashed while they were written.
    """
    hashes = known_hashes or {}
    files = []
    for path in artifact_files(folder):
        name = path.relative_to(folder).as_posix()
        status = path.stat()
        # Libraries write weights for their own user only; whoever mounts the volume reads them under another one.
        path.chmod(stat.S_IMODE(status.st_mode) | _READABLE)
        fsync_path(path)
        files.append(ManifestFile(path=name, size=status.st_size, sha256=hashes.get(name) or hash_file(path)))
    manifest = Manifest(
        source=source,
        resolved_revision=resolved_revision,
        files=tuple(files),
        total_bytes=sum(file.size for file in files),
        format=content_format,
        created_at=created_at,
        tool=tool,
    )
    for directory in {(folder / file.path).parent for file in files}:
        fsync_path(directory)
    write_atomically(folder / MANIFEST_NAME, manifest.to_json())
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a complete artifact, None where there is none.

    Raises UserError(ARTIFACT_CORRUPT) for a manifest that cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        message = f"the manifest {path} is damaged: {error.errors()[0]['msg']}"
        raise UserError(Reason.ARTIFACT_CORRUPT, message, "Delete the folder; it is made again.") from error


def damaged_files(folder: Path, manifest: Manifest, *, content: bool = True) -> tuple[str, ...]:
    """Return the files of a manifest that are missing or differ, by size and, with ``content``, by sha256."""

    def differs(file: ManifestFile) -> bool:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            return True
        return content and hash_file(path) != file.sha256

    return tuple(file.path for file in manifest.files if differs(file))


def require_intact(folder: Path, *, digest: str | None = None, content: bool = True) -> Manifest:
    """Return the manifest of an artifact that may be used.

    Raises UserError(ARTIFACT_CORRUPT) when it is incomplete, when files are missing or changed, or when its digest is
    not the expected one.
    """
    hint = "Delete the folder; it is made again."
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            Reason.ARTIFACT_CORRUPT, f"{folder} is not a complete artifact: it has no {MANIFEST_NAME}", hint
        )
    if digest is not None and manifest.digest != digest:
        message = f"{folder} has the digest {manifest.digest}, expected {digest}"
        raise UserError(Reason.ARTIFACT_CORRUPT, message, hint)
    damaged = damaged_files(folder, manifest, content=content)
    if damaged:
        raise UserError(Reason.ARTIFACT_CORRUPT, f"{folder} is damaged: {', '.join(damaged[:5])}", hint)
    return manifest


def remove_all_but(folder: Path, keep: Iterable[str]) -> None:
    """Remove the files of an artifact's folder whose relative paths are not in ``keep``."""
    kept = set(keep)
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if path.relative_to(folder).parts[0] in _NOT_CONTENT:
            continue
        if (path.is_file() or path.is_symlink()) and name not in kept:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
