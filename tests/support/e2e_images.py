"""The images under test: archives that `make e2e-images` leaves, one a role, tagged by a digest of its inputs."""

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path.home() / ".cache" / "finetuning-operator" / "images"
PROGRAMS = ("relocator", "trainer", "evaluator", "server")
ROLES = ("operator", *PROGRAMS, "site")


@dataclass(frozen=True, slots=True)
class Image:
    """An image that a node can import."""

    reference: str
    archive: Path


def built_images() -> Mapping[str, Image]:
    """Return the newest image of each role; fail with the command that builds them."""
    found: dict[str, Image] = {}
    for role in ROLES:
        archives = sorted(FOLDER.glob(f"{role}-*.tar"), key=lambda path: path.stat().st_mtime)
        if not archives:
            pytest.fail(f"there is no image of {role} in {FOLDER}; run: make e2e-images", pytrace=False)
        found[role] = Image(_reference(archives[-1]), archives[-1])
    return found


def _reference(archive: Path) -> str:
    """Return the first tag in an archive of `docker save`."""
    with tarfile.open(archive) as content:
        manifest = content.extractfile("manifest.json")
        assert manifest is not None, archive
        reference: str = json.load(manifest)[0]["RepoTags"][0]
    return reference
