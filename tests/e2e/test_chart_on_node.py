"""The chart on a real node: ready soon, upgraded under a running training, gone without a trace, and back again."""

from collections.abc import Iterator

import pytest
from tests.support.chart import helm
from tests.support.cluster import Object, has_condition
from tests.support.e2e import OPERATOR, RELEASE, SYSTEM, Installation, Place, endless, is_stepping, record
from tests.support.lifecycle import stage
from tests.support.timeline import Timeline, watched

KINDS = ("FineTuningJob", "EvaluationJob", "InferenceServer", "Relocation")


@pytest.fixture
def training(place: Place) -> Iterator[Object]:
    """A job whose training goes on until it is deleted."""
    job = place.tiny_job("demo", endless())
    yield place.wait_for_job("demo", is_stepping)
    if place.cluster.find("FineTuningJob", "demo", place.namespace) is not None:
        place.cluster.delete(job)


def test_the_test_of_the_release_passes(installation: Installation) -> None:
    done = helm("test", RELEASE, "--namespace", SYSTEM, kubeconfig=installation.cluster.kubeconfig)

    assert "Phase:          Succeeded" in done.stdout
    record("helm test", done.stdout)


def test_a_new_operator_is_ready(installation: Installation) -> None:
    former = tuple(pod["metadata"]["uid"] for pod in installation.pods())
    with watched(installation.cluster, SYSTEM, "Pod") as timeline:
        installation.cluster.kubectl("rollout", "restart", f"deployment/{OPERATOR}", "-n", SYSTEM)
        uid = installation.wait_ready(other_than=former)["metadata"]["uid"]
        moments = {what: _first(timeline, uid, what) for what in ("PodScheduled", "running", "Ready")}

    began = moments["running"]
    lines = [f"{moment - began:6.2f} s  {what}" for what, moment in moments.items()]
    record("A new operator, from the start of its container", "\n".join(lines))


def test_an_upgrade_leaves_a_running_training_alone(installation: Installation, place: Place, training: Object) -> None:
    pod = place.wait_for_pod("train")
    former = tuple(each["metadata"]["uid"] for each in installation.pods())
    told = training["status"]["progress"]["updatedAt"]

    installation.install({"operator": {"logLevel": "DEBUG"}})
    installation.wait_ready(other_than=former)

    def goes_on(found: Object) -> bool:
        return bool((found["status"].get("progress") or {}).get("updatedAt", told) > told)

    upgraded = place.wait_for_job("demo", goes_on)
    assert place.wait_for_pod("train")["metadata"]["uid"] == pod["metadata"]["uid"]
    assert (stage(upgraded, "train")["state"], stage(upgraded, "train")["attempts"]) == ("Running", 1)
    record("A training after helm upgrade", place.finetune("status", "demo", "--cluster"))


def test_what_is_uninstalled_leaves_work_alone_and_is_taken_up_again(
    installation: Installation, place: Place, training: Object
) -> None:
    pod = place.wait_for_pod("train")

    installation.uninstall()
    try:
        assert installation.pods() == []
        assert place.wait_for_pod("train")["metadata"]["uid"] == pod["metadata"]["uid"]
        assert place.get("FineTuningJob", "demo")["metadata"]["uid"] == training["metadata"]["uid"]
        place.tiny_job("unseen")
        place.kubectl("delete", "ftj", "unseen", "--wait=true", "--timeout=30s")
    finally:
        installation.install()

    last = place.get("FineTuningJob", "demo")["status"]["progress"]["updatedAt"]
    place.wait_for_job("demo", lambda found: found["status"]["progress"]["updatedAt"] > last)
    assert place.wait_for_pod("train")["metadata"]["uid"] == pod["metadata"]["uid"]
    place.cluster.patch(training, {"spec": {"suspend": True}})
    place.wait_for_job("demo", lambda found: has_condition(found, "Suspended"))
    place.cluster.wait_for(lambda: not place.pods("train"), what="the training has stopped")
    place.kubectl("delete", "ftj", "demo", "--wait=true", "--timeout=60s")


def test_without_crds_keep_nothing_at_all_stays(installation: Installation, place: Place) -> None:
    cluster = installation.cluster
    elsewhere = {(kind, each["metadata"]["namespace"]) for kind in KINDS for each in cluster.objects(kind)}
    foreign = {namespace for _, namespace in elsewhere if not namespace.startswith("e2e-")}
    if foreign:
        pytest.skip(f"it would delete what is not of these tests, in {', '.join(sorted(foreign))}")
    place.tiny_job("demo", endless())
    place.wait_for_pod("train")

    installation.install({"crds": {"keep": False}})
    installation.uninstall()
    try:
        left = [each["metadata"]["name"] for each in cluster.objects("CustomResourceDefinition")]
        assert not [name for name in left if name.endswith(".finetuning.dev")]
        cluster.wait_for(lambda: not cluster.objects("Pod", place.namespace), what="no pod is left")
        roles = [each["metadata"]["name"] for each in cluster.objects("ClusterRole")]
        assert not [name for name in roles if "finetuning" in name]
        claims = [each["metadata"]["name"] for each in cluster.objects("PersistentVolumeClaim", place.namespace)]
        record("What stays after uninstalling with crds.keep=false", f"claims of the namespace: {claims}")
    finally:
        installation.install()


def _first(timeline: Timeline, uid: str, what: str) -> float:
    """Return when a pod was first scheduled, running or ready."""

    def is_so(pod: Object) -> bool:
        if pod["metadata"]["uid"] != uid:
            return False
        states = [each["state"] for each in pod["status"].get("containerStatuses", ())]
        return has_condition(pod, what) if what != "running" else any("running" in each for each in states)

    return timeline.first("Pod", is_so)
