"""Components of the machine that a test needs."""

import os
import shutil

import pytest


def require_program(name: str, *, install: str) -> str:
    """Return the path of a program. Where it is missing, CI fails with the command that installs it; others skip."""
    found = shutil.which(name)
    if found is not None:
        return found
    message = f"{name} is not installed; as root: {install}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
