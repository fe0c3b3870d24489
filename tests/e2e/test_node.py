"""The node of our own: what the other tests here take for granted of a cluster, and that nothing of it is left."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
from hack.cluster import client
from hack.cluster.__main__ import main
from hack.cluster.machine import Held, Machine
from hack.cluster.plane import Running, is_alive
from tests.support.cluster import Cluster, Object, Refused, temporary_namespace
from tests.support.pods import restricted_spec
from tests.support.probe import GROUP, IMAGE, PROBE, Probes, last_state, load_probe
from tests.support.processes import wait_until
from tests.support.real_node import RealNode

_PORT = 8080
_WEB = {"app": "web"}
_ASKER = {"app": "asker"}
_KUBELET = 10250
_LEAST_PROCESSES, _LEAST_TRACES = 10, 3
_WHO = f"1000 [0 {GROUP}]\n"
"""User and groups of a probe; the first group is the image's."""


@pytest.fixture(scope="module")
def _probe_is_loaded(node: RealNode, tmp_path_factory: pytest.TempPathFactory) -> None:
    load_probe(node, tmp_path_factory.mktemp("probe"))


@pytest.fixture
def probes(cluster: Cluster, _probe_is_loaded: None) -> Iterator[Probes]:
    """A fresh namespace with Pod Security ``restricted``, for pods of the probe."""
    with temporary_namespace(cluster, "node") as name:
        yield Probes(cluster, name)


def test_a_volume_is_made_on_demand_and_keeps_what_a_job_wrote(probes: Probes) -> None:
    probes.claim("data", "10Mi")
    probes.job("first", "write", "/data/word", "kept", claim="data")
    assert last_state(probes.ended("first"))["exitCode"] == 0

    probes.job("second", "read", "/data/word", claim="data")

    assert last_state(probes.ended("second"))["exitCode"] == 0
    assert probes.logs("job/second") == "kept\n"
    claim = probes.cluster.get("PersistentVolumeClaim", "data", probes.namespace)
    assert claim["status"]["capacity"] == {"storage": "10Mi"}


def test_a_volume_goes_with_its_claim(probes: Probes, node: RealNode) -> None:
    claim = probes.claim("data", "10Mi")
    probes.job("first", "write", "/data/word", "kept", claim="data")
    probes.ended("first")
    volume = probes.cluster.objects("PersistentVolume")
    path = next(Path(each["spec"]["local"]["path"]) for each in volume if _is_of(each, claim["metadata"]["uid"]))
    assert (path / "word").read_text() == "kept"

    probes.cluster.delete(probes.cluster.get("Job", "first", probes.namespace))
    probes.cluster.delete(claim)

    wait_until(lambda: not path.exists(), seconds=30, what="the folder is gone")
    probes.cluster.wait_gone("PersistentVolume", path.name)
    assert node.folder in path.parents


def test_a_limited_volume_is_as_small_as_its_claim(probes: Probes) -> None:
    probes.claim("small", "3Mi", storage_class="finetuning-limited")
    probes.job("fits", "fill", "/data/some", "2", claim="small")
    assert last_state(probes.ended("fits"))["exitCode"] == 0

    probes.job("bursts", "fill", "/data/more", "2", claim="small")

    assert last_state(probes.ended("bursts"))["exitCode"] == 1
    assert "no space left on device" in probes.logs("job/bursts")


def test_pods_run_as_the_user_and_group_that_they_ask_for(probes: Probes) -> None:
    probes.job("who", "who")
    probes.ended("who")
    assert probes.logs("job/who") == _WHO


def test_pods_that_are_not_restricted_are_refused(probes: Probes) -> None:
    spec = {"containers": [{"name": "main", "image": "any", "securityContext": {"privileged": True}}]}
    with pytest.raises(Refused, match="violates PodSecurity"):
        probes.create("Pod", "bold", spec=spec)


def test_a_service_is_found_by_its_name(probes: Probes) -> None:
    probes.pod("web", "serve", f":{_PORT}", "hello", labels=_WEB, port=_PORT)
    probes.service("web", port=_PORT, labels=_WEB)
    probes.pod("asker", "sleep")

    for name in ("web", f"web.{probes.namespace}.svc.cluster.local"):
        probes.cluster.wait_for(partial(_says_hello, probes, name), what=f"{name} answers")


def _says_hello(probes: Probes, name: str) -> bool:
    return probes.asked("asker", "get", f"http://{name}/") == "hello\n"


def test_a_port_of_the_node_is_answered_to_the_host(probes: Probes) -> None:
    probes.pod("web", "serve", f":{_PORT}", "hello", labels=_WEB, port=_PORT)
    service = probes.create(
        "Service", "web", spec={"type": "NodePort", "selector": _WEB, "ports": [{"port": 80, "targetPort": _PORT}]}
    )
    (node,) = probes.cluster.objects("Node")
    address = f"http://{node['status']['addresses'][0]['address']}:{service['spec']['ports'][0]['nodePort']}/"

    def is_answered() -> bool:
        try:
            return httpx.get(address, trust_env=False).text == "hello\n"
        except httpx.TransportError:
            return False

    wait_until(is_answered, seconds=30, what=f"{address} answers")


