"""Starting, finding and ending a control plane that a process of its own holds."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hack.cluster.plane import Running, StartError, is_alive, remove_data

_HOLD = "hold"
"""The command that holds a control plane with fake nodes."""
HOLD_NODE = "hold-node"
_REPOSITORY = Path(__file__).parents[2]
_START_SECONDS = 180
_STOP_SECONDS = 300  # On a busy machine a node that had images was seen to need more than 90.


def start(folder: Path, *, while_used: bool = False, holder: str = _HOLD) -> Running:
    """Return the cluster of a folder; start it when none is there. Two that start at once share one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "starting").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = Running.find(folder)
        return found if found is not None else _start(folder, while_used=while_used, holder=holder)


@contextmanager
def use(folder: Path, *, holder: str = _HOLD) -> Iterator[Running]:
    """Share the cluster of a folder; it ends with the last process that uses it, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield start(folder, while_used=True, holder=holder)


def stop(folder: Path) -> bool:
    """End the control plane of a folder and remove the folder; return whether there was one."""
    found = Running.find(folder)
    if found is not None:
        os.kill(found.supervisor, signal.SIGTERM)
        _wait(lambda: not is_alive(found.supervisor), seconds=_STOP_SECONDS, what="the control plane ends")
    elif not (folder / "supervisor.log").exists():
        return False  # Not a folder of ours.
    remove_data(folder)
    shutil.rmtree(folder)
    return True


def _start(folder: Path, *, while_used: bool, holder: str) -> Running:
    command = [sys.executable, "-m", "hack.cluster", holder, "--state", str(folder)]
    with (folder / "supervisor.log").open("wb") as log:
        child = subprocess.Popen(
            [*command, "--while-used"] if while_used else command,
            cwd=_REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # It outlives the process that happened to need it first.
        )

    def is_settled() -> bool:
        return Running.find(folder) is not None or child.poll() is not None

    _wait(is_settled, seconds=_START_SECONDS, what="the control plane starts")
    found = Running.find(folder)
    if found is None:
        raise StartError((folder / "supervisor.log").read_text().strip())
    return found


def _wait(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise StartError(f"not within {seconds} s: {what}")
        pause.wait(0.05)
