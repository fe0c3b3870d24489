"""What goes wrong before or in a stage, as a user meets it: every cause is told in a condition within a minute.

All faults of this page are there at once, as in a cluster that many use, beside a job that has none.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import pytest
from tests.support.cluster import Cluster, Object
from tests.support.e2e import WAIT_SECONDS, Installation, Place, has_ended, record
from tests.support.e2e_site import STORE, TINY_MODEL
from tests.support.lifecycle import condition

TOLD_WITHIN = 60
"""Seconds in which the cause of a failure, or of a wait, is to be told."""

SMALL = "finetuning-limited"
"""StorageClass of volumes that are really as small as their claims."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, and what is to be told of it."""

    name: str
    told: tuple[str, str]
    """Type and reason of the condition."""
    words: tuple[str, ...]
    """Parts of its message."""
    spec: Mapping[str, object] = field(default_factory=dict)
    """What a small job that would succeed has in place of its own, by dotted field."""
    kind: str = "FineTuningJob"

    def create(self, place: Place) -> None:
        """Create the object that has the fault."""
        if self.kind == "FineTuningJob":
            place.tiny_job(self.name, self.spec)
        else:
            place.create(self.kind, self.name, **self.spec)


@dataclass(frozen=True, slots=True)
class Told:
    """What was told of a fault."""

    message: str
    seconds: float
    """Since the stage before had ended, or since the object was made."""


FAULTS = (
    Fault(
        "memory",
        ("Failed", "OutOfMemory"),
        ("killed because it used more memory than its limit of 96Mi", "Raise the memory in resources"),
        {"resources": {"limits": {"memory": "96Mi"}}, "backoffLimit": 0},
    ),
    Fault(
        "accelerator",
        ("Trained", "Unschedulable"),
        ("no node has enough habana.ai/gaudi left", "add nodes that have habana.ai/gaudi"),
        {"resources": {"limits": {"habana.ai/gaudi": 1}}},
    ),
    Fault(
        "secret",
        ("Relocated", "ConfigurationMissing"),
        ("the secret hub-token does not exist", "Create it in the namespace"),
        # Who may read a source is no part of what it is: another choice of files makes it one that nobody has yet.
        {"model": {"source": TINY_MODEL, "endpoint": STORE, "secretRef": {"name": "hub-token"}, "exclude": ["none"]}},
    ),
    Fault(
        "config-map",
        ("Relocated", "ConfigurationMissing"),
        ("the configmap rows does not exist", "Create it in the namespace"),
        {"dataset.source": "configmap://rows/rows.jsonl", "dataset.endpoint": None},
    ),
    Fault(
        "storage-class",
        ("Trained", "VolumeUnavailable"),
        ("names the StorageClass fast, which does not exist", "Correct storage.profile or storageClassName"),
        {"storage.adapter.storageClassName": "fast"},
    ),
    Fault(
        "volume-for-inputs",
        ("Relocated", "Pending"),
        ("tries again after: ", "s3://models/tiny needs 411", " kB free", "larger size"),
        {
            "model": {"source": TINY_MODEL, "endpoint": STORE, "size": "64Ki", "exclude": ["nothing"]},
            "storage.model.storageClassName": SMALL,
            "backoffLimit": 0,
        },
    ),
    Fault(
        "volume-for-results",
        ("Failed", "DiskFull"),
        ("train: cannot write", "no space left on the disk", "larger size"),
        {"storage.adapter": {"storageClassName": SMALL, "size": "128Ki"}, "backoffLimit": 0},
    ),
    Fault(
        "image",
        ("Ready", "ImagePullFailed"),
        ("the image registry.invalid/server:1 cannot be pulled", "Check its name"),
        {"model": {"source": TINY_MODEL, "endpoint": STORE}, "image": "registry.invalid/server:1"},
        kind="InferenceServer",
    ),
)


@pytest.fixture(scope="module")
def told(shared_place: Place) -> Mapping[str, Told]:
    """What was told of each fault, for as long as it was awaited; of one that was not told there is nothing."""
    shared_place.tiny_job("sound", {"training.maxSteps": 2})
    shared_place.wait_complete("sound")
    for fault in FAULTS:
        fault.create(shared_place)
    found: dict[str, Told] = {}

    def look() -> bool:
        for fault in FAULTS:
            if fault.name not in found and (known := tell(shared_place, fault)) is not None:
                found[fault.name] = known
        return len(found) == len(FAULTS)

    try:
        shared_place.cluster.wait_for(look, what="every fault is told", seconds=WAIT_SECONDS)
    except AssertionError:
        record("Faults of which not all were told", shared_place.story())
    return found


def tell(place: Place, fault: Fault) -> Told | None:
    """Return what the condition of a fault says, None until it does; one that waits says other things before."""
    target = place.get(fault.kind, fault.name)
    kind, reason = fault.told
    found = condition(target, kind)
    if found.get("reason") != reason or (
        reason == "Pending" and any(each not in found["message"] for each in fault.words)
    ):
        return None
    return Told(found["message"], time.time() - began(target))


