"""The operator as a process of its own: started, frozen, killed and looked at like the one in a cluster."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from hack.cluster.components import kubeconfig_text
from tests.support.api_proxy import ApiProxy
from tests.support.chart import rendered
from tests.support.cluster import Cluster
from tests.support.processes import REPOSITORY, wait_until

OPERATOR_NAMESPACE = "finetuning-system"
ACCOUNT = "finetuning-operator"
BINDING = f"{OPERATOR_NAMESPACE}-{ACCOUNT}"
"""ClusterRoleBinding of the account."""
_OF_AN_IDENTITY = frozenset({"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"})
_LAUNCHER = REPOSITORY / "hack" / "cluster" / "launch.py"
_TOKEN_SECONDS = 24 * 3600
_READY_SECONDS = 60
_STOP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Identity:
    """The operator's service account, with exactly the rights that an installation gives it."""

    server: str
    ca: Path
    token: str

    @classmethod
    def install(cls, cluster: Cluster) -> "Identity":
        """Make the account with the roles of the chart, and a token; to do so again changes nothing."""
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE}})
        # With everything switched on that needs rights of its own.
        values = {"crds": {"enabled": False}, "serving": {"wakePort": 8090}}
        objects = rendered(ACCOUNT, OPERATOR_NAMESPACE, values)
        cluster.apply(*[each for each in objects if each["kind"] in _OF_AN_IDENTITY])
        return cls.of(cluster, ACCOUNT, OPERATOR_NAMESPACE)

    @classmethod
    def of(cls, cluster: Cluster, account: str, namespace: str) -> "Identity":
        """Return an account with a new token."""
        path = cluster.path("ServiceAccount", account, namespace=namespace, subresource="token")
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": _TOKEN_SECONDS},
        }
        made = cluster.request("POST", path, body=asked, content_type="application/json")
        return cls(server=cluster.server, ca=cluster.ca, token=made["status"]["token"])

    def write_kubeconfig(self, path: Path, *, via: ApiProxy | None = None) -> Path:
        """Write a kubeconfig of the operator, for the API server itself or through a proxy."""
        server, ca = (self.server, self.ca) if via is None else (via.url, via.ca)
        path.touch(mode=0o600)
        path.write_text(kubeconfig_text(server=server, ca=ca, user={"token": self.token}))
        return path


@dataclass(slots=True)
class OperatorProcess:
    """A running operator."""

    process: subprocess.Popen[bytes]
    log: Path
    health_url: str
    environment: Mapping[str, str] = field(repr=False)

    @property
    def logs(self) -> str:
        """Everything that it wrote so far."""
        return self.log.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self.process.poll()

    def wait_ready(self, *, seconds: float = _READY_SECONDS) -> None:
        """Return as soon as /readyz says yes; fail with the log when the process ends before."""

        def is_ready() -> bool:
            assert self.exit_code is None, f"the operator ended with {self.exit_code}:\n{self.logs[-4000:]}"
            return self.is_ready()

        try:
            wait_until(is_ready, seconds=seconds, what="the operator is ready")
        except AssertionError as error:
            error.add_note(self.logs[-4000:])
            raise

    def is_ready(self) -> bool:
        """Whether /readyz says yes now."""
        return self.answer("/readyz") is not None

    def answer(self, path: str) -> str | None:
        """Return what the health port answers, or None when that is no success."""
        try:
            answer = httpx.get(self.health_url + path, timeout=5)
        except httpx.TransportError:
            return None
        return answer.text if answer.is_success else None

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum over all series of a metric that have these labels; 0 when there is none."""
        pattern = re.compile(rf"^{re.escape(name)}(?:\{{(?P<labels>.*)\}})? (?P<value>\S+)$", re.MULTILINE)
        found = pattern.finditer(self.answer("/metrics") or "")
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        return sum(float(each["value"]) for each in found if all(want in (each["labels"] or "") for want in wanted))

    def stop(self, *, seconds: float = _STOP_SECONDS) -> int:
        """Ask it to end, as kubelet does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it without a warning."""
        self.process.kill()
        self.process.wait(_STOP_SECONDS)

    def freeze(self) -> None:
        """Let it stand still; its connections stay open."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after ``freeze``."""
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def running_operator(
    identity: Identity,
    *arguments: str,
    folder: Path,
    env: Mapping[str, str] | None = None,
    via: ApiProxy | None = None,
) -> Iterator[OperatorProcess]:
    """Run ``python -m finetuning_operator.main`` with the operator's own rights; it ends with the block.

    Leader election has a Lease of its own unless ``env`` says otherwise, so that tests which share a cluster do not
    wait for one another; ``env`` should name the namespaces to serve (FINETUNING_NAMESPACES) for the same reason.
    """
    name = f"operator-{secrets.token_hex(4)}"
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FINETUNING_")},
        "KUBECONFIG": str(identity.write_kubeconfig(folder / f"{name}.kubeconfig", via=via)),
        "FINETUNING_HEALTH_PORT": str(port),
        "FINETUNING_LEASE_NAME": name,
        **(env or {}),
    }
    program = [sys.executable, "-m", "finetuning_operator.main", *arguments]
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *program],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield OperatorProcess(process, log=log, health_url=f"http://127.0.0.1:{port}", environment=environment)
    finally:
        process.kill()
        process.wait(_STOP_SECONDS)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
    return port