def test_pods_reach_the_api_and_nothing_outside_of_the_node(probes: Probes, node: RealNode) -> None:
    probes.pod("asker", "sleep")
    host = str(node.registry).rpartition(".")[0] + ".1"
    with _listening_on(host) as port:
        assert probes.asked("asker", "dial", "kubernetes.default.svc:443") == ""
        assert probes.asked("asker", "dial", f"{host}:{port}") is None


def test_egress_is_closed_by_a_policy_and_opened_by_another(probes: Probes, cluster: Cluster) -> None:
    web = probes.pod("web", "serve", f":{_PORT}", "hello", labels=_WEB, port=_PORT)["status"]["podIP"]
    probes.pod("asker", "sleep", labels=_ASKER)
    (node,) = cluster.objects("Node")
    kubelet = f"{node['status']['addresses'][0]['address']}:{_KUBELET}"
    assert probes.asked("asker", "dial", f"{web}:{_PORT}") == ""
    assert probes.asked("asker", "dial", kubelet) == ""

    probes.policy("closed", podSelector={"matchLabels": _ASKER}, policyTypes=["Egress"])

    cluster.wait_for(lambda: probes.asked("asker", "dial", f"{web}:{_PORT}") is None, what="the pod is out of reach")
    assert probes.asked("asker", "dial", kubelet) is None

    to_web = {"to": [{"podSelector": {"matchLabels": _WEB}}], "ports": [{"port": "http"}]}
    probes.policy("open", podSelector={"matchLabels": _ASKER}, policyTypes=["Egress"], egress=[to_web])

    cluster.wait_for(lambda: probes.asked("asker", "dial", f"{web}:{_PORT}") == "", what="the pod is in reach again")
    assert probes.asked("asker", "dial", kubelet) is None


def test_a_policy_binds_a_pod_from_its_first_moment(probes: Probes) -> None:
    web = probes.pod("web", "serve", f":{_PORT}", "hello", labels=_WEB, port=_PORT)["status"]["podIP"]
    probes.policy("closed", podSelector={}, policyTypes=["Egress"])

    for number in range(3):
        probes.job(f"early-{number}", "dial", f"{web}:{_PORT}")

    ends = [last_state(probes.ended(f"early-{number}"))["exitCode"] for number in range(3)]
    assert ends == [1, 1, 1]


def test_ingress_is_closed_to_pods_and_stays_open_to_probes(probes: Probes, cluster: Cluster) -> None:
    probes.policy("closed", podSelector={"matchLabels": _WEB}, policyTypes=["Ingress"])
    web = probes.pod("web", "serve", f":{_PORT}", "hello", labels=_WEB, port=_PORT)["status"]["podIP"]
    probes.pod("asker", "sleep", labels=_ASKER)

    assert probes.asked("asker", "dial", f"{web}:{_PORT}") is None

    from_asker = {"from": [{"podSelector": {"matchLabels": _ASKER}}]}
    probes.policy("open", podSelector={"matchLabels": _WEB}, policyTypes=["Ingress"], ingress=[from_asker])
    cluster.wait_for(lambda: probes.asked("asker", "dial", f"{web}:{_PORT}") == "", what="the pod is in reach")


def test_a_pod_that_takes_more_memory_than_its_limit_is_killed(probes: Probes) -> None:
    probes.job("eater", "eat", "200", memory="50Mi")
    ended = last_state(probes.ended("eater"))
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_an_evicted_pod_may_say_its_last_words(probes: Probes, cluster: Cluster) -> None:
    pod = probes.pod("long", "sleep")
    # Without it, the pod would be gone before it can be asked.
    cluster.patch(pod, {"metadata": {"finalizers": ["finetuning.dev/test"]}})
    cluster.wait_for(lambda: probes.logs("long") == "waiting\n", what="it runs")

    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "long"}}
    path = cluster.path("Pod", "long", namespace=probes.namespace, subresource="eviction")
    cluster.request("POST", path, body=eviction, content_type="application/json")

    ended = cluster.wait_for_object("Pod", "long", probes.namespace, where=_has_ended)
    assert (last_state(ended)["exitCode"], last_state(ended)["message"]) == (0, "stopped as asked")
    cluster.patch(pod, {"metadata": {"finalizers": []}})


def test_a_component_that_is_killed_comes_back_and_pods_run_on(probes: Probes, node: RealNode) -> None:
    pod = probes.pod("lasting", "sleep")

    with node.without_kubelet():
        pass
    node.restart("containerd")

    probes.cluster.wait_for(lambda: probes.asked("lasting", "who") == _WHO, what="it answers")
    after = probes.cluster.refresh(pod)
    assert [each["restartCount"] for each in after["status"]["containerStatuses"]] == [0]


