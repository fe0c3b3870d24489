"""Nodes that tests add to a cluster of played ones."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.support.cluster import Cluster

HOSTNAME = "kubernetes.io/hostname"
_ROOM = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "110"}


@contextmanager
def tainted_node(cluster: Cluster, key: str, *, has: Mapping[str, str] | None = None) -> Iterator[str]:
    """Play a node that keeps away whoever does not tolerate its taint; ``has`` is what it offers beside room."""
    name = f"node-{secrets.token_hex(4)}"
    amounts = {**_ROOM, **(has or {})}
    made = cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {HOSTNAME: name}, "annotations": {"kwok.x-k8s.io/node": "fake"}},
            "spec": {"taints": [{"key": key, "value": "present", "effect": "NoSchedule"}]},
            "status": {"allocatable": amounts, "capacity": amounts},
        }
    )
    try:
        yield name
    finally:
        cluster.delete(made)
