"""The images under test: archives that `make e2e-images` leaves, tagged by a digest of what they are built from."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hack.images.build import archives
from hack.images.settings import Settings

LIST_ENV = "FINETUNE_E2E_IMAGES"
"""Names a file with what `python -m hack.images archives` printed, so that sources may change meanwhile."""
PROGRAMS = ("relocator", "trainer", "evaluator", "server")


@dataclass(frozen=True, slots=True)
class Image:
    """An image that a node can load."""

    reference: str
    archive: Path
    """May hold others as well."""


def built_images() -> dict[str, Image]:
    """Return the images of this checkout, or of the list, by role; fail with the command that builds them."""
    listed = os.environ.get(LIST_ENV)
    if listed:
        groups = json.loads(Path(listed).read_text())
        found = [(Path(group["path"]), group["images"]) for group in groups.values()]
    else:
        found = [(archive.path, archive.images) for archive in archives(Settings.of()).values()]
    missing = [str(path) for path, _ in found if not path.exists()]
    if missing:
        pytest.fail(f"not there: {', '.join(missing)}; run: make e2e-images", pytrace=False)
    return {role: Image(name, path) for path, images in found for role, name in images.items()}


def chart_values(images: Mapping[str, Image]) -> dict[str, Any]:
    """Return the values of the chart that name images."""
    repository, _, tag = images["operator"].reference.rpartition(":")
    programs = {role: images[role].reference for role in PROGRAMS}
    return {"image": {"repository": repository, "tag": tag}, "workloadImages": programs}
