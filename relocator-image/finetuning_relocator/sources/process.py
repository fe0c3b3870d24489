"""Clients that are programs: run under the same watch as everything else."""

import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
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
    seen = _size(folder)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                now = _size(folder)
                yield max(0, now - seen)
                seen = max(seen, now)
        finally:
            _end(process)
    yield max(0, _size(folder) - seen)
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


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; files come and go while it is read."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
