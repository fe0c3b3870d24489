"""Clients that are programs: run under the same watch as everything else."""

import os
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_POLL_SECONDS = 0.1
_STOP_SECONDS = 5.0


class ClientFailed(Exception):
    """A client program ended with an error; ``output`` is what it said."""

    def __init__(self, output: str) -> None:
        super().__init__(output[-2000:])
        self.output = output


def run_client(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
) -> Generator[int, None, None]:
    """Run a program that fills a folder; yields how much the folder grew since the last time, zero included.

    The program is ended when the iterator is closed. Raises ClientFailed with its output.
    """
    seen = folder_bytes(folder)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                now = folder_bytes(folder)
                yield max(0, now - seen)
                seen = max(seen, now)
        finally:
            _end(process)
    yield max(0, folder_bytes(folder) - seen)
    if process.returncode != 0:
        raise ClientFailed(log.read_text(errors="replace"))


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; files and folders come and go while it is read."""
    total = 0
    # Path.rglob raises where a folder goes between its listing and its visit (Python 3.11); os.walk passes over it.
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total
