"""Playing what kubelet and container runtime do to a pod: every function writes one status through the API.

In a namespace named ``hold-*`` a pod waits for these from the start; elsewhere it already runs.
"""

import datetime as dt
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from tests.support.cluster import WAIT_SECONDS, Cluster, Object
from tests.support.objects import RESULTS

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import PROGRESS_CA_ENV, PROGRESS_TOKEN_ENV, PROGRESS_URL_ENV, LastWords
from finetuning_operator.cluster.render.labels import PROGRESS_CA

RUN_CONFIG = "finetuning.dev/run-config"
_SIGKILLED = 137
_TOKEN_SECONDS = 3600
_STAMP = "%Y-%m-%dT%H:%M:%SZ"
_SIGTERMED = 143


def wait_for_pod(
    cluster: Cluster, namespace: str, *, labels: str = "", phase: str = "", other_than: tuple[str, ...] = ()
) -> Object:
    """Return the one living pod with these labels, once it is there, has a node, and is in a phase.

    Args:
        cluster: Where to look.
        namespace: Where to look.
        labels: A selector.
        phase: Empty takes any.
        other_than: Names of pods that are not meant, for example those of earlier attempts.
    """
    [pod] = wait_for_pods(cluster, namespace, count=1, labels=labels, phase=phase, other_than=other_than)
    return pod


def wait_for_pods(
    cluster: Cluster,
    namespace: str,
    *,
    count: int,
    labels: str = "",
    phase: str = "",
    other_than: tuple[str, ...] = (),
) -> list[Object]:
    """Return the living pods with these labels, once there are so many, each with a node and in a phase."""

    def look() -> list[Object]:
        pods = [pod for pod in cluster.objects("Pod", namespace, labels=labels) if _is_alive(pod, other_than)]
        assert len(pods) <= count, f"more than {count} pods: {[pod['metadata']['name'] for pod in pods]}"
        fit = [pod for pod in pods if "nodeName" in pod["spec"] and phase in {"", pod["status"]["phase"]}]
        return fit if len(fit) == count else []

    what = f"{count} pods {labels} in {namespace}, phase {phase or 'any'}"
    return cluster.wait_for(lambda: look() or None, what=what, seconds=WAIT_SECONDS)


def run(cluster: Cluster, pod: Object) -> Object:
    """Let the pod's containers run and be ready."""
    state = {"running": {"startedAt": _now()}}
    return _write(cluster, pod, phase="Running", containers=_containers(pod, state, ready=True), ready=True)


def finish(
    cluster: Cluster, pod: Object, *, exit_code: int = 0, message: str | LastWords | Mapping[str, Any] = ""
) -> Object:
    """End the pod's containers, with last words as a program writes them, as any text, or as what becomes JSON."""
    told = message.to_json() if isinstance(message, LastWords) else message
    words = told if isinstance(told, str) else json.dumps(told)
    reason = "Completed" if exit_code == 0 else "Error"
    return _end(cluster, pod, exit_code=exit_code, reason=reason, message=words)


def succeed(cluster: Cluster, pod: Object) -> Object:
    """End the pod of a step as its program does when all goes well: with the result of its RunConfig's kind."""
    kind = json.loads(pod["metadata"]["annotations"][RUN_CONFIG])["kind"]
    return finish(cluster, pod, message=success_of(kind))


def success_of(kind: str) -> LastWords:
    """Return the last words of a program that succeeds, by the kind of its RunConfig."""
    return LastWords(reason=Reason.SUCCEEDED, result=RESULTS[kind])


def run_out_of_memory(cluster: Cluster, pod: Object) -> Object:
    """Let the kernel kill the pod's containers for their memory."""
    return _end(cluster, pod, exit_code=_SIGKILLED, reason="OOMKilled")


def report(cluster: Cluster, pod: Object, content: bytes) -> httpx.Response:
    """Post to the progress endpoint as the pod's program can: with its address, certificate and token."""
    trusted = ssl.create_default_context(cadata=pod["metadata"]["annotations"][PROGRESS_CA])
    token = {"Authorization": f"Bearer {progress_token(cluster, pod)}"}
    address = progress_address(pod)
    return httpx.post(address, content=content, headers=token, verify=trusted, trust_env=False, timeout=30)


def given_to_report(cluster: Cluster, pod: Object, folder: Path) -> dict[str, str]:
    """Return the variables with which a pod's program reports by itself, and write the files that they name."""
    token, authority = folder / "token", folder / "ca.pem"
    token.write_text(progress_token(cluster, pod))
    authority.write_text(pod["metadata"]["annotations"][PROGRESS_CA])
    return {
        PROGRESS_URL_ENV: progress_address(pod),
        PROGRESS_TOKEN_ENV: str(token),
        PROGRESS_CA_ENV: str(authority),
    }


def progress_address(pod: Object) -> str:
    """Return where a pod's program reports."""
    variables = {each["name"]: each.get("value", "") for each in pod["spec"]["containers"][0]["env"]}
    return str(variables[PROGRESS_URL_ENV])


def progress_token(cluster: Cluster, pod: Object) -> str:
    """Return a token for the audience of the pod's projected volume, bound to the pod as kubelet asks for it."""
    sources = [source for volume in pod["spec"]["volumes"] for source in volume.get("projected", {}).get("sources", ())]
    (audience,) = [each["serviceAccountToken"]["audience"] for each in sources if "serviceAccountToken" in each]
    metadata, account = pod["metadata"], pod["spec"].get("serviceAccountName", "default")
    reference = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    spec = {"audiences": [audience], "expirationSeconds": _TOKEN_SECONDS, "boundObjectRef": reference}
    path = cluster.path("ServiceAccount", account, namespace=metadata["namespace"], subresource="token")
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    made = cluster.request("POST", path, body=asked, content_type="application/json")
    return str(made["status"]["token"])


