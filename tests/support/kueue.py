"""The stock Kueue beside a control plane: installed by its own manifests, run as a process of this machine.

What its release leaves to a node is done here: the Service of its webhooks leads to the process, and the certificates
that it makes for itself are put where its pod would have them mounted. It has the rights of its service account, and
the configuration of its release but for ports, leader election, and the API that lists who waits in a queue.
"""

import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml
from hack.cluster.binaries import QUEUE
from hack.cluster.components import kubeconfig_text
from tests.support.cluster import Cluster, Object, Refused
from tests.support.operator_process import Identity, free_port
from tests.support.processes import REPOSITORY, wait_until

GROUP = "kueue.x-k8s.io"
_FLAVOR = "any-node"
_NAMESPACE = "kueue-system"
_ACCOUNT = "kueue-controller-manager"
_SERVICE = "kueue-webhook-service"
_CERTIFICATES = "kueue-webhook-server-cert"
_LAUNCHER = REPOSITORY / "hack" / "cluster" / "launch.py"
_LOOPBACK = "127.0.0.1"
_START_SECONDS = 90
_LEFT_OUT = frozenset({"Deployment", "APIService"})
"""Kinds of its manifests that a process on this machine does not need."""


@contextmanager
def running_kueue(cluster: Cluster, *, program: Path, folder: Path) -> Iterator[None]:
    """Install Kueue in a cluster that nobody shares, and run it within a block; its log is ``folder``/kueue.log."""
    port, health = free_port(), free_port()
    cluster.apply(*_manifests(cluster, webhook_port=port))
    kubeconfig = _write_kubeconfig(cluster, folder)
    certificates = folder / "certificates"
    certificates.mkdir()
    configuration = _write_configuration(folder, certificates=certificates, webhook_port=port, health_port=health)
    command = (str(program), f"--config={configuration}", "--zap-log-level=2")
    log = folder / "kueue.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command],
            cwd=folder,
            env={**os.environ, "KUBECONFIG": str(kubeconfig)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def wait(condition: Callable[[], bool], what: str) -> None:
        def is_met() -> bool:
            assert process.poll() is None, f"Kueue ended with {process.returncode}:\n{log.read_text()[-4000:]}"
            return condition()

        wait_until(is_met, seconds=_START_SECONDS, what=what)

    try:
        wait(lambda: _mounted(cluster, certificates), "Kueue has made its certificates")
        wait(lambda: _is_ready(health), "Kueue is ready")
        wait(lambda: _decides(cluster), "the API server reaches Kueue")
        cluster.create({**_head("ResourceFlavor", _FLAVOR), "spec": {}})
        yield
    finally:
        process.kill()
        process.wait()


def cluster_queue(name: str, *, quota: Mapping[str, str]) -> Object:
    """Return a ClusterQueue for all namespaces that takes back from the less important what the more important need.

    Args:
        name: Its name.
        quota: What it has, by resource.
    """
    resources = [{"name": resource, "nominalQuota": most} for resource, most in quota.items()]
    group = {"coveredResources": list(quota), "flavors": [{"name": _FLAVOR, "resources": resources}]}
    spec = {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [group],
    }
    return _head("ClusterQueue", name) | {"spec": spec}


def local_queue(namespace: str, name: str, *, leads_to: str) -> Object:
    """Return a LocalQueue that leads to a ClusterQueue."""
    made = _head("LocalQueue", name) | {"spec": {"clusterQueue": leads_to}}
    made["metadata"]["namespace"] = namespace
    return made


def _head(kind: str, name: str) -> Object:
    return {"apiVersion": f"{GROUP}/v1beta2", "kind": kind, "metadata": {"name": name}}


def _manifests(cluster: Cluster, *, webhook_port: int) -> list[Object]:
    rendered = cluster.kubectl("kustomize", str(QUEUE[0].installation / "default")).stdout
    # The loader in C: there are 26,000 lines of it.
    found: list[Object] = list(yaml.load_all(rendered, Loader=yaml.CSafeLoader))
    return [_led_here(each, webhook_port) for each in found if each["kind"] not in _LEFT_OUT]


def _led_here(manifest: Object, port: int) -> Object:
    """Return a manifest whose webhooks are found on this machine."""
    if manifest["kind"] == "Service" and manifest["metadata"]["name"] == _SERVICE:
        manifest["spec"] = {"type": "ExternalName", "externalName": _LOOPBACK}
    conversion = manifest.get("spec", {}).get("conversion", {}).get("webhook")
    for webhook in (*manifest.get("webhooks", ()), *((conversion,) if conversion else ())):
        webhook["clientConfig"]["service"]["port"] = port
    return manifest


def _write_kubeconfig(cluster: Cluster, folder: Path) -> Path:
    account = Identity.of(cluster, _ACCOUNT, _NAMESPACE)
    path = folder / "kueue.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(kubeconfig_text(server=account.server, ca=account.ca, user={"token": account.token}))
    return path


def _write_configuration(folder: Path, *, certificates: Path, webhook_port: int, health_port: int) -> Path:
    release = QUEUE[0].installation / "components" / "manager" / "controller_manager_config.yaml"
    configuration = yaml.safe_load(release.read_text()) | {
        "namespace": _NAMESPACE,
        "health": {"healthProbeBindAddress": f"{_LOOPBACK}:{health_port}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": _LOOPBACK, "port": webhook_port, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "featureGates": {"VisibilityOnDemand": False},  # Its port cannot be chosen.
    }
    path = folder / "kueue.yaml"
    path.write_text(yaml.safe_dump(configuration))
    return path


def _mounted(cluster: Cluster, folder: Path) -> bool:
    """Do what kubelet does with a Secret that a pod mounts; return whether there was something to mount."""
    data = cluster.get("Secret", _CERTIFICATES, _NAMESPACE).get("data", {})
    for name, content in data.items():
        (folder / name).write_bytes(b64decode(content))
    return "tls.crt" in data


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://{_LOOPBACK}:{port}/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False


def _decides(cluster: Cluster) -> bool:
    """Return whether the API server reaches its webhooks: for defaults, checks, and from one version to another."""
    probe = cluster_queue("probe", quota={"cpu": "1"}) | {"apiVersion": f"{GROUP}/v1beta1"}
    try:
        path = f"/apis/{GROUP}/v1beta1/clusterqueues?dryRun=All"
        cluster.request("POST", path, body=probe, content_type="application/json")
    except Refused:
        return False
    return True
