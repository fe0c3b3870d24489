"""What an image is built from, as a tag: equal input, equal tag, on every machine and without a container runtime."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from hack.images.settings import ROLES, WHEELS, Role, Settings

_COPY = re.compile(r"^COPY (?!--)(?P<sources>.+) \S+$", re.MULTILINE)
_BASE_SCRIPT = "hack/images/base.sh"
_PROJECT = "pyproject.toml"
_DIGITS = 12


def input_tag(role: Role, settings: Settings) -> str:
    """Return the tag of an image: a digest of its Dockerfile, what that copies, the arguments, and its parent."""
    parent = input_tag(ROLES[role.upon], settings) if role.upon is not None else ""
    arguments = [f"{name}={value}" for name, value in sorted(settings.arguments.items())]
    files = [f"{_sha256(file)} {file.relative_to(settings.repository)}" for file in input_files(role, settings)]
    words = "\n".join([role.name, settings.torch, parent, *arguments, *files])
    return f"in-{hashlib.sha256(words.encode()).hexdigest()[:_DIGITS]}"


def input_files(role: Role, settings: Settings) -> list[Path]:
    """Return the files that decide what an image is: what its Dockerfile names, and the script of the base image."""
    dockerfile = settings.repository / role.dockerfile
    own = [dockerfile] if role.upon is not None else [dockerfile, settings.repository / _BASE_SCRIPT]
    copied = [settings.repository / source for source in _sources(dockerfile.read_text(encoding="utf-8"), settings)]
    return sorted({*own, *(file for source in copied for file in _files(source))})


@contextmanager
def frozen(roles: Iterable[Role], settings: Settings) -> Iterator[Settings]:
    """Lend settings for a copy of all inputs, with nothing beside them: who edits during a build edits the next one."""
    with tempfile.TemporaryDirectory(prefix="finetuning-images-") as folder:
        parents = [ROLES[role.upon] for role in roles if role.upon is not None]
        inputs = {file for role in (*parents, *roles) for file in input_files(role, settings)}
        for file in sorted({*inputs, settings.repository / _PROJECT}):
            copy = Path(folder) / file.relative_to(settings.repository)
            copy.parent.mkdir(parents=True, exist_ok=True)
            _copy(file, copy)
        yield replace(settings, repository=Path(folder))


def _copy(file: Path, copy: Path) -> None:
    """Copy a file; wheels, which are large and never edited, are linked where that works."""
    if file.suffix == ".whl":
        try:
            os.link(file, copy)
        except OSError:
            pass
        else:
            return
    shutil.copy2(file, copy)


def _sources(dockerfile: str, settings: Settings) -> Iterator[str]:
    """Yield the paths that a Dockerfile copies from its context."""
    for line in _COPY.finditer(dockerfile):
        for source in line["sources"].split():
            yield source.replace(f"${{{WHEELS}}}", settings.wheels)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is copied into an image, and is not there")
    return [file for file in source.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def _sha256(file: Path) -> str:
    status = file.stat()
    return _digest(file, status.st_mtime_ns, status.st_size)


@cache
def _digest(file: Path, changed: int, size: int) -> str:
    """Return the digest of a file; wheels are large and belong to several images."""
    del changed, size  # Another state of the file is another question.
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
