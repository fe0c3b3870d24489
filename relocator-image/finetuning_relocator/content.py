"""What an artifact holds, and whether it is what the user expects."""

from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version

from finetuning_api.reasons import Reason
from finetuning_api.sources import Scheme, SourceRef
from finetuning_workload.artifact import Manifest, ManifestFile
from finetuning_workload.errors import UserError

TOOL = f"finetuning-relocator {version('finetuning-operator')}"

_DIGEST_PREFIX = "sha256:"
_CONTENT_ADDRESSED = frozenset({Scheme.FILE, Scheme.CONFIGMAP, Scheme.PVC, Scheme.HTTP, Scheme.HTTPS})
"""Schemes without revisions of their own: here the revision can only be the digest of the content."""


def content_format(paths: Iterable[str]) -> str:
    """Return the one word for what files are: safetensors, gguf, or files."""
    names = [path.lower() for path in paths]
    for suffix in ("safetensors", "gguf"):
        if any(name.endswith(f".{suffix}") for name in names):
            return suffix
    return "files"


def new_manifest(*, source: str, resolved_revision: str | None, files: tuple[ManifestFile, ...]) -> Manifest:
    """Return the manifest of files whose digests are known, in the order of their paths."""
    ordered = tuple(sorted(files, key=lambda file: file.path))
    return Manifest(
        source=source,
        resolved_revision=resolved_revision,
        files=ordered,
        total_bytes=sum(file.size for file in ordered),
        format=content_format(file.path for file in ordered),
        created_at=datetime.now(UTC),
        tool=TOOL,
    )


def require_expected(manifest: Manifest, ref: SourceRef) -> None:
    """Raise UserError unless the content is what ``checksum``, or a revision that is a digest, says.

    Both mean the sha256 of the file where there is one file, and the artifact's digest where there are several.
    """
    found = f"{_DIGEST_PREFIX}{manifest.files[0].sha256}" if len(manifest.files) == 1 else manifest.digest
    if ref.checksum is not None and ref.checksum != found:
        message = f"checksum is {ref.checksum}, but {manifest.source} has {found}"
        hint = "Correct checksum if the new content is right; otherwise the source was changed."
        raise UserError(Reason.CHECKSUM_MISMATCH, message, hint)
    if ref.revision is None or ref.parsed.scheme not in _CONTENT_ADDRESSED:
        return
    if ref.revision != found:
        message = f"{manifest.source} has no revision {ref.revision!r}: its content is {found}"
        hint = f"A {ref.parsed.scheme}:// source has no revisions but its content: use that digest, or none."
        raise UserError(Reason.REVISION_NOT_FOUND, message, hint)
