"""What packages an image holds, read from its files: nothing in it is run."""

import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from enum import StrEnum
from typing import IO

_PYTHON = re.compile(r"(^|/)(site|dist)-packages/[^/]+\.dist-info/METADATA$")
_DEBIAN = re.compile(r"^var/lib/dpkg/(status|status\.d/[^/]+)$")
_INSTALLED = "install ok installed"


class Origin(StrEnum):
    """Who made a package, as package URLs call it."""

    PYTHON = "pypi"
    DEBIAN = "deb"


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One package in an image."""

    origin: Origin
    name: str
    version: str
    license: str = ""
    """An SPDX expression, where the package tells one."""
    architecture: str = ""


def packages(file_system: IO[bytes]) -> list[Package]:
    """Return what is installed in a file system, which comes as a tar stream."""
    found: set[Package] = set()
    with tarfile.open(fileobj=file_system, mode="r|") as members:
        for member in members:
            name = member.name.removeprefix("./")
            if member.isfile() and (_PYTHON.search(name) or _DEBIAN.search(name)):
                content = members.extractfile(member)
                text = content.read().decode(errors="replace") if content is not None else ""
                found.update(_debian(text) if _DEBIAN.search(name) else [_python(text)])
    return sorted(found)


def _python(metadata: str) -> Package:
    told = HeaderParser().parsestr(metadata)
    name = re.sub(r"[-_.]+", "-", _field(told, "Name")).lower()
    return Package(Origin.PYTHON, name, _field(told, "Version"), license=_field(told, "License-Expression"))


def _debian(status: str) -> Iterator[Package]:
    paragraphs: Iterable[str] = re.split(r"\n\s*\n", status.strip())
    for paragraph in paragraphs:
        told = HeaderParser().parsestr(paragraph)
        if _field(told, "Package") and _field(told, "Status") in {_INSTALLED, ""}:  # status.d tells no status.
            yield Package(
                Origin.DEBIAN,
                _field(told, "Package"),
                _field(told, "Version"),
                architecture=_field(told, "Architecture"),
            )


def _field(told: Message, name: str) -> str:
    return str(told.get(name, "")).strip()
