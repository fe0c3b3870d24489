"""The cache: what is newer counts, names are not identities, indexes follow."""

from collections.abc import Mapping
from typing import Any

from finetuning_operator.cluster.cache import Cache, key_of, step_of
from finetuning_operator.cluster.keys import ObjectKey

JOB = ObjectKey("FineTuningJob", "team", "demo")
RELOCATION = ObjectKey("Relocation", "team", "reloc-1")


def manifest(
    name: str, *, uid: str = "u1", version: int = 1, metadata: Mapping[str, object] | None = None, **fields: object
) -> dict[str, Any]:
    base = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version)}
    return {"metadata": base | dict(metadata or {}), **fields}


def owned(
    name: str,
    *,
    owner_uid: str = "u1",
    kind: str = "FineTuningJob",
    version: int = 1,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    api_version = "finetuning.dev/v1alpha1" if kind != "Job" else "batch/v1"
    reference = {"apiVersion": api_version, "kind": kind, "name": "demo", "uid": owner_uid, "controller": True}
    return manifest(name, version=version, metadata={"ownerReferences": [reference], "labels": dict(labels or {})})


def listed(cache: Cache, *items: dict[str, Any], version: int, namespace: str | None = None) -> frozenset[ObjectKey]:
    concerned = [cache.put("FineTuningJob", item) for item in items]
    keys = {key_of("FineTuningJob", item) for item in items}
    return cache.retain("FineTuningJob", keys, version=version, namespace=namespace).union(*concerned)


def test_an_older_version_changes_nothing_and_wakes_nobody() -> None:
    cache = Cache()
    assert cache.put("FineTuningJob", manifest("demo", version=7, spec={"a": 1})) == {JOB}
    assert cache.put("FineTuningJob", manifest("demo", version=6, spec={"a": 2})) == frozenset()
    assert cache.put("FineTuningJob", manifest("demo", version=7, spec={"a": 3})) == frozenset()
    assert (cache.get(JOB) or {})["spec"] == {"a": 1}


def test_a_list_made_before_a_deletion_does_not_bring_the_object_back() -> None:
    cache = Cache()
    cache.put("FineTuningJob", manifest("demo", version=7))
    assert cache.remove("FineTuningJob", manifest("demo", version=9)) == {JOB}
    assert listed(cache, manifest("demo", version=7), version=8) == frozenset()
    assert JOB not in cache
    assert cache.put("FineTuningJob", manifest("demo", uid="u2", version=10)) == {JOB}


def test_a_full_list_tells_what_changed_and_what_is_gone_but_not_what_is_newer_than_it() -> None:
    cache = Cache()
    for name, version in (("same", 1), ("gone", 2), ("changed", 3), ("newer", 9)):
        cache.put("FineTuningJob", manifest(name, version=version))
    items = [manifest("same", version=1), manifest("changed", version=5, spec={"a": 1}), manifest("new", version=4)]
    concerned = listed(cache, *items, version=6)
    assert {key.name for key in concerned} == {"gone", "changed", "new"}
    assert {key.name for key in cache.keys("FineTuningJob")} == {"same", "changed", "newer", "new"}


def test_a_list_of_one_namespace_says_nothing_about_others() -> None:
    cache = Cache()
    cache.put("FineTuningJob", manifest("demo"))
    assert listed(cache, version=9, namespace="other") == frozenset()
    assert listed(cache, version=9, namespace="team") == {JOB}


def test_a_name_that_was_deleted_and_made_again_is_another_object_with_children_of_its_own() -> None:
    cache = Cache()
    cache.put("FineTuningJob", manifest("demo", uid="u1", version=1))
    cache.put("Job", owned("demo-train", owner_uid="u1", version=2))
    cache.put("FineTuningJob", manifest("demo", uid="u2", version=5))
    assert cache.remove("FineTuningJob", manifest("demo", uid="u1", version=4)) == frozenset()
    assert cache.identity(JOB) == ("u2", 5)
    assert cache.children("u2", "Job") == ()
    assert cache.children("u1", "Job") == (ObjectKey("Job", "team", "demo-train"),)


def test_a_child_wakes_its_owner_and_so_does_its_end() -> None:
    cache = Cache()
    child = owned("demo-train", version=2)
    assert cache.put("Job", child) == {JOB}
    assert cache.remove("Job", child | {"metadata": child["metadata"] | {"resourceVersion": "3"}}) == {JOB}
    assert cache.children("u1", "Job") == ()


def test_a_pod_wakes_the_object_its_labels_name_and_belongs_to_its_job() -> None:
    cache = Cache()
    labels = {"finetuning.dev/kind": "FineTuningJob", "finetuning.dev/name": "demo"}
    pod = owned("demo-train-x", kind="Job", owner_uid="job-uid", labels=labels)
    assert cache.put("Pod", pod) == {JOB}
    assert cache.children("job-uid", "Pod") == (ObjectKey("Pod", "team", "demo-train-x"),)


def test_whoever_reads_an_object_is_woken_by_it() -> None:
    cache = Cache()
    cache.put("FineTuningJob", manifest("demo", version=1))
    assert cache.refer(JOB, frozenset({RELOCATION})) == {RELOCATION}
    assert cache.refer(JOB, frozenset({RELOCATION})) == frozenset()
    assert cache.put("Relocation", manifest("reloc-1", uid="r1", version=2)) == {RELOCATION, JOB}
    assert cache.referrers(RELOCATION) == (JOB,)
    assert cache.remove("FineTuningJob", manifest("demo", version=3)) == {JOB, RELOCATION}
    assert cache.referrers(RELOCATION) == ()


def test_live_pods_hold_their_claims_and_tell_where() -> None:
    def pod(name: str, *, version: int, phase: str, node: str = "") -> dict[str, Any]:
        volumes = [{"name": "model", "persistentVolumeClaim": {"claimName": "reloc-1"}}, {"name": "tmp"}]
        spec = {"nodeName": node, "containers": [{"name": "main", "env": [1]}], "volumes": volumes}
        return manifest(name, uid=name, version=version, spec=spec, status={"phase": phase})

    cache = Cache()
    cache.put("Pod", pod("a", version=1, phase="Running", node="node-a"))
    cache.put("Pod", pod("b", version=2, phase="Pending"))
    assert cache.holders("team", "reloc-1") == {"node-a": {"a"}, "": {"b"}}
    cache.put("Pod", pod("b", version=3, phase="Running", node="node-b"))
    assert cache.holders("team", "reloc-1") == {"node-a": {"a"}, "node-b": {"b"}}
    cache.put("Pod", pod("a", version=4, phase="Succeeded", node="node-a"))
    cache.remove("Pod", pod("b", version=5, phase="Running", node="node-b"))
    assert cache.holders("team", "reloc-1") == {}


def test_the_holders_of_a_claim_are_found_by_its_whole_name_however_long() -> None:
    def pod(name: str, claim: str) -> dict[str, Any]:
        spec = {"nodeName": f"node-{name}", "volumes": [{"name": "x", "persistentVolumeClaim": {"claimName": claim}}]}
        return manifest(name, uid=name, spec=spec, status={"phase": "Running"})

    cache, long = Cache(), "a" * 252
    cache.put("Pod", pod("a", f"{long}1"))
    cache.put("Pod", pod("b", f"{long}2"))

    assert cache.holders("team", f"{long}1") == {"node-a": {"a"}}
    assert cache.holders("team", f"{long}2") == {"node-b": {"b"}}


def test_a_claim_on_its_way_out_concerns_whoever_has_a_pod_that_mounts_it() -> None:
    cache = Cache()
    volumes = [{"name": "model", "persistentVolumeClaim": {"claimName": "reloc-1"}}]
    told = {"finetuning.dev/kind": "FineTuningJob", "finetuning.dev/name": "demo"}
    pod = manifest("a", metadata={"labels": told}, spec={"volumes": volumes}, status={"phase": "Running"})
    cache.put("Pod", pod)
    going = {"deletionTimestamp": "2026-03-01T12:00:00Z"}

    assert cache.put("PersistentVolumeClaim", manifest("reloc-1", version=2)) == frozenset()
    assert cache.put("PersistentVolumeClaim", manifest("reloc-1", version=3, metadata=going)) == {JOB}


def test_only_what_reconciling_reads_is_kept() -> None:
    cache = Cache()
    noise = {"managedFields": [1], "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x", "own": "y"}}
    cache.put("FineTuningJob", manifest("demo", metadata=noise, spec={"a": 1}))
    assert cache.get(JOB) == manifest("demo", metadata={"annotations": {"own": "y"}}, spec={"a": 1})
    cache.put("Job", manifest("train", spec={"backoffLimit": 3, "template": {"spec": {}}}))
    assert (cache.get(ObjectKey("Job", "team", "train")) or {})["spec"] == {"backoffLimit": 3}


