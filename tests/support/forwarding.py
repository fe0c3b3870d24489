"""Ports of a cluster on this machine, as a user forwards them."""

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.cluster import Cluster
from tests.support.processes import wait_until

_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A port of the cluster on this machine."""

    port: int
    process: subprocess.Popen[str] = field(repr=False)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def forwarded(cluster: Cluster, namespace: str, target: str, port: int) -> Iterator[Forwarded]:
    """Forward a port of a pod or of a Service (``svc/name``) while the block runs."""
    command = [str(cluster.program), f"--kubeconfig={cluster.kubeconfig}", "port-forward", "-n", namespace]
    process = subprocess.Popen(
        [*command, target, f":{port}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    told: list[str] = []
    thread = threading.Thread(target=_read, args=(process, told), daemon=True)
    thread.start()
    try:
        wait_until(lambda: bool(_port(told)) or process.poll() is not None, seconds=30, what=f"a way to {target}")
        assert _port(told), f"kubectl port-forward {target} {port}: {''.join(told)}"
        yield Forwarded(_port(told), process)
    finally:
        process.terminate()
        process.wait(10)


def _read(process: subprocess.Popen[str], told: list[str]) -> None:
    """Keep what a process says, to its end: a full pipe would stop it."""
    assert process.stdout is not None
    for line in process.stdout:
        told.append(line)  # noqa: PERF402  (others look at the list while it grows)


def _port(told: list[str]) -> int:
    found = _FORWARDING.search("".join(told))
    return int(found.group(1)) if found else 0
