"""Writes what is generated from the types: the CustomResourceDefinitions and the manifest reference."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from finetuning_api.reference import reference_markdown
from finetuning_api.schema import crd_documents


def generated_files() -> Mapping[Path, str]:
    """Return the text of every generated file by its path below the repository's root."""
    documents = crd_documents()
    crds = {Path("crds") / name: text for name, text in documents.items()}
    return {
        **crds,
        # A chart cannot read what lies outside its folder.
        Path("charts/finetuning-operator/crds.yaml"): "---\n".join(documents.values()),
        Path("docs/manifest-reference.md"): reference_markdown(),
    }


def write_generated(root: Path, *, check: bool) -> list[Path]:
    """Bring the generated files below ``root`` up to date; return the paths that were not.

    With ``check`` nothing is written: the answer says what would be.
    """
    stale = [(root / path, text) for path, text in generated_files().items() if _read(root / path) != text]
    if not check:
        for path, text in stale:
            _replace(path, text)
    return [path for path, _ in stale]


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _replace(path: Path, text: str) -> None:
    """Write a whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    # NamedTemporaryFile makes files for their owner alone; these are for everyone who reads the repository.
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
