"""Pods of the probe, a program that does one thing which a cluster allows or refuses."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.binaries import NODE, find_binaries
from hack.cluster.images import write_image
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.pods import restricted_spec
from tests.support.real_node import RealNode

IMAGE = "finetuning.dev/probe:test"
PROBE = "/probe"
GROUP = 2000
"""The group that volumes of probes belong to."""


def load_probe(node: RealNode, folder: Path) -> None:
    """Give a node of ours the image of the probe, which is nowhere else."""
    node.require_own()
    archive = folder / "probe.tar"
    write_image(archive, name=IMAGE, files={PROBE: find_binaries(NODE)["probe"]}, command=(PROBE,))
    node.load_image(archive)


@dataclass(frozen=True, slots=True)
class Probes:
    """Pods of the probe in one namespace, and what they use there."""

    cluster: Cluster
    namespace: str

    def job(self, name: str, *command: str, claim: str = "", memory: str = "") -> Object:
        """Start a Job that runs a command of the probe once."""
        template = {"spec": _pod_spec(*command, claim=claim, memory=memory)}
        return self.create("Job", name, version="batch/v1", spec={"template": template, "backoffLimit": 0})

    def pod(self, name: str, *command: str, labels: Mapping[str, str] | None = None, port: int = 0) -> Object:
        """Start a pod that runs a command of the probe and return it once it is ready, or answers at a port."""
        self.create("Pod", name, spec=_pod_spec(*command, port=port), labels=labels)
        return self.cluster.wait_for_object("Pod", name, self.namespace, where=lambda pod: has_condition(pod, "Ready"))

    def claim(self, name: str, size: str, *, storage_class: str = "standard") -> Object:
        """Ask for a volume."""
        resources = {"requests": {"storage": size}}
        spec = {"accessModes": ["ReadWriteOnce"], "resources": resources, "storageClassName": storage_class}
        return self.create("PersistentVolumeClaim", name, spec=spec)

    def service(self, name: str, *, port: int, labels: Mapping[str, str]) -> Object:
        """Give pods a name and an address in front of a port."""
        return self.create(
            "Service", name, spec={"selector": dict(labels), "ports": [{"port": 80, "targetPort": port}]}
        )

    def policy(self, name: str, **spec: object) -> Object:
        """Say who may talk to whom."""
        return self.create("NetworkPolicy", name, version="networking.k8s.io/v1", spec=spec)

    def ended(self, name: str) -> Object:
        """Return the pod of a Job once it has ended, in whatever way."""

        def look() -> Object | None:
            pods = self.cluster.objects("Pod", self.namespace, labels=f"batch.kubernetes.io/job-name={name}")
            return next((pod for pod in pods if pod["status"].get("phase") in {"Succeeded", "Failed"}), None)

        return self.cluster.wait_for(look, what=f"the pod of {name} has ended")

    def logs(self, what: str) -> str:
        """Return what a pod or a Job has said."""
        return self.cluster.kubectl("logs", "-n", self.namespace, what).stdout

    def asked(self, pod: str, *command: str) -> str | None:
        """Return what a running pod says to a command of the probe; None where it fails."""
        exec_in_pod = ("exec", "-n", self.namespace, pod, "--", PROBE, *command)
        done = self.cluster.kubectl(*exec_in_pod, check=False)
        return done.stdout if done.returncode == 0 else None

    def create(
        self, kind: str, name: str, *, spec: Object, version: str = "v1", labels: Mapping[str, str] | None = None
    ) -> Object:
        """Create an object in the namespace."""
        metadata = {"name": name, "namespace": self.namespace, "labels": dict(labels or {})}
        return self.cluster.create({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})


def last_state(pod: Object) -> Object:
    """Return how the container of a pod ended."""
    ended: Object = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return ended


def _pod_spec(*command: str, claim: str = "", memory: str = "", port: int = 0) -> Object:
    spec = restricted_spec(limits={"memory": memory} if memory else None)
    spec["securityContext"]["fsGroup"] = GROUP
    container = spec["containers"][0]
    container |= {"image": IMAGE, "imagePullPolicy": "Never", "command": [PROBE, *command]}
    container["securityContext"]["readOnlyRootFilesystem"] = True
    if claim:
        spec["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    if port:
        container["ports"] = [{"name": "http", "containerPort": port}]
        container["readinessProbe"] = {"tcpSocket": {"port": port}, "periodSeconds": 1}
    return spec
