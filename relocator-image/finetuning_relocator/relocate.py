"""Relocation: a source becomes an artifact, whole and verified, or nothing that anybody could use."""

import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import MANIFEST_NAME, ArtifactResult, MeasureConfig, MeasureResult, RelocateConfig
from finetuning_api.sources import SourceError, SourceRef, relocation_key
from finetuning_relocator.archives import copy_stream, open_member
from finetuning_relocator.content import new_manifest, require_expected
from finetuning_relocator.credentials import Credentials
from finetuning_relocator.fetch import ask, fetch
from finetuning_relocator.meter import Meter
from finetuning_relocator.partial import Partial
from finetuning_relocator.safety import require_harmless
from finetuning_relocator.select import select
from finetuning_relocator.sources import open_source
from finetuning_relocator.sources.base import Listing, RemoteFile, Request, Source
from finetuning_relocator.watch import Watch
from finetuning_workload.artifact import (
    Manifest,
    ManifestFile,
    damaged_files,
    read_manifest,
    remove_all_but,
    write_manifest,
)
from finetuning_workload.errors import UserError
from finetuning_workload.files import require_free_space
from finetuning_workload.program import Context

_LOG = logging.getLogger(__name__)


def relocate(config: RelocateConfig, context: Context) -> ArtifactResult:
    """Bring a source into the folder ``destination`` and complete it with a manifest.

    A folder that is complete and intact is left as it is, without a question to the network. A damaged one is repaired
    by bringing only what is damaged. Raises ProgramError for everything that can go wrong.
    """
    name = _canonical(config.source)
    destination = Path(config.destination)
    partial = Partial(destination)
    manifest = _usable_manifest(destination, name)
    if manifest is not None:
        damaged = damaged_files(destination, manifest)
        if not damaged:
            partial.remove()
            require_expected(manifest, config.source)
            return manifest.result()
        _LOG.warning("%s is damaged and is repaired: %s", destination, ", ".join(damaged[:5]))
        partial.reopen(manifest, damaged, identity=relocation_key(config.source))
    reporter = context.reporter(f"relocate {name}")
    try:
        meter = Meter(reporter)
        manifest = _bring(config, context, partial=partial, meter=meter)
        partial.remove()
        reporter.update(1.0, note=f"{len(manifest.files)} files")
    except UserError:
        # Nothing of it can be used by another try.
        partial.remove_with_empty_destination()
        raise
    finally:
        reporter.close()
    return manifest.result(transferred_bytes=meter.transferred)


def measure(config: MeasureConfig, context: Context) -> MeasureResult:
    """Ask a source how large it is. Bytes and files are None where the source does not tell before it is read."""
    name = _canonical(config.source)
    source = open_source(_request(config, context, revision=config.source.revision))
    watch = Watch(context.stop, config.stall_seconds)
    announced = ask(source.announce, watch=watch, what=name)
    if announced.listing is None:
        return MeasureResult(resolved_revision=announced.resolved_revision)
    listing = select(announced.listing, config.source, what=name)
    size = None if listing.member else _total(listing.files)
    return MeasureResult(size_bytes=size, files=len(listing.files), resolved_revision=announced.resolved_revision)


def _canonical(ref: SourceRef) -> str:
    try:
        return ref.parsed.canonical
    except SourceError as error:
        reason = Reason.UNKNOWN_SCHEME if "unknown scheme" in str(error) else Reason.INVALID_SPEC
        raise UserError(reason, str(error), "Correct source.") from error


def _usable_manifest(destination: Path, name: str) -> Manifest | None:
    """Return the manifest of an artifact of this source; one that cannot be read is removed, it says nothing."""
    try:
        manifest = read_manifest(destination)
    except UserError as error:
        _LOG.warning("%s; it is made again", error.message)
        (destination / MANIFEST_NAME).unlink()
        return None
    if manifest is not None and manifest.source != name:
        message = f"{destination} holds an artifact of {manifest.source}, not of {name}"
        raise UserError(Reason.ARTIFACT_CORRUPT, message, "Choose another destination, or delete the folder.")
    return manifest


