"""Dynamic volumes of one node: a folder or a small file system for each claim, handed out as a ``local`` volume.

Kubernetes applies the group of a pod to such volumes, unlike to host paths.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]
PROVISIONER = "finetuning.dev/node-volumes"
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
_SELECTED_NODE = "volume.kubernetes.io/selected-node"


@dataclass(frozen=True, slots=True)
class Wish:
    """A volume that a claim waits for."""

    volume: Object
    limited: bool
    """Whether it must really be as small as the claim says."""

    @property
    def path(self) -> Path:
        return path_of(self.volume)

    @property
    def size(self) -> str:
        """The claim's quantity."""
        size: str = self.volume["spec"]["capacity"]["storage"]
        return size


@dataclass(frozen=True, slots=True)
class Place:
    """Where volumes are made."""

    node: str
    folder: Path


def wanted(
    claims: Sequence[Object], volumes: Sequence[Object], *, classes: Mapping[str, Object], place: Place
) -> Iterator[Wish]:
    """Yield the volumes that claims wait for and that are not there yet."""
    existing = {volume["metadata"]["name"] for volume in volumes}
    for claim in claims:
        kind = classes.get(claim["spec"].get("storageClassName") or "")
        if kind is not None and kind["provisioner"] == PROVISIONER and _waits(claim, kind):
            volume = _volume(claim, kind, place=place)
            if volume["metadata"]["name"] not in existing:
                yield Wish(volume, limited=(kind.get("parameters") or {}).get("limited") == "true")


def unwanted(volumes: Sequence[Object]) -> list[Object]:
    """Return the volumes of ours whose claims are gone, and which go with them."""
    return [
        volume
        for volume in volumes
        if (volume["metadata"].get("annotations") or {}).get(_PROVISIONED_BY) == PROVISIONER
        and volume["status"].get("phase") == "Released"
        and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    ]


def path_of(volume: Object) -> Path:
    """Return where a volume's files are."""
    return Path(volume["spec"]["local"]["path"])


def _waits(claim: Object, kind: Object) -> bool:
    metadata, spec = claim["metadata"], claim["spec"]
    if "deletionTimestamp" in metadata or "volumeName" in spec:
        return False
    # With other modes than the first, the scheduler says when, by naming the node that it has chosen.
    chosen = _SELECTED_NODE in (metadata.get("annotations") or {})
    return chosen or kind.get("volumeBindingMode", "Immediate") == "Immediate"


def _volume(claim: Object, kind: Object, *, place: Place) -> Object:
    metadata, spec = claim["metadata"], claim["spec"]
    name = f"pvc-{metadata['uid']}"
    host = {"key": "kubernetes.io/hostname", "operator": "In", "values": [place.node]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {_PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "accessModes": spec["accessModes"],
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "local": {"path": str(place.folder / name)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [host]}]}},
            "persistentVolumeReclaimPolicy": kind.get("reclaimPolicy", "Delete"),
            "storageClassName": kind["metadata"]["name"],
        },
    }