def test_an_image_is_pulled_from_the_nodes_own_registry(probes: Probes, node: RealNode) -> None:
    reference = node.publish(IMAGE, "team/probe:1")
    spec = restricted_spec() | {"activeDeadlineSeconds": 60}
    spec["containers"][0] |= {"image": reference, "command": [PROBE, "who"], "imagePullPolicy": "Always"}

    probes.create("Pod", "pulled", spec=spec)

    ended = probes.cluster.wait_for_object("Pod", "pulled", probes.namespace, where=_has_ended)
    assert (ended["status"]["phase"], probes.logs("pulled")) == ("Succeeded", "1000 [0]\n")
    said = [event["message"] for event in probes.cluster.events(probes.namespace, name="pulled")]
    assert [message for message in said if message.startswith(f'Successfully pulled image "{reference}"')]


def test_two_nodes_are_apart_and_nothing_is_left_of_one_that_ends(
    cluster: Cluster, node: RealNode, tmp_path: Path
) -> None:
    other = _start_other(node, tmp_path)
    traces = _Traces.of(other)
    try:
        load_probe(other, tmp_path)
        Probes(other.connect(), "default").pod("alone", "sleep")
        assert cluster.find("Pod", "alone", "default") is None
        processes = _processes_of(other)
        assert other.registry != node.registry
        assert len(processes) > _LEAST_PROCESSES
        assert len(traces.seen()) > _LEAST_TRACES
    finally:
        client.stop(tmp_path / "other")

    assert [process for process in processes if is_alive(process)] == []
    assert traces.seen() == []


def test_nothing_runs_on_when_the_holder_of_a_node_is_killed_and_its_place_can_be_used_again(
    node: RealNode, tmp_path: Path
) -> None:
    other = _start_other(node, tmp_path)
    traces = _Traces.of(other)
    processes = _processes_of(other)

    _kill_holder(other)

    wait_until(lambda: not any(is_alive(process) for process in processes), seconds=20, what="all have ended")
    again = _start_other(node, tmp_path)
    assert [each["metadata"]["name"] for each in again.connect().objects("Node")] == ["node"]
    traces_again, processes_again = _Traces.of(again), _processes_of(again)
    _kill_holder(again)
    wait_until(lambda: not any(is_alive(each) for each in processes_again), seconds=20, what="all have ended again")
    assert main(["node-down", "--state", str(again.folder)]) == 0
    assert [*traces.seen(), *traces_again.seen()] == []


def _start_other(node: RealNode, folder: Path) -> RealNode:
    node.require_own()  # Where another cluster is under test, a node of ours is not.
    running = client.start(folder / "other", holder=client.HOLD_NODE)
    return RealNode(Path(running.kubeconfig), kubectl_program=Path(running.kubectl), folder=folder / "other")


def _kill_holder(node: RealNode) -> None:
    running = Running.find(node.require_own())
    assert running is not None
    os.kill(running.supervisor, signal.SIGKILL)


def _processes_of(node: RealNode) -> list[int]:
    """Return the processes of this host that are in the network of a node."""
    held = Held.find(node.require_own())
    assert held is not None
    network = Path(f"/proc/{held.process}/ns/net").readlink()
    return [number for number in _all_processes() if _network_of(number) == network]


def _all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _network_of(process: int) -> Path | None:
    try:
        return Path(f"/proc/{process}/ns/net").readlink()
    except OSError:
        return None  # It has ended.


@dataclass(frozen=True, slots=True)
class _Traces:
    """What a node could leave on this host, while it runs or after."""

    folder: Path
    etcd: Path
    machine: Machine

    @classmethod
    def of(cls, node: RealNode) -> "_Traces":
        folder = node.folder
        held = Held.find(folder) if folder else None
        assert folder is not None
        assert held is not None
        return cls(folder, etcd=(folder / "etcd").resolve(), machine=Machine(held.number))

    def seen(self) -> list[str]:
        """Return what of it is there."""
        cgroups = Path("/sys/fs/cgroup").glob(f"**/{self.machine.cgroup}")
        links = subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True).stdout
        rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
        lines = [*links.splitlines(), *rules.splitlines(), *Path("/proc/self/mountinfo").read_text().splitlines()]
        names = (f"{self.machine.link}@", "FT-POLICY", str(self.folder))
        files = [path for path in (self.folder, self.etcd) if path.exists()]
        return [*map(str, files), *map(str, cgroups), *(line for line in lines if any(name in line for name in names))]


def _has_ended(pod: Object) -> bool:
    return pod["status"]["phase"] in {"Succeeded", "Failed"}


def _is_of(volume: Object, claim: str) -> bool:
    uid: str = volume["spec"]["claimRef"]["uid"]
    return uid == claim


@contextmanager
def _listening_on(address: str) -> Iterator[int]:
    """Listen on an address of this host."""
    with socket.create_server((address, 0)) as server:
        yield server.getsockname()[1]
