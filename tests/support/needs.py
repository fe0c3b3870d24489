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
    """Return the path of a program; fail with the command that installs it."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed; as root: {install}")
    return found


def lacks_right(message: str) -> NoReturn:
    """Skip a test that the user has no right to run; but CI has it, and must not pass without these tests."""
    if os.environ.get("CI"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@contextmanager
def small_disk(place: Path, *options: str) -> Iterator[Path]:
    """Mount a file system of its own on a folder, for example with ``size=3m``."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lacks_right(f"needs the right to mount a tmpfs (root on Linux): {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