def test_of_a_job_it_is_kept_which_step_its_template_runs() -> None:
    cache, train = Cache(), ObjectKey("Job", "team", "train")
    labels = {"finetuning.dev/step": "train", "app": "own"}
    cache.put(
        "Job", manifest("train", spec={"parallelism": 1, "template": {"metadata": {"labels": labels}, "spec": {}}})
    )
    spec = (cache.get(train) or {})["spec"]
    assert spec == {"parallelism": 1, "template": {"metadata": {"labels": {"finetuning.dev/step": "train"}}}}
    assert step_of(spec) == "train"


def test_an_ended_object_is_known_as_ended_and_one_on_its_way_out_as_deleting() -> None:
    cache = Cache()
    ended = {"conditions": [{"type": "Failed", "status": "True"}]}
    cache.put("FineTuningJob", manifest("demo", version=1, metadata={"deletionTimestamp": "now"}, status=ended))
    assert (cache.is_finished(JOB), cache.is_deleting(JOB)) == (True, True)
    running = {"conditions": [{"type": "Failed", "status": "False"}]}
    cache.put("FineTuningJob", manifest("demo", version=2, status=running))
    assert (cache.is_finished(JOB), cache.is_deleting(JOB)) == (False, False)


def test_a_new_version_in_which_nothing_changed_that_is_read_wakes_nobody() -> None:
    cache = Cache()
    child = owned("demo-train", version=2) | {"status": {"startTime": "2026-03-01T12:00:00Z"}}
    assert cache.put("Job", child) == {JOB}
    counted = child["status"] | {"active": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}}
    head = child["metadata"] | {"resourceVersion": "3", "managedFields": [1], "finalizers": ["a"]}
    assert cache.put("Job", child | {"metadata": head, "status": counted}) == frozenset()
    assert cache.get(ObjectKey("Job", "team", "demo-train")) == child | {
        "metadata": child["metadata"] | {"resourceVersion": "3"},
        "spec": {},
    }
    ended = {"conditions": [{"type": "Complete", "status": "True"}]}
    assert cache.put("Job", child | {"metadata": head | {"resourceVersion": "4"}, "status": ended}) == {JOB}