def began(target: Object) -> float:
    """Return when the stage began that an object is in, in seconds since the epoch."""
    stages = target["status"].get("stages", ())
    ended = [stage["completionTime"] for stage in stages if stage["state"] == "Succeeded"]
    return datetime.fromisoformat(max([target["metadata"]["creationTimestamp"], *ended])).timestamp()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_is_wrong_is_told_in_a_condition_within_a_minute(told: Mapping[str, Told], fault: Fault) -> None:
    assert fault.name in told
    kind, reason = fault.told
    found = told[fault.name]
    record(f"Fault: {fault.name}", f"{kind} {reason}: {found.message}\n{after(found.seconds)}")
    assert [words for words in fault.words if words not in found.message] == [], found.message
    assert found.seconds < TOLD_WITHIN


def after(seconds: float) -> str:
    return f"told after {seconds:.0f} s"


def says(kind: str, words: str) -> Callable[[Object], bool]:
    """Return whether a condition of an object has these words."""
    return lambda found: words in condition(found, kind).get("message", "")


def quota(namespace: str, **hard: str) -> Object:
    """Return a ResourceQuota; ``_`` in a resource's name stands for a dot."""
    named = {name.replace("_", "."): amount for name, amount in hard.items()}
    metadata = {"name": "small", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": named}}


@pytest.mark.parametrize(
    ("hard", "words"),
    [
        ({"requests_cpu": "50m"}, "the quota small has no room: asked for requests.cpu=100m"),
        ({"requests_storage": "1Mi"}, "the quota small has no room: asked for requests.storage="),
    ],
    ids=["cpu", "storage"],
)
def test_a_full_quota_is_told_and_the_job_goes_on_when_there_is_room(
    place: Place, hard: Mapping[str, str], words: str
) -> None:
    limit = place.cluster.create(quota(place.namespace, **hard))
    place.wait("ResourceQuota", "small", lambda found: "hard" in found.get("status", {}))
    place.tiny_job("demo", {"training.maxSteps": 2})

    waiting = place.wait_for_job("demo", says("Relocated", words))
    seconds = time.time() - began(waiting)
    place.cluster.delete(limit)
    gone_on = place.wait_for_job("demo", lambda found: condition(found, "Relocated").get("status") == "True")

    told = condition(waiting, "Relocated")
    record("Fault: quota", f"Relocated {told['reason']}: {told['message']}\n{after(seconds)}")
    assert told["reason"] == "QuotaExceeded"
    assert seconds < TOLD_WITHIN
    assert condition(gone_on, "Relocated")["reason"] == "Succeeded"


def test_a_wrong_image_of_the_installation_is_told_and_mended_by_an_upgrade(
    place: Place, installation: Installation
) -> None:
    image = "registry.invalid/trainer:1"
    installation.install({"workloadImages": {**installation.values["workloadImages"], "trainer": image}})
    try:
        place.tiny_job("demo", {"training.maxSteps": 2})
        waiting = place.wait_for_job("demo", says("Trained", f"the image {image} cannot be pulled"))
        seconds = time.time() - began(waiting)
    finally:
        installation.install()
    place.wait_complete("demo")

    told = condition(waiting, "Trained")
    record("Fault: wrong image in the values of the chart", f"{told['reason']}: {told['message']}\n{after(seconds)}")
    assert told["reason"] == "ImagePullFailed"
    assert seconds < TOLD_WITHIN


def test_an_accelerator_is_waited_for_and_got_from_a_node_that_offers_it(shared_place: Place) -> None:
    place, vendors = shared_place, {"of-one": "nvidia.com/gpu", "of-another": "amd.com/gpu"}
    for name, resource in vendors.items():
        place.tiny_job(name, {"training.maxSteps": 2, "resources": {"limits": {resource: 1}}})
    for name, resource in vendors.items():
        place.wait_for_job(name, says("Trained", f"no node has enough {resource} left"))

    with offering(place.cluster, vendors.values()):
        done = {name: place.wait_complete(name) for name in vendors}

    for name, resource in vendors.items():
        (pod,) = place.objects("Pod", labels=f"finetuning.dev/name={name},finetuning.dev/step=train")
        given = pod["spec"]["containers"][0]["resources"]
        assert (given["limits"][resource], given["requests"][resource]) == ("1", "1")
        record(f"Job with {resource}", place.kubectl("get", "ftj", done[name]["metadata"]["name"]))


def test_a_volume_that_stays_full_fails_the_job_after_some_tries(told: Mapping[str, Told], shared_place: Place) -> None:
    assert "volume-for-inputs" in told
    failed = shared_place.wait_for_job("volume-for-inputs", has_ended)
    assert condition(failed, "Failed")["reason"] == "DiskFull"
    assert "s3://models/tiny needs 411" in condition(failed, "Failed")["message"]


@contextmanager
def offering(cluster: Cluster, resources: Iterable[str]) -> Iterator[None]:
    """Let a node say that it has one of each resource while the block runs, as a device plugin would."""
    node = cluster.objects("Node")[0]["metadata"]["name"]
    places = [f"/status/capacity/{name.replace('/', '~1')}" for name in resources]

    def change(operation: Mapping[str, str]) -> None:
        patch = json.dumps([{"path": place, **operation} for place in places])
        cluster.kubectl("patch", "node", node, "--subresource=status", "--type=json", "--patch", patch)

    change({"op": "add", "value": "1"})
    try:
        yield
    finally:
        change({"op": "remove"})
