"""Leader election on a real Lease, with real processes."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from tests.cluster.test_api import ask
from tests.support import lease_holder
from tests.support.cluster import Cluster
from tests.support.operator_process import ACCOUNT, OPERATOR_NAMESPACE, Identity
from tests.support.processes import REPOSITORY, environment, wait_until

from finetuning_operator.cluster.api import ClusterApi
from finetuning_operator.cluster.lease import Leadership

PROGRAM = REPOSITORY / "tests" / "support" / "lease_holder.py"


@contextmanager
def holder(kubeconfig: Path, namespace: str, identity: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(PROGRAM), str(kubeconfig), namespace, identity]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def says(process: subprocess.Popen[str]) -> str:
    output: IO[str] | None = process.stdout
    assert output is not None
    return output.readline().strip()


def writes_of(cluster: Cluster, namespace: str, identity: str) -> int:
    return int(cluster.get("Service", identity, namespace)["metadata"].get("annotations", {}).get("count", 0))


def lease_of(cluster: Cluster, namespace: str) -> dict[str, Any]:
    spec: dict[str, Any] = cluster.get("Lease", lease_holder.LEASE, namespace)["spec"]
    return spec


@pytest.fixture
def services(cluster: Cluster, namespace: str) -> str:
    """A namespace with a Service for each of two replicas, on which they leave their marks."""
    for name in ("first", "second"):
        ports = [{"port": 80}]
        metadata = {"name": name, "namespace": namespace}
        cluster.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}})
    return namespace


def test_a_frozen_leader_writes_nothing_after_another_took_over(cluster: Cluster, services: str) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(holder(cluster.kubeconfig, services, "first"))
        assert says(first) == "leading"
        second = stack.enter_context(holder(cluster.kubeconfig, services, "second"))
        wait_until(lambda: writes_of(cluster, services, "first") > 1, what="the leader writes")

        first.send_signal(signal.SIGSTOP)
        assert says(second) == "leading"
        before = writes_of(cluster, services, "first")
        first.send_signal(signal.SIGCONT)

        assert says(first) == "stopped"
        assert first.wait(timeout=60) == 0
        # What was on its way out of the process when it froze goes out; nothing else does.
        assert writes_of(cluster, services, "first") - before <= 1
        spec = lease_of(cluster, services)
        assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("second", 2)


def test_a_killed_leader_is_followed_when_its_time_is_over(cluster: Cluster, services: str) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(holder(cluster.kubeconfig, services, "first"))
        assert says(first) == "leading"
        second = stack.enter_context(holder(cluster.kubeconfig, services, "second"))

        first.kill()

        assert says(second) == "leading"
        wait_until(lambda: writes_of(cluster, services, "second") > 0, what="the follower writes")


def test_a_released_lease_is_taken_at_once_and_people_can_read_it(
    cluster: Cluster, namespace: str, operator_identity: Identity, tmp_path: Path
) -> None:
    # The chart gives the right to a Lease in the operator's own namespace alone.
    account = f"--serviceaccount={OPERATOR_NAMESPACE}:{ACCOUNT}"
    rights = ("--verb=get,create,patch", "--resource=leases.coordination.k8s.io")
    cluster.kubectl("create", "role", "leader", *rights, "-n", namespace)
    cluster.kubectl("create", "rolebinding", "leader", "--role=leader", account, "-n", namespace)
    kubeconfig = operator_identity.write_kubeconfig(tmp_path / "operator")
    told: list[str] = []

    async def lead_and_leave(api: ClusterApi) -> None:
        leadership = Leadership(api, namespace=namespace, name=lease_holder.LEASE, identity="first")

        def tell() -> None:
            told.append(cluster.kubectl("get", "lease", lease_holder.LEASE, "-n", namespace, "--no-headers").stdout)
            raise _LeavingError

        with pytest.raises(_LeavingError):
            await leadership.run(tell)
        assert leadership.held()
        await leadership.release()
        assert not leadership.held()

    for _run in range(2):
        ask(kubeconfig, lead_and_leave)

    assert [line.split()[:2] for line in told] == [[lease_holder.LEASE, "first"]] * 2
    spec = lease_of(cluster, namespace)
    assert "holderIdentity" not in spec
    assert (spec["leaseTransitions"], spec["leaseDurationSeconds"]) == (2, 15)


class _LeavingError(Exception):
    """The test has seen enough."""
