"""A control plane of a test's own: its components can be ended and frozen."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from hack.cluster.plane import Running
from tests.support.cluster import Cluster, Refused
from tests.support.processes import wait_until


@dataclass(frozen=True, slots=True)
class PrivatePlane:
    """A cluster and the processes that make it."""

    cluster: Cluster
    folder: Path

    def restart(self, component: str) -> None:
        """End a component at once; return when its successor runs and the API answers."""
        before = self._process(component)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: self._process(component) != before, what=f"{component} runs again")
        wait_until(self._api_answers, what="the API answers again")

    @contextmanager
    def frozen(self, component: str) -> Iterator[None]:
        """Let a component stand still within a block; its connections stay open."""
        process = self._process(component)
        os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process, signal.SIGCONT)

    def _process(self, component: str) -> int:
        running = Running.find(self.folder)
        assert running is not None, "the control plane is gone"
        return running.components[component]

    def _api_answers(self) -> bool:
        try:
            return self.cluster.request("GET", "/readyz") == {"text": "ok"}
        except (httpx.TransportError, Refused):
            return False
