"""Processes under test: started, waited for by what they do, and looked for after their end."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FINETUNE = Path(sys.executable).with_name("finetune")


def wait_until(condition: Callable[[], bool], *, seconds: float = 120, what: str, pause_seconds: float = 0.02) -> None:
    """Return as soon as a condition holds; fail when it does not within a time that no healthy run needs."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            message = f"not within {seconds} s: {what}"
            raise AssertionError(message)
        pause.wait(pause_seconds)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a process that can import the tests' support."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **(extra or {})}


def start(*command: str | Path, cwd: Path, extra: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a process in a group of its own, as a terminal would."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def finetune(
    folder: Path, *arguments: str, extra: Mapping[str, str] | None = None, seconds: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run our command in a folder to its end, and return what it printed."""
    command = [str(FINETUNE), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(extra), capture_output=True, text=True, timeout=seconds, check=False
    )


def processes_of(state: Path) -> list[int]:
    """Return the processes that work below a state folder, by the environment of each."""
    mark = str(state).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                content = (entry / "environ").read_bytes()
            except OSError:
                continue
            if b"FINETUNING_RUN_CONFIG=" + mark in content:
                found.append(int(entry.name))
    return found
