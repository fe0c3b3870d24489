"""Components of the machine that a test needs."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest


def require_program(name: str, *, install: str) -> str:
    """Return the path of a program. Where it is missing, say how to install it."""
    found = shutil.which(name)
    if found is None:
        _do_without(f"{name} is not installed; as root: {install}")
    return found


@contextmanager
def small_disk(place: Path, *options: str) -> Iterator[Path]:
    """Mount a file system of its own on a folder, for example with ``size=3m``."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        _do_without(f"needs the right to mount a tmpfs (root on Linux): {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _do_without(message: str) -> NoReturn:
    """Fail in CI, which is root on Linux and installs what tests need; elsewhere skip and say why."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
