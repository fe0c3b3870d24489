"""What ends a training from outside: it goes on from its last checkpoint, and the job says how often that happened."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.cluster import Cluster, Object
from tests.support.e2e import SYSTEM, Installation, Place, conditions, has_ended, kill, record, step_of
from tests.support.lifecycle import condition, stage
from tests.support.real_node import RealNode

SAVED_EVERY = 25
LONG = {"training.maxSteps": 1500, "training.checkpointEverySteps": SAVED_EVERY}
"""Changes of a tiny job that let it train long enough to be interrupted a few times."""
RESUMED = re.compile(r"resumed (\d+) times, the last time from step (\d+)")


def test_a_job_survives_the_end_of_its_trainer_of_the_operator_and_of_the_kubelet(
    shared_place: Place, installation: Installation, node: RealNode
) -> None:
    place, former = shared_place, installation.wait_ready()
    place.tiny_job("killed", LONG)
    pod = trains(place, "killed")

    kill(node, pod)
    told = place.wait_for_job("killed", lambda found: "SIGKILL" in stage(found, "train").get("message", ""))
    record("Trainer killed (SIGKILL), before it starts again", describe(told))

    place.cluster.kubectl("delete", "pod", former["metadata"]["name"], "-n", SYSTEM, "--force", "--grace-period=0")
    installation.wait_ready(other_than=(former["metadata"]["uid"],))
    pod = trains(place, "killed", other_than=pod)

    with node.without_kubelet():
        kill(node, pod)
    trains(place, "killed", other_than=pod)
    done = place.wait_complete("killed")

    record("Trainer killed, operator killed, trainer killed while the kubelet was away", describe(done))
    assert resumptions(done) == 2
    assert stage(done, "train")["attempts"] == 3


def test_a_drain_does_not_count_as_a_failure_and_a_removed_pod_counts_as_one(shared_place: Place) -> None:
    place = shared_place
    place.tiny_job("drained", {**LONG, "backoffLimit": 1})
    pod = trains(place, "drained")

    with drained(place.cluster, pod):
        waiting = place.wait_for_job("drained", lambda found: "cordoned" in stage(found, "train").get("message", ""))
    record("Node drained: the pod saved and ended, and waits for a node", describe(waiting))
    job = place.get("Job", "drained-train")
    pod = trains(place, "drained", other_than=pod)

    place.kubectl("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0")
    trains(place, "drained", other_than=pod)
    done = place.wait_complete("drained")

    record("Node drained, then pod deleted with --force; backoffLimit is 1", describe(done))
    assert job["status"].get("failed", 0) == 0
    assert resumptions(done) == 2


def trains(place: Place, name: str, *, other_than: Object | None = None) -> Object:
    """Return the pod that trains, once it has saved a step, and told of more steps than its predecessor has."""
    before = step_of(place.get("FineTuningJob", name)) if other_than else 0
    former = (other_than["metadata"]["name"],) if other_than else ()
    told = place.wait_for_job(name, lambda found: has_ended(found) or step_of(found) > before + SAVED_EVERY)
    assert not has_ended(told), conditions(told)
    return place.wait_for_pod("train", other_than=former)


def resumptions(job: Object) -> int:
    """Return how often a job says that its training was resumed, always from a checkpoint."""
    told = RESUMED.fullmatch(condition(job, "Trained")["message"])
    assert told, condition(job, "Trained")
    assert int(told.group(2)) > 0
    return int(told.group(1))


def describe(job: Object) -> str:
    """Return stage and conditions of a job as the record shows them."""
    train = stage(job, "train")
    return f"stage train: {train['state']}, attempts {train['attempts']}: {train['message']}\n{conditions(job)}"


@contextmanager
def drained(cluster: Cluster, pod: Object) -> Iterator[None]:
    """Drain a pod's node of this pod, as an administrator does; it takes pods again when the block ends."""
    name = pod["spec"]["nodeName"]
    chosen = f"--pod-selector=batch.kubernetes.io/job-name={pod['metadata']['labels']['batch.kubernetes.io/job-name']}"
    try:
        cluster.kubectl("drain", name, chosen, "--delete-emptydir-data", "--timeout=90s")
        yield
    finally:
        cluster.kubectl("uncordon", name)
