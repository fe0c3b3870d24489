"""Fixtures of all tests that need a Kubernetes API: one control plane for everybody, namespaces for each."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hack.cluster import client
from hack.cluster.binaries import BuildError, require_binaries
from hack.cluster.plane import Running
from tests.support.api_proxy import ApiProxy
from tests.support.cluster import Cluster, install_definitions, temporary_namespace
from tests.support.operator_process import Identity, OperatorProcess, running_operator
from tests.support.private_plane import PrivatePlane
from tests.support.processes import REPOSITORY

RunOperator = Callable[..., OperatorProcess]
_FAKE_NODE = "kwok.x-k8s.io/node"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with fake nodes and our definitions, as its administrator sees it; workers share one.

    KUBECONFIG names one that runs already (``make cluster-up``), and saves its start.
    """
    named = os.environ.get("KUBECONFIG")
    with ExitStack() as stack:
        if named:
            found = _connect_to(Path(named))
        else:
            _require_programs()
            found = _connect(stack.enter_context(client.use(_shared_folder(tmp_path_factory))))
        install_definitions(found, REPOSITORY / "crds")
        yield found


@pytest.fixture(scope="module")
def private_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePlane]:
    """A control plane whose components a test may end, freeze and start again."""
    _require_programs()
    with client.use(tmp_path_factory.mktemp("private-plane")) as running:
        plane = PrivatePlane(_connect(running), folder=Path(running.kubeconfig).parent)
        install_definitions(plane.cluster, REPOSITORY / "crds")
        yield plane


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace whose pods run until a test plays their end."""
    with temporary_namespace(cluster, "run") as name:
        yield name


@pytest.fixture
def hold_namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace whose pods get a node and then wait for a test to play everything."""
    with temporary_namespace(cluster, "hold") as name:
        yield name


@pytest.fixture
def auto_namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace whose pods of Jobs run and succeed by themselves, at once; those of auto-5s-* take 5 s."""
    with temporary_namespace(cluster, "auto") as name:
        yield name


@pytest.fixture(scope="session")
def operator_identity(cluster: Cluster) -> Identity:
    """The operator's account in the shared cluster, with the rights that the chart gives it."""
    return Identity.install(cluster)


@pytest.fixture
def proxy(cluster: Cluster, tmp_path: Path) -> Iterator[ApiProxy]:
    """A proxy in front of the API server, for ``run_operator(via=proxy)``."""
    folder = tmp_path / "proxy"
    folder.mkdir()
    with ApiProxy(cluster.server, server_ca=cluster.ca, folder=folder, keep_bodies=True) as running:
        yield running


@pytest.fixture
def run_operator(operator_identity: Identity, tmp_path: Path) -> Iterator[RunOperator]:
    """``run_operator(*arguments, env=..., via=proxy)`` starts an operator; all end with the test."""
    with ExitStack() as stack:

        def run(*arguments: str, env: dict[str, str] | None = None, via: ApiProxy | None = None) -> OperatorProcess:
            operator = running_operator(operator_identity, *arguments, folder=tmp_path, env=env, via=via)
            return stack.enter_context(operator)

        yield run


@pytest.fixture
def operator(run_operator: RunOperator, namespace: str) -> OperatorProcess:
    """An operator for the namespace of a test, which tells soon."""
    running = run_operator(env={"FINETUNING_NAMESPACES": namespace, "FINETUNING_STATUS_DELAY": "0.2"})
    running.wait_ready()
    return running


def _shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Return a folder that is the same for all workers of one session."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "control-plane"


def _connect(running: Running) -> Cluster:
    return Cluster.connect(Path(running.kubeconfig), program=Path(running.kubectl))


def _connect_to(kubeconfig: Path) -> Cluster:
    """Use a cluster that the environment names, but only one that is meant for tests."""
    cluster = Cluster.connect(kubeconfig, program=_require_programs()["kubectl"])
    nodes = cluster.objects("Node")
    if not nodes or any(_FAKE_NODE not in node["metadata"].get("annotations", {}) for node in nodes):
        message = f"KUBECONFIG={kubeconfig} names a cluster with real nodes: these tests play what pods do on fake "
        message += "ones, and change the whole cluster. Unset KUBECONFIG, or use that of `make cluster-up`."
        pytest.fail(message, pytrace=False)
    return cluster


def _require_programs() -> dict[str, Path]:
    try:
        return require_binaries()
    except BuildError as error:
        missing = str(error)
    pytest.fail(missing, pytrace=False)