def _request(config: RelocateConfig | MeasureConfig, context: Context, *, revision: str | None) -> Request:
    return Request(
        ref=config.source,
        credentials=Credentials.of(config.source, context.environment),
        environment=context.environment,
        revision=revision,
        mount=Path(config.source_mount) if config.source_mount else None,
        stall_seconds=config.stall_seconds,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What bringing files needs."""

    source: Source
    partial: Partial
    watch: Watch
    meter: Meter
    what: str


def _bring(config: RelocateConfig, context: Context, *, partial: Partial, meter: Meter) -> Manifest:
    """Bring what is missing and write the manifest, last."""
    partial.belong_to(relocation_key(config.source))
    recorded = partial.recorded_listing()
    # A revision that an interrupted run resolved is not resolved again: both halves must be of one revision.
    revision = config.resolved_revision or (recorded.resolved_revision if recorded else None) or config.source.revision
    work = _Work(
        source=open_source(_request(config, context, revision=revision)),
        partial=partial,
        watch=Watch(context.stop, config.stall_seconds),
        meter=meter,
        what=_canonical(config.source),
    )
    listing = _listing(work, config.source)
    partial.recover(listing)
    _require_space(work, listing.files)
    if listing.member:
        _bring_member(work, listing)
    else:
        _bring_files(work, listing.files)
    return _complete(config, partial, listing=listing, what=work.what)


def _listing(work: _Work, ref: SourceRef) -> Listing:
    """Return the files to bring; a source that must be staged is brought here as a whole."""
    work.partial.staging.mkdir(parents=True, exist_ok=True)
    for count in work.watch.counts(work.source.stage(work.partial.staging), what=work.what):
        work.meter.arrived(count)
    return select(ask(work.source.list_files, watch=work.watch, what=work.what), ref, what=work.what)


def _total(files: tuple[RemoteFile, ...]) -> int | None:
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _require_space(work: _Work, files: tuple[RemoteFile, ...]) -> None:
    """Raise EnvironmentFault(DISK_FULL) before the first byte when the missing bytes cannot fit."""
    needed = 0
    for file in files:
        started = work.partial.path(file.path)
        present = started.stat().st_size if started.is_file() else 0
        if file.path not in work.partial.brought:
            needed += max(0, (file.size or 0) - present)
    require_free_space(work.partial.destination, needed, purpose=work.what)


def _bring_files(work: _Work, files: tuple[RemoteFile, ...]) -> None:
    work.meter.expect(total_bytes=_total(files), total_files=len(files))
    for file in files:
        brought = work.partial.brought.get(file.path)
        if brought is not None:
            work.meter.found(brought.size)
        else:
            target = work.partial.path(file.path)
            sha256 = fetch(work.source, file, target, watch=work.watch, meter=work.meter, what=work.what)
            _require_harmless(target, file.path)
            work.partial.add(file, path=file.path, sha256=sha256)
        work.meter.file_done()


def _bring_member(work: _Work, listing: Listing) -> None:
    """Bring an archive, take one file out of it, and throw the archive away."""
    (file,) = listing.files
    path = PurePosixPath(listing.member).name
    work.meter.expect(total_bytes=file.size, total_files=1)
    if path in work.partial.brought:
        return
    archive = work.partial.archive / file.path
    fetch(work.source, file, archive, watch=work.watch, meter=work.meter, what=work.what)
    target = work.partial.path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_member(archive, listing.member) as (stream, size):
        require_free_space(target.parent, size, purpose=f"{listing.member} of {work.what}")
        sha256 = copy_stream(stream, target, size=size, watch=work.watch)
    _require_harmless(target, path)
    work.partial.add(file, path=path, sha256=sha256)
    archive.unlink()
    work.meter.file_done()


def _require_harmless(path: Path, name: str) -> None:
    try:
        require_harmless(path, name=name)
    except UserError:
        path.unlink()
        raise


def _complete(config: RelocateConfig, partial: Partial, *, listing: Listing, what: str) -> Manifest:
    """Move everything into place and write the manifest, last.

    Nothing is left of content that is not what the user expects.
    """
    manifest = new_manifest(
        source=what,
        resolved_revision=listing.resolved_revision,
        files=tuple(
            ManifestFile(path=path, size=brought.size, sha256=brought.sha256)
            for path, brought in partial.brought.items()
        ),
    )
    try:
        require_expected(manifest, config.source)
    except UserError:
        remove_all_but(partial.destination, ())
        raise
    partial.move_into_place()
    return write_manifest(
        partial.destination,
        source=what,
        resolved_revision=manifest.resolved_revision,
        content_format=manifest.format,
        created_at=manifest.created_at,
        tool=manifest.tool,
        known_hashes={file.path: file.sha256 for file in manifest.files},
    )
