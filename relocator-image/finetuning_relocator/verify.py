"""A user's own claim, verified in place: read, never written."""

from pathlib import Path

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ArtifactResult, VerifyConfig
from finetuning_relocator.content import new_manifest, require_expected
from finetuning_relocator.faults import not_found, unsafe
from finetuning_relocator.meter import Meter
from finetuning_relocator.safety import PICKLE_HINT, is_pickle_name, require_harmless
from finetuning_relocator.watch import Watch
from finetuning_workload.artifact import Manifest, ManifestFile, artifact_files, hash_file, read_manifest
from finetuning_workload.errors import UserError
from finetuning_workload.program import Context


def verify(config: VerifyConfig, context: Context) -> ArtifactResult:
    """Hash every file once; with a manifest, raise unless each is what the manifest says.

    Raises UserError: SOURCE_NOT_FOUND for an empty folder, ARTIFACT_CORRUPT for files that differ from their manifest,
    UNSAFE_CONTENT for links out of the folder and for a model whose weights are pickles only.
    """
    name = config.source.parsed.canonical
    folder = Path(config.path)
    if not folder.is_dir():
        raise not_found(f"the folder of {name}", "Name a folder inside the claim, not a file: pvc://claim/folder.")
    recorded = read_manifest(folder)
    files = artifact_files(folder)
    if not files:
        raise not_found(f"any file in {name}", "Fill the claim first, or correct the path inside it.")
    _refuse_pickles(folder, files, name)
    reporter = context.reporter(f"verify {name}")
    try:
        hashed = _hash(folder, files, watch=Watch(context.stop, float("inf")), meter=Meter(reporter))
        reporter.update(1.0, note=f"{len(files)} files")
    finally:
        reporter.close()
    revision = recorded.resolved_revision if recorded else None
    manifest = new_manifest(source=name, resolved_revision=revision, files=hashed)
    if recorded is not None:
        _require_equal(recorded, manifest)
    require_expected(manifest, config.source)
    return manifest.result()


def _hash(folder: Path, files: tuple[Path, ...], *, watch: Watch, meter: Meter) -> tuple[ManifestFile, ...]:
    meter.expect(total_bytes=sum(path.stat().st_size for path in files), total_files=len(files))

    def on_bytes(count: int) -> None:
        watch.check_stop()
        meter.arrived(count)

    hashed = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        hashed.append(ManifestFile(path=name, size=path.stat().st_size, sha256=hash_file(path, on_bytes=on_bytes)))
        meter.file_done()
    return tuple(hashed)


def _refuse_pickles(folder: Path, files: tuple[Path, ...], name: str) -> None:
    names = [path.relative_to(folder).as_posix() for path in files]
    pickles = [path for path in names if is_pickle_name(path)]
    if pickles and not any(path.endswith((".safetensors", ".gguf")) for path in names):
        raise unsafe(f"{name} has its weights as pickles only ({', '.join(pickles[:5])})", PICKLE_HINT)
    for path in files:
        if not is_pickle_name(path.name):
            require_harmless(path, name=path.relative_to(folder).as_posix())


def _require_equal(recorded: Manifest, found: Manifest) -> None:
    """Raise UserError(ARTIFACT_CORRUPT) unless the files are those of the manifest, no more and no less."""
    expected = {file.path: file for file in recorded.files}
    present = {file.path: file for file in found.files}
    wrong = sorted(path for path in expected.keys() | present.keys() if expected.get(path) != present.get(path))
    if wrong:
        message = f"{found.source} differs from its manifest: {', '.join(wrong[:5])}"
        raise UserError(Reason.ARTIFACT_CORRUPT, message, "Copy the artifact again, or remove its manifest.json.")
