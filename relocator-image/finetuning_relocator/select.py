"""Which files of a source are taken: what the user asked for, else what training and evaluation need."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from finetuning_api.reasons import Reason
from finetuning_api.sources import SourceRef
from finetuning_relocator.faults import missing_member, not_found, unsafe
from finetuning_relocator.safety import PICKLE_HINT, RESERVED_NAMES, is_pickle_name, require_safe_paths
from finetuning_relocator.sources.base import Listing, RemoteFile
from finetuning_workload.errors import UserError

_LOG = logging.getLogger(__name__)

_NEVER = (".git/*", ".git", ".gitattributes", ".gitignore", ".gitmodules", ".github/*", ".cache/*", "*/.git/*")
_NOT_FOR_MODELS = (
    # The same weights for other frameworks.
    *("*.onnx", "*.onnx_data", "onnx/*", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.pb", "*.mlmodel", "coreml/*"),
    *("openvino/*", "openvino_*", "*.nemo", "*.engine"),
    # Code is never run, pictures are never read.
    *("*.py", "*.pyc", "*.ipynb", "*.sh", "*.so", "*.dll", "*.dylib"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.svg", "*.mp4", "*.pdf"),
)
_NAMES_SHOWN = 8


def select(listing: Listing, ref: SourceRef, *, what: str) -> Listing:
    """Return the files to bring, with safe paths.

    Raises UserError: SOURCE_NOT_FOUND when nothing is left, UNSAFE_CONTENT for unsafe paths and for a model whose
    weights are pickles only, UNSUPPORTED for a repository with several GGUF files and none chosen.
    """
    files = _narrow(listing, member="" if listing.member else ref.parsed.member, what=what)
    files = tuple(file for file in files if not _matches(file.path, _NEVER) and not _is_reserved(file.path))
    chosen = _by_patterns(files, include=ref.include, exclude=ref.exclude)
    if not chosen:
        held = ", ".join(sorted(file.path for file in files)[:_NAMES_SHOWN]) or "nothing"
        raise not_found(f"any file of {what} that include and exclude leave", f"It holds {held}.")
    asked = bool(ref.include or ref.parsed.member)
    taken = _without_pickles(chosen, asked=asked, what=what)
    if not asked and _is_model(taken):
        taken = _model_files(taken, what=what)
    require_safe_paths((file.path for file in taken), source=what)
    return listing.model_copy(update={"files": tuple(sorted(taken, key=lambda file: file.path))})


def _narrow(listing: Listing, *, member: str, what: str) -> tuple[RemoteFile, ...]:
    """Return the one file that ``member`` names, or all below the folder that it names, with paths relative to it."""
    if not member:
        return listing.files
    exact = [file for file in listing.files if file.path == member]
    if exact:
        return (exact[0].model_copy(update={"path": PurePosixPath(member).name}),)
    prefix = f"{member}/"
    below = [file for file in listing.files if file.path.startswith(prefix)]
    if not below:
        raise missing_member(member, [file.path for file in listing.files], of=what)
    return tuple(file.model_copy(update={"path": file.path.removeprefix(prefix)}) for file in below)


def _by_patterns(
    files: Sequence[RemoteFile], *, include: Sequence[str], exclude: Sequence[str]
) -> tuple[RemoteFile, ...]:
    return tuple(
        file
        for file in files
        if (not include or _matches(file.path, include)) and not (exclude and _matches(file.path, exclude))
    )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits; ``*`` crosses folders, and a pattern that ends in ``/`` takes a whole folder."""
    return any(fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)


def _is_reserved(path: str) -> bool:
    reserved = path.split("/", maxsplit=1)[0] in RESERVED_NAMES
    if reserved:
        _LOG.warning("%s is left out: in an artifact this name is the relocator's own", path)
    return reserved


def _has(files: Sequence[RemoteFile], *suffixes: str) -> bool:
    return any(file.path.lower().endswith(suffixes) for file in files)


def _is_model(files: Sequence[RemoteFile]) -> bool:
    return _has(files, ".safetensors", ".gguf") and (
        _has(files, ".gguf") or any(file.path == "config.json" for file in files)
    )


def _without_pickles(files: tuple[RemoteFile, ...], *, asked: bool, what: str) -> tuple[RemoteFile, ...]:
    pickles = [file.path for file in files if is_pickle_name(file.path)]
    if not pickles:
        return files
    if asked or not _has(files, ".safetensors", ".gguf"):
        shown = ", ".join(sorted(pickles)[:_NAMES_SHOWN])
        kind = "asks for pickles" if asked else "has its weights as pickles only"
        raise unsafe(f"{what} {kind} ({shown}): loading them runs code", PICKLE_HINT)
    _LOG.info("left out %d pickle files: %s", len(pickles), ", ".join(sorted(pickles)[:_NAMES_SHOWN]))
    return tuple(file for file in files if not is_pickle_name(file.path))


def _model_files(files: tuple[RemoteFile, ...], *, what: str) -> tuple[RemoteFile, ...]:
    kept = tuple(file for file in files if not _matches(file.path.lower(), _NOT_FOR_MODELS))
    if _has(kept, ".safetensors"):
        # Some repositories hold the same weights three times: for transformers, for the vendor's own code, quantised.
        vendor = any(file.path.startswith("model") and file.path.endswith(".safetensors") for file in kept)
        return tuple(
            file
            for file in kept
            if not file.path.endswith(".gguf") and not (vendor and file.path.startswith(("consolidated", "original/")))
        )
    quantised = sorted(file.path for file in kept if file.path.endswith(".gguf"))
    if len(quantised) > 1:
        message = f"{what} holds {len(quantised)} GGUF files: {', '.join(quantised[:_NAMES_SHOWN])}"
        raise UserError(Reason.UNSUPPORTED, message, "Name one of them after #.")
    return kept