def image_pull_error(cluster: Cluster, pod: Object, *, reason: str = "ImagePullBackOff") -> Object:
    """Let the pod wait for an image that does not come."""
    image = pod["spec"]["containers"][0]["image"]
    message = f'Back-off pulling image "{image}": ErrImagePull: not found'
    return wait_in(cluster, pod, reason=reason, message=message)


def wait_in(cluster: Cluster, pod: Object, *, reason: str, message: str = "") -> Object:
    """Let the pod's containers wait for a reason of kubelet's, such as CreateContainerConfigError."""
    state = {"waiting": {"reason": reason, "message": message}}
    return _write(cluster, pod, phase="Pending", containers=_containers(pod, state, ready=False), ready=False)


def warn(cluster: Cluster, pod: Object, *, reason: str, message: str) -> Object:
    """Tell an Event of the pod as the attach and detach controller does."""
    metadata = pod["metadata"]
    about = {name: metadata[name] for name in ("name", "namespace", "uid")}
    # Later than what the pod says of itself, which counts where it is newer.
    now = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)).strftime(_STAMP)
    return cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.attach", "namespace": metadata["namespace"]},
            "involvedObject": {"kind": "Pod", "apiVersion": "v1", **about},
            "reason": reason,
            "message": message,
            "type": "Warning",
            "source": {"component": "attachdetach-controller"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
    )


def unschedulable(cluster: Cluster, pod: Object, *, message: str) -> Object:
    """Let the scheduler say why no node takes the pod; for a pod that truly fits nowhere it says so by itself."""
    condition = _condition("PodScheduled", ready=False, reason="Unschedulable", message=message)
    return cluster.patch(pod, {"status": {"phase": "Pending", "conditions": [condition]}}, subresource="status")


def evict(cluster: Cluster, pod: Object, *, reason: str = "EvictionByEvictionAPI") -> Object:
    """End the pod as a drained or pre-empted node does: with the condition DisruptionTarget."""
    disruption = _condition("DisruptionTarget", ready=True, reason=reason, message="the node is needed")
    return _end(cluster, pod, exit_code=_SIGTERMED, reason="Error", conditions=[disruption])


def evict_for_pressure(cluster: Cluster, pod: Object, *, message: str) -> Object:
    """End the pod as kubelet does when its node lacks memory or disk: phase Failed, reason Evicted."""
    disruption = _condition("DisruptionTarget", ready=True, reason="TerminationByKubelet", message=message)
    ended = {"phase": "Failed", "reason": "Evicted", "message": message, "conditions": [disruption]}
    return cluster.patch(pod, {"status": ended}, subresource="status")


def restricted_spec(*, command: str = "work", limits: Mapping[str, str] | None = None) -> Object:
    """Return the spec of a pod of one container that passes Pod Security ``restricted``."""
    container: Object = {
        "name": "main",
        "image": "example/image:1",
        "command": [command],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if limits:
        container["resources"] = {"limits": dict(limits)}
    return {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }


def _end(
    cluster: Cluster,
    pod: Object,
    *,
    exit_code: int,
    reason: str,
    message: str = "",
    conditions: list[Object] | None = None,
) -> Object:
    now = cluster.refresh(pod)
    started = now["status"].get("startTime", _now())
    ended = {"exitCode": exit_code, "reason": reason, "message": message, "startedAt": started, "finishedAt": _now()}
    phase = "Succeeded" if exit_code == 0 else "Failed"
    containers = _containers(pod, {"terminated": ended}, ready=False)
    return _write(cluster, pod, phase=phase, containers=containers, ready=False, conditions=conditions or [])


def _write(
    cluster: Cluster,
    pod: Object,
    *,
    phase: str,
    containers: list[Object],
    ready: bool,
    conditions: list[Object] | None = None,
) -> Object:
    scheduled = _condition("PodScheduled", ready=True)
    states = [_condition(kind, ready=ready) for kind in ("Ready", "ContainersReady")]
    status: Object = {
        "phase": phase,
        "conditions": [scheduled, *states, *(conditions or [])],
        "containerStatuses": containers,
    }
    if "startTime" not in pod.get("status", {}):
        status["startTime"] = _now()
    return cluster.patch(pod, {"status": status}, subresource="status")


def _containers(pod: Object, state: Object, *, ready: bool) -> list[Object]:
    common = {"imageID": "", "restartCount": 0, "ready": ready, "started": ready, "state": state}
    return [{"name": each["name"], "image": each["image"], **common} for each in pod["spec"]["containers"]]


def _condition(kind: str, *, ready: bool, reason: str = "", message: str = "") -> Object:
    texts = {name: text for name, text in (("reason", reason), ("message", message)) if text}
    return {"type": kind, "status": str(ready), "lastTransitionTime": _now(), **texts}


def _is_alive(pod: Object, other_than: tuple[str, ...]) -> bool:
    metadata = pod["metadata"]
    ended = pod["status"]["phase"] in {"Succeeded", "Failed"}
    return not ended and "deletionTimestamp" not in metadata and metadata["name"] not in other_than


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime(_STAMP)
