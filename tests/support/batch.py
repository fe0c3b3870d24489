"""Small factories of Jobs and pods as an API server returns them."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from tests.support.objects import NOW

from finetuning_api.runconfig import LastWords

Object = dict[str, Any]
JOB_UID = "job-uid"


def stamp(seconds: float = 0) -> str:
    """Return a moment so many seconds after NOW, as Kubernetes writes it."""
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def after(seconds: float) -> datetime:
    """Return a moment so many seconds after NOW."""
    return NOW + timedelta(seconds=seconds)


def condition(kind: str, *, status: str = "True", reason: str = "", message: str = "", at: float = 0) -> Object:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": stamp(at),
    }


def batch_job(
    *conditions: Object,
    failed: int = 0,
    succeeded: int = 0,
    started: float | None = 0,
    workers: int = 0,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    suspend: bool = False,
    deleted: bool = False,
) -> Object:
    """Return a Job; ``workers`` makes it an Indexed one."""
    metadata: Object = {"name": "demo-train", "namespace": "team", "uid": JOB_UID, "creationTimestamp": stamp()}
    spec: Object = {"suspend": suspend, "backoffLimit": 3}
    status: Object = {"conditions": list(conditions), "failed": failed, "succeeded": succeeded}
    if labels:
        metadata["labels"] = dict(labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    if deleted:
        metadata["deletionTimestamp"] = stamp(60)
    if started is not None:
        status["startTime"] = stamp(started)
    if workers:
        spec |= {"completionMode": "Indexed", "completions": workers, "parallelism": workers}
    return {"metadata": metadata, "spec": spec, "status": status}


def pod(  # noqa: PLR0913  (a pod has many sides, and each test shows one)
    name: str = "demo-train-1",
    *,
    phase: str = "Pending",
    state: Object | None = None,
    last_state: Object | None = None,
    conditions: Sequence[Object] = (),
    created: float = 0,
    index: int | None = None,
    deleted: float | None = None,
    limits: Mapping[str, str] | None = None,
    claims: Sequence[str] = (),
    **status: object,
) -> Object:
    """Return a pod whose only container ``main`` is in a state; its uid is its name and ``-uid``."""
    metadata: Object = {"name": name, "namespace": "team", "uid": f"{name}-uid", "creationTimestamp": stamp(created)}
    if index is not None:
        metadata["labels"] = {"batch.kubernetes.io/job-completion-index": str(index)}
    if deleted is not None:
        metadata["deletionTimestamp"] = stamp(deleted)
    container = {"name": "main", "image": "registry.example/trainer:1", "resources": {"limits": dict(limits or {})}}
    volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims]
    statuses = [{"name": "main", "state": state or {}, "lastState": last_state or {}, "image": "trainer:1"}]
    return {
        "metadata": metadata,
        "spec": {"nodeName": "node-1", "containers": [container], "volumes": volumes},
        "status": {
            "phase": phase,
            "conditions": list(conditions),
            "containerStatuses": statuses if state is not None else [],
            **status,
        },
    }


def terminated(
    exit_code: int, *, words: LastWords | str = "", reason: str = "", started: float = 0, finished: float = 10
) -> Object:
    """Return the state of a container that ended."""
    message = words if isinstance(words, str) else words.model_dump_json(by_alias=True, exclude_none=True)
    return {
        "terminated": {
            "exitCode": exit_code,
            "reason": reason or ("Error" if exit_code else "Completed"),
            "message": message,
            "startedAt": stamp(started),
            "finishedAt": stamp(finished),
        }
    }


def running_pod(name: str = "demo-train-1", *, started: float = 0, **more: Any) -> Object:  # noqa: ANN401
    """Return a pod whose container runs."""
    return pod(name, phase="Running", state={"running": {"startedAt": stamp(started)}}, **more)


def ended_pod(
    name: str = "demo-train-1",
    *,
    exit_code: int = 0,
    words: LastWords | str = "",
    reason: str = "",
    started: float = 0,
    finished: float = 10,
    **more: Any,  # noqa: ANN401
) -> Object:
    """Return a pod that ended."""
    state = terminated(exit_code, words=words, reason=reason, started=started, finished=finished)
    return pod(name, phase="Failed" if exit_code else "Succeeded", state=state, **more)


def waiting_pod(reason: str, message: str = "", **more: Any) -> Object:  # noqa: ANN401
    """Return a pod whose container waits."""
    return pod(state={"waiting": {"reason": reason, "message": message}}, **more)
