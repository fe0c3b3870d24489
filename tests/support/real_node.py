"""A cluster whose node runs containers: the one of hack/cluster, or any that KUBECONFIG names."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hack.cluster import client
from hack.cluster.binaries import NODE, PLANE, BuildError, Module, require_binaries
from hack.cluster.machine import Held, Machine, missing_means, needs_root
from hack.cluster.node import REGISTRY_PORT
from hack.cluster.plane import Running
from tests.support.chart import Values, helm
from tests.support.cluster import Cluster, has_condition
from tests.support.needs import lacks_right
from tests.support.processes import wait_until


@dataclass(frozen=True, slots=True)
class RealNode:
    """A cluster under test, as its administrator reaches it."""

    kubeconfig: Path
    kubectl_program: Path
    folder: Path | None
    """State of a node of ours; None where the cluster is somebody else's."""

    @property
    def registry(self) -> str | None:
        """Address of a registry that both this process and the cluster reach, by plain http; None if there is none."""
        return None if self.folder is None else f"{Machine(self._held().number).address}:{REGISTRY_PORT}"

    def require_own(self) -> Path:
        """Return the state of a node of ours. A test that needs one is skipped elsewhere."""
        if self.folder is None:
            pytest.skip("the cluster of KUBECONFIG is no node of ours: it is not to be taken apart")
        return self.folder

    def load_image(self, archive: Path) -> None:
        """Give the node an image, as ``docker save`` writes it. Other clusters pull theirs."""
        if self.folder is not None:
            self._held().load_image(archive)

    def publish(self, image: str, name: str) -> str:
        """Bring an image that our node has to its registry; return the name that pods pull it by."""
        reference = f"{self.registry}/{name}"
        for words in (("tag", "--force", image, reference), ("push", "--plain-http", reference), ("rm", reference)):
            self._run("ctr", "--namespace=k8s.io", "images", *words)
        return reference

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl against the cluster, with a text as its standard input."""
        return self.connect().kubectl(*arguments, stdin=stdin, check=check)

    def helm(self, *arguments: str, values: Values | None = None) -> subprocess.CompletedProcess[str]:
        """Run helm against the cluster."""
        return helm(*arguments, kubeconfig=self.kubeconfig, values=values)

    def connect(self) -> Cluster:
        """Return the cluster's API."""
        # A real node takes seconds for most things: a look at it fifty times a second would be most of its work.
        return Cluster.connect(self.kubeconfig, program=self.kubectl_program, pause_seconds=0.2)

    def restart(self, component: str) -> None:
        """End a component of our node at once; return when its successor runs."""
        before = self._process(component)
        self._signal(component, "KILL")
        wait_until(lambda: self._process(component) != before, what=f"{component} runs again")

    @contextmanager
    def without(self, component: str) -> Iterator[None]:
        """End a component of our node, and let it be away while the block runs."""
        down = self.require_own() / "down"
        down.mkdir(exist_ok=True)
        before = self._process(component)
        (down / component).touch()
        try:
            self._signal(component, "TERM")
            yield
        finally:
            (down / component).unlink()
        wait_until(lambda: self._process(component) != before, what=f"{component} runs again")

    @contextmanager
    def without_kubelet(self) -> Iterator[None]:
        """Let the node have no kubelet while the block runs; return when the new one says that it is ready."""
        cluster = self.connect()

        def heartbeats() -> list[str]:
            return [lease["spec"]["renewTime"] for lease in cluster.objects("Lease", "kube-node-lease")]

        with self.without("kubelet"):
            yield
            last = heartbeats()
        cluster.wait_for(lambda: heartbeats() != last, what="the kubelet says that it lives")
        nodes = partial(cluster.objects, "Node")
        cluster.wait_for(lambda: all(has_condition(node, "Ready") for node in nodes()), what="the node is ready")

    def _signal(self, component: str, name: str) -> None:
        self._run("kill", f"-{name}", str(self._process(component)))

    def _run(self, *command: str) -> None:
        """Run a command on our node."""
        done = subprocess.run(self._held().command(*command), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"

    def _process(self, component: str) -> int:
        """Return the process of a component, as the node numbers it."""
        running = Running.find(self.require_own())
        assert running is not None, "the node is gone"
        return running.components[component]

    def _held(self) -> Held:
        held = Held.find(self.require_own())
        assert held is not None, "the node is gone"
        return held


@contextmanager
def real_node(folder: Path) -> Iterator[RealNode]:
    """Lend the cluster that KUBECONFIG names, else a node of our own that lives in a folder.

    FINETUNING_NODE names the folder of one that runs already (``make node-up``), and saves its start.
    """
    if (workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) != "1" and _is_named():
        message = f"{workers} workers would install and remove the same things in one cluster: run pytest with -n 0"
        pytest.fail(message, pytrace=False)
    if named := os.environ.get("KUBECONFIG"):
        folder = Path(named).resolve().parent
        own = folder if Held.find(folder) else None  # Somebody may well name the one that `make node-up` started.
        yield RealNode(Path(named), kubectl_program=_require_programs(PLANE)["kubectl"], folder=own)
        return
    if means := missing_means():
        pytest.fail(means, pytrace=False)
    if needs_root():
        lacks_right("a node of our own needs root on Linux: it makes namespaces, mounts and cgroups")
    _require_programs((*PLANE, *NODE))
    own = Path(os.environ.get("FINETUNING_NODE", folder)).resolve()
    with client.use(own, holder=client.HOLD_NODE) as running:
        yield RealNode(Path(running.kubeconfig), kubectl_program=Path(running.kubectl), folder=own)


def _is_named() -> bool:
    """Whether there is one cluster for all: else each worker has a node of its own."""
    return any(os.environ.get(name) for name in ("KUBECONFIG", "FINETUNING_NODE"))


def _require_programs(modules: tuple[Module, ...]) -> dict[str, Path]:
    try:
        return require_binaries(modules)
    except BuildError as error:
        missing = str(error)
    pytest.fail(missing, pytrace=False)
