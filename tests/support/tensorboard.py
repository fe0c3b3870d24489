"""The real TensorBoard, asked as its page in a browser asks it."""

import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpx
from tests.support.processes import wait_until

_ADDRESS = re.compile(r"at (http://\S+?)/? ")
Curve = list[tuple[int, float]]
"""(step, value) of every point."""


@dataclass
class TensorBoard:
    """A TensorBoard that answers."""

    process: "subprocess.Popen[str]"
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        found = _ADDRESS.search("".join(self.log))
        return found.group(1) if found else ""

    def ask(self, path: str, **query: str) -> Any:  # noqa: ANN401  (JSON)
        answer = httpx.get(f"{self.url}{path}?{urlencode(query)}", trust_env=False)
        return answer.raise_for_status().json()

    def tags(self) -> Mapping[str, Sequence[str]]:
        """Return the names of the curves, by run."""
        return {run: sorted(tags) for run, tags in self.ask("/data/plugin/scalars/tags").items()}

    def curve(self, tag: str) -> Curve:
        """Return a curve of the only run."""
        return [(step, value) for _, step, value in self.ask("/data/plugin/scalars/scalars", run=".", tag=tag)]


@contextmanager
def tensorboard(*command: str) -> Iterator[TensorBoard]:
    """Start a command that becomes TensorBoard on a port of its choice, and end it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        started = TensorBoard(process)
        assert process.stdout is not None
        reader = threading.Thread(target=started.log.extend, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            wait_until(lambda: bool(started.url) or process.poll() is not None, what="TensorBoard tells its address")
            assert process.poll() is None, "".join(started.log)
            yield started
        finally:
            process.terminate()
            process.wait()
            reader.join()
