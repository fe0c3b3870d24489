"""The test site: an S3 server and a package index inside the cluster, which jobs relocate from."""

import json
from pathlib import Path

import httpx
from tests.support.bad_input import GOOD_ROWS
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.forwarding import forwarded
from tests.support.models import tiny_llama

NAMESPACE = "e2e-site"
NAME = "site"
STORE_PORT = 9000
INDEX_PORT = 8080
STORE = f"http://{NAME}.{NAMESPACE}.svc:{STORE_PORT}"
"""The S3 server, as pods reach it."""
INDEX = f"http://{NAME}.{NAMESPACE}.svc:{INDEX_PORT}/simple/"
"""The package index."""
TINY_MODEL = "s3://models/tiny"
TINY_ROWS = "s3://tickets/tiny.jsonl"
_LABELS = {"app.kubernetes.io/name": "e2e-site"}
_READY_SECONDS = 120
_USER = 65532


def install_site(cluster: Cluster, image: str, *, folder: Path) -> None:
    """Run the site, and bring a tiny model and rows to its S3 server; ``folder`` is where the model is made."""
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": NAMESPACE, "labels": restricted}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, _deployment(image), _service())

    def is_ready(found: Object) -> bool:
        return has_condition(found, "Available") and found["status"].get("updatedReplicas") == 1

    cluster.wait_for_object("Deployment", NAME, NAMESPACE, where=is_ready, seconds=_READY_SECONDS)
    files = {f"tiny/{path.name}": path.read_bytes() for path in tiny_llama(folder / "tiny").iterdir()}
    rows = "".join(f"{json.dumps(row)}\n" for row in GOOD_ROWS)
    with forwarded(cluster, NAMESPACE, f"svc/{NAME}", STORE_PORT) as store:
        _fill(store.url, {"models": files, "tickets": {"tiny.jsonl": rows.encode()}})


def _fill(url: str, buckets: dict[str, dict[str, bytes]]) -> None:
    """Store objects by bucket and key; this server asks for no signature."""
    with httpx.Client(base_url=url) as store:
        for bucket, objects in buckets.items():
            store.put(f"/{bucket}").raise_for_status()
            for key, content in objects.items():
                store.put(f"/{bucket}/{key}", content=content).raise_for_status()


def _service() -> Object:
    ports = [
        {"name": "store", "port": STORE_PORT, "targetPort": "store"},
        {"name": "index", "port": INDEX_PORT, "targetPort": "index"},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"selector": _LABELS, "ports": ports},
    }


def _deployment(image: str) -> Object:
    container = {
        "name": "site",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "ports": [
            {"name": "store", "containerPort": STORE_PORT},
            {"name": "index", "containerPort": INDEX_PORT},
        ],
        "readinessProbe": {"tcpSocket": {"port": "store"}, "periodSeconds": 1},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  (a volume of the pod)
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": _LABELS},
        "spec": {
            "selector": {"matchLabels": _LABELS},
            "template": {"metadata": {"labels": _LABELS}, "spec": pod},
        },
    }