def test_where_a_claim_gets_its_volume_from_wakes_nobody() -> None:
    cache = Cache()
    claim = owned("demo-adapter", version=2) | {"spec": {"accessModes": ["ReadWriteOnce"]}}
    assert cache.put("PersistentVolumeClaim", claim) == {JOB}
    provisioned = {"volume.kubernetes.io/storage-provisioner": "disks", "pv.kubernetes.io/bind-completed": "yes"}
    head = claim["metadata"] | {"resourceVersion": "3", "annotations": provisioned}
    bound = {"metadata": head, "spec": claim["spec"] | {"volumeName": "v"}, "status": {"phase": "Bound"}}
    assert cache.put("PersistentVolumeClaim", bound) == frozenset()
    marked = head | {"resourceVersion": "4", "annotations": {"finetuning.dev/trashed-at": "2026-03-01T12:00:00Z"}}
    assert cache.put("PersistentVolumeClaim", bound | {"metadata": marked}) == {JOB}


def test_what_an_autoscaler_measures_wakes_nobody() -> None:
    cache = Cache()
    scaler = owned("demo", kind="InferenceServer", version=2) | {"spec": {"maxReplicas": 3}}
    told = ObjectKey("InferenceServer", "team", "demo")
    assert cache.put("HorizontalPodAutoscaler", scaler) == {told}
    later = scaler | {"metadata": scaler["metadata"] | {"resourceVersion": "3"}, "status": {"currentReplicas": 2}}
    assert cache.put("HorizontalPodAutoscaler", later) == frozenset()
    moved = later | {"metadata": scaler["metadata"] | {"resourceVersion": "4"}, "spec": {"maxReplicas": 9}}
    assert cache.put("HorizontalPodAutoscaler", moved) == {told}


def test_what_is_read_by_many_hears_of_the_first_and_of_the_last_of_a_kind() -> None:
    cache = Cache()
    reads, second = frozenset({RELOCATION}), ObjectKey("FineTuningJob", "team", "second")
    server = ObjectKey("InferenceServer", "team", "demo")
    assert [cache.refer(key, reads) for key in (JOB, second, server)] == [reads, frozenset(), reads]
    assert [cache.refer(key, frozenset()) for key in (JOB, second, server)] == [frozenset(), reads, reads]


def test_what_was_told_to_go_is_on_its_way_out_before_anybody_says_so() -> None:
    cache, train = Cache(), ObjectKey("Job", "team", "demo-train")
    cache.put("Job", owned("demo-train", version=2))
    cache.expect_deletion(train, "another")
    assert not cache.is_deleting(train)
    cache.expect_deletion(train, "u1")
    assert cache.is_deleting(train)
    assert "deletionTimestamp" in (cache.get(train) or {})["metadata"]
    assert cache.identity(train) == ("u1", 2)
    assert cache.put("Job", owned("demo-train", version=3)) == {JOB}
    assert not cache.is_deleting(train)
