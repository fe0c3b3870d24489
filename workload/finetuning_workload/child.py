"""Running code of a user's as a child: its output goes to this program's log, and a request to stop goes on to it."""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO

from finetuning_api.runconfig import RUN_CONFIG_ENV, TERMINATION_LOG_ENV
from finetuning_workload.program import StopFlag

_LOOK_SECONDS = 0.2
_LINGERING_SECONDS = 5.0
_LAST_BYTES = 4096
_LONGEST_LINE = 500
_PRIVATE = (RUN_CONFIG_ENV, TERMINATION_LOG_ENV)
"""Of the environment of a program, what is not for its children."""


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """How a child ended."""

    code: int
    """Its exit code, or less than 0: the signal that killed it."""
    last_line: str
    """The last line that it wrote which is not blank."""

    @property
    def told(self) -> str:
        """The end in words."""
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"ended with exit code {self.code}"
        return f"{how}{f': {self.last_line}' if self.last_line else ''}"


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that a child may see."""
    return {name: value for name, value in environment.items() if name not in _PRIVATE}


def run_child(
    command: Sequence[str], *, name: str, folder: str, environment: Mapping[str, str], stop: StopFlag
) -> ChildEnd:
    """Run a command in a folder to its end. Raises Interrupted when this program is asked to stop meanwhile."""
    last = bytearray()
    with subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    ) as process:
        telling = threading.Thread(target=_tell, args=(process.stdout, last), daemon=True)
        telling.start()
        while process.poll() is None and not stop.wait(_LOOK_SECONDS):
            pass
        if process.poll() is None:
            process.terminate()
        code = process.wait()
        # What it started may hold its output open for longer than it lives.
        telling.join(_LINGERING_SECONDS)
    # Also where it ended well: what it left may be half of its work.
    stop.raise_if_set(f"{name} was asked to stop")
    return ChildEnd(code, _last_line(bytes(last)))


def _tell(output: IO[bytes] | None, last: bytearray) -> None:
    """Write what the child writes to the log of this program, and remember its end."""
    for chunk in iter(partial(os.read, output.fileno(), _LAST_BYTES) if output else bytes, b""):
        last += chunk
        del last[:-_LAST_BYTES]
        sys.stderr.buffer.write(chunk)
        sys.stderr.buffer.flush()


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip()[:_LONGEST_LINE] for line in reversed(lines) if line.strip()), "")
