"""The test site: an S3 server and a package index inside the cluster, which jobs relocate from."""

import json
from pathlib import Path

import httpx
import yaml
from tests.support.bad_input import GOOD_ROWS
from tests.support.cluster import Cluster, Object
from tests.support.forwarding import forwarded
from tests.support.models import tiny_llama
from tests.support.processes import REPOSITORY

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
TRIAGE_ROWS = "s3://tickets/support-triage.jsonl"
"""The example data of the checkout."""
MANIFESTS = REPOSITORY / "tests" / "e2e" / "site" / "site.yaml"
_TRIAGE = REPOSITORY / "examples" / "data" / "support-triage.jsonl"
_READY_SECONDS = 120


def install_site(cluster: Cluster, image: str, *, folder: Path) -> None:
    """Run the site, and bring a tiny model and rows to its S3 server; ``folder`` is where the model is made."""
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": NAMESPACE, "labels": restricted}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, *_objects(image))

    def is_ready(found: Object) -> bool:
        status = found["status"]
        seen = bool(status.get("observedGeneration") == found["metadata"]["generation"])
        return seen and status.get("replicas") == status.get("updatedReplicas") == status.get("readyReplicas") == 1

    cluster.wait_for_object("Deployment", NAME, NAMESPACE, where=is_ready, seconds=_READY_SECONDS)
    model = tiny_llama(folder / "tiny")
    rows = "".join(f"{json.dumps(row)}\n" for row in GOOD_ROWS)
    models = {f"tiny/{path.name}": path.read_bytes() for path in model.iterdir()}
    tickets = {"tiny.jsonl": rows.encode(), _TRIAGE.name: _TRIAGE.read_bytes()}
    with forwarded(cluster, NAMESPACE, f"svc/{NAME}", STORE_PORT) as store:
        _fill(store.url, {"models": models, "tickets": tickets})


def _fill(url: str, buckets: dict[str, dict[str, bytes]]) -> None:
    """Store objects by bucket and key, for everybody to read.

    Any name will do for this server, but without one nothing is stored twice.
    """
    headers = {"Authorization": "AWS anybody:any", "x-amz-acl": "public-read"}
    with httpx.Client(base_url=url, headers=headers) as store:
        for bucket, objects in buckets.items():
            store.put(f"/{bucket}").raise_for_status()
            for key, content in objects.items():
                store.put(f"/{bucket}/{key}", content=content).raise_for_status()


def _objects(image: str) -> list[Object]:
    """Return the site's Deployment and Service, with an image of its own tag."""
    found = [each for each in yaml.safe_load_all(MANIFESTS.read_text()) if each]
    for each in found:
        each["metadata"]["namespace"] = NAMESPACE
        if each["kind"] == "Deployment":
            (container,) = each["spec"]["template"]["spec"]["containers"]
            container["image"] = image
    return found
