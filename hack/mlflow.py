"""The MLflow server that tests write to. ``python -m hack.mlflow`` installs it, once per machine and version."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

VERSION: Final = "3.17.2"
_COMPLETE: Final = "complete"


class NotInstalledError(Exception):
    """MLflow is not there; the message names the command that installs it."""


def require() -> Path:
    """Return the interpreter that has MLflow: it has its own environment, because it wants much that we do not.

    Raises NotInstalledError.
    """
    place = _place()
    if not (place / _COMPLETE).exists():
        message = f"MLflow {VERSION} is not installed. Run `make mlflow` (a minute or two, once per machine)."
        raise NotInstalledError(message)
    return place / "bin" / "python"


def install() -> None:
    """Install it where it is not. Two installations at once wait for one another."""
    place = _place()
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (place / _COMPLETE).exists():
            return
        shutil.rmtree(place, ignore_errors=True)  # Of an installation that was killed.
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip, wanted = place / "bin" / "pip", f"mlflow[auth]=={VERSION}"
        subprocess.run([pip, "install", "-q", "--only-binary", ":all:", wanted], check=True)
        (place / _COMPLETE).touch()


def _place() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "finetuning-operator" / f"mlflow-{VERSION}"


if __name__ == "__main__":
    install()
