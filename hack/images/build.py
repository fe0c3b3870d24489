"""Building images, and the archives of them that tests on a node load."""

import hashlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.images.docker import Docker, ImageError
from hack.images.inputs import input_tag
from hack.images.settings import REPOSITORY, ROLES, SITE, Role, Settings, cache_folder

_LOG = logging.getLogger("images")
_PUBLIC_BASE = "python:3.11-slim"
_WHEELS_BESIDE = REPOSITORY.parent / "shared" / "wheels"
_GROUPS = {
    "operator": (ROLES["operator"],),
    "relocator": (ROLES["relocator"],),
    "models": (ROLES["trainer"], ROLES["evaluator"], ROLES["server"]),
    "site": (SITE,),
}
_KEPT = 3
"""Archives of a group that stay: this checkout's, and the latest before it."""
_UNUSED_AFTER = "168h"
_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Archive:
    """Images in one file, as ``docker save`` writes it; layers that they share are stored once."""

    path: Path
    images: Mapping[str, str]
    """By role, with the tag of what each is built from."""


def image_names(role: Role, settings: Settings) -> tuple[str, str]:
    """Return the names of a role's image: by version, and by what it is built from."""
    name = settings.name(role)
    return f"{name}:{settings.version_tag(role)}", f"{name}:{input_tag(role, settings)}"


def build(role: Role, settings: Settings, docker: Docker, *, arguments: Mapping[str, str] | None = None) -> None:
    """Build one image; one that stands upon another finds that by its input."""
    own = {"VERSION": settings.version, **settings.arguments, **(arguments or {})}
    if role.name == "models" and settings.torch:
        own["TORCH"] = settings.torch
    if role.upon is not None:
        own["MODELS_IMAGE"] = image_names(ROLES[role.upon], settings)[1]
    started = time.monotonic()
    names = image_names(role, settings)
    docker.build(settings.repository, role.dockerfile, arguments=own, tags=names)
    seconds = time.monotonic() - started
    _LOG.info("%s: %d MB, %.0f s", " ".join(names), docker.size(names[1]) // _MEGABYTE, seconds)


def archives(settings: Settings) -> dict[str, Archive]:
    """Return where the archives of the images of a checkout lie, or will lie, by what is in them."""
    _lay_wheels_beside(settings)
    return {group: _archive(group, settings, cache_folder() / "images") for group in _GROUPS}


def _archive(group: str, settings: Settings, folder: Path) -> Archive:
    images = {role.name: image_names(role, settings)[1] for role in _GROUPS[group]}
    return Archive(folder / f"{group}-{_digest(images.values())}.tar", images)


def _digest(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def _lay_wheels_beside(settings: Settings) -> None:
    """Take wheels that lie beside the checkout into the build's context, which ends at the checkout."""
    for wheel in sorted(_WHEELS_BESIDE.glob("*.whl")):
        laid = settings.repository / settings.wheels / wheel.name
        if not laid.exists():
            shutil.copyfile(wheel, laid)


def save_missing(wanted: Mapping[str, Archive], settings: Settings, docker: Docker) -> None:
    """Build the images of archives that are not there, and write these."""
    base = _base(settings, docker)
    for group, archive in wanted.items():
        if archive.path.exists():
            continue
        archive.path.parent.mkdir(parents=True, exist_ok=True)
        for role in _with_parents(_GROUPS[group]):
            if not docker.has(image_names(role, settings)[1]):
                build(role, settings, docker, arguments=base if role.upon is None else None)
        _save(archive, [image_names(role, settings) for role in _GROUPS[group]], docker)
    if docker.host is not None:
        _remove_former(settings, docker)


def _with_parents(roles: Iterable[Role]) -> list[Role]:
    """Return roles after those that they stand upon."""
    parents = [ROLES[role.upon] for role in roles if role.upon is not None]
    return list(dict.fromkeys([*parents, *roles]))


def _save(archive: Archive, names: Sequence[tuple[str, str]], docker: Docker) -> None:
    """Write an archive aside and move it into its place, so that half of one is never found there."""
    started = time.monotonic()
    for version, by_input in names:
        docker.tag(by_input, version)  # Another checkout may have built this version since.
    aside = archive.path.with_suffix(".new")
    try:
        docker.save([name for pair in names for name in pair], aside)
        aside.replace(archive.path)
    finally:
        aside.unlink(missing_ok=True)
    size = archive.path.stat().st_size // _MEGABYTE
    _LOG.info("%s: %d MB, %.0f s", archive.path, size, time.monotonic() - started)


def _base(settings: Settings, docker: Docker) -> dict[str, str]:
    """Return the argument that names the Python image: one of Debian packages where the usual one cannot be had."""
    if "PYTHON_IMAGE" in settings.arguments or docker.has(_PUBLIC_BASE) or docker.pull(_PUBLIC_BASE):
        return {}
    script = settings.repository / "hack" / "images" / "base.sh"
    own = f"finetuning-base:{_digest([script.read_text(encoding='utf-8')])}"
    if not docker.has(own):
        _LOG.info("%s cannot be pulled; making %s of Debian packages (a minute) ...", _PUBLIC_BASE, own)
        environment = {**docker.environment, "DOCKER": docker.program}
        if subprocess.run([str(script), own], env=environment, check=False).returncode != 0:
            hint = "Name another: BUILD_ARGS=PYTHON_IMAGE=..."
            raise ImageError(f"{_PUBLIC_BASE} cannot be pulled, and {script.name} failed. {hint}")
    return {"PYTHON_IMAGE": own}


def _remove_former(settings: Settings, docker: Docker) -> None:
    """Remove images of former inputs, and stages of builds that are old; for a daemon that nobody else uses."""
    roles = [*ROLES.values(), SITE]
    current = {name for role in roles for name in image_names(role, settings)}
    found = [name for role in roles for name in docker.names(f"{settings.name(role)}:in-*")]
    docker.remove(*(name for name in found if name not in current))
    docker.remove_unused(older_than=_UNUSED_AFTER)


def remove_former_archives(current: Mapping[str, Archive]) -> None:
    """Remove archives of former inputs, but for the latest of each group."""
    for group, archive in current.items():
        former = [path for path in archive.path.parent.glob(f"{group}-*.tar") if path != archive.path]
        former.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in former[_KEPT - 1 :]:
            path.unlink()
        if archive.path.exists():
            os.utime(archive.path)
