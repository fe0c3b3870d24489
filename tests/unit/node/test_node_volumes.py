"""Which volumes a node makes for claims, and which it removes."""

from pathlib import Path
from typing import Any

import pytest
from hack.cluster.volumes import PROVISIONER, Place, Wish, unwanted, wanted

Object = dict[str, Any]
_PLACE = Place(node="node", folder=Path("/volumes"))
_CHOSEN = {"volume.kubernetes.io/selected-node": "node"}


def claim(*, about: Object | None = None, **more: object) -> Object:
    metadata = {"name": "data", "namespace": "a", "uid": "1", "annotations": _CHOSEN}
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "5Mi"}},
        "storageClassName": "standard",
    }
    return {"metadata": metadata | (about or {}), "spec": spec | more}


def storage_class(**more: object) -> Object:
    base = {"metadata": {"name": "standard"}, "provisioner": PROVISIONER, "volumeBindingMode": "WaitForFirstConsumer"}
    return base | more


def wishes(*claims: Object, kind: Object | None = None, volumes: list[Object] | None = None) -> list[Wish]:
    return list(wanted(claims, volumes or [], classes={"standard": kind or storage_class()}, place=_PLACE))


def test_a_claim_gets_a_volume_of_its_own_on_the_node() -> None:
    (wish,) = wishes(claim())
    assert (wish.path, wish.size, wish.limited) == (Path("/volumes/pvc-1"), "5Mi", False)
    assert wish.volume == {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "pvc-1", "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "5Mi"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": "a",
                "name": "data",
                "uid": "1",
            },
            "local": {"path": "/volumes/pvc-1"},
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node"]}]}
                    ]
                }
            },
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": "standard",
        },
    }


def test_a_class_may_ask_for_volumes_that_are_really_as_small_as_their_claims() -> None:
    assert [wish.limited for wish in wishes(claim(), kind=storage_class(parameters={"limited": "true"}))] == [True]


def test_a_class_says_what_becomes_of_a_volume() -> None:
    (wish,) = wishes(claim(), kind=storage_class(reclaimPolicy="Retain"))
    assert wish.volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"


@pytest.mark.parametrize(
    "waiting",
    [
        claim(about={"annotations": {}}),
        claim(about={"annotations": None}),
        claim(volumeName="pvc-1"),
        claim(storageClassName="other"),
        claim(storageClassName=None),
        claim(about={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
    ],
)
def test_a_claim_that_does_not_wait_for_us_gets_nothing(waiting: Object) -> None:
    assert wishes(waiting) == []


def test_a_class_that_does_not_wait_for_a_pod_is_served_at_once() -> None:
    assert len(wishes(claim(about={"annotations": {}}), kind=storage_class(volumeBindingMode="Immediate"))) == 1


def test_a_class_of_others_is_left_to_them() -> None:
    assert wishes(claim(), kind=storage_class(provisioner="example.com/disks")) == []


def test_a_volume_is_made_once() -> None:
    (wish,) = wishes(claim())
    assert wishes(claim(), volumes=[wish.volume]) == []


def test_a_volume_goes_when_its_claim_is_gone() -> None:
    volume = wishes(claim())[0].volume
    kept = wishes(claim(), kind=storage_class(reclaimPolicy="Retain"))[0].volume
    foreign = {**volume, "metadata": {"name": "pv"}}
    released = [{**each, "status": {"phase": "Released"}} for each in (volume, kept, foreign)]
    assert unwanted([*released, {**volume, "status": {"phase": "Bound"}}]) == [released[0]]
