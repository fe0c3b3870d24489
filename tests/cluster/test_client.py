"""The Python client against a real API server."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from tests.support import objects
from tests.support.cluster import Cluster, Object
from tests.support.private_plane import PrivatePlane

from finetuning_api.base import ConditionType
from finetuning_api.finetuningjob import FineTuningJob, JobPhase
from finetuning_client import (
    Client,
    ClusterError,
    Goal,
    KindsMissingError,
    NotFoundError,
    RefusedError,
    WaitFailedError,
    WaitTimeoutError,
)
from finetuning_client.api import Kind
from finetuning_client.errors import Cause, ConflictError

T = TypeVar("T")
TIME = "2026-03-01T12:00:00Z"


@pytest.fixture
def client(cluster: Cluster, namespace: str) -> Client:
    return Client(kubeconfig=cluster.kubeconfig, namespace=namespace)


def condition(name: str, reason: str, *, status: str = "True", message: str = "") -> Object:
    return {"type": name, "status": status, "reason": reason, "message": message, "lastTransitionTime": TIME}


COMPLETE: Object = {
    "phase": "Complete",
    "conditions": [condition("Complete", "Succeeded"), condition("GatePassed", "GatePassed", message="0.8 >= 0.1")],
    "evaluation": [{"metric": "exact-match", "base": 0.1, "tuned": 0.9, "delta": 0.8, "samples": 2}],
    "verdict": "Pass",
}
FAILED: Object = {"phase": "Failed", "conditions": [condition("Failed", "OutOfMemory", message="train: no memory")]}


def tell(cluster: Cluster, namespace: str, name: str = "demo", **status: object) -> None:
    """Write a status as the operator would."""
    item = cluster.get("FineTuningJob", name, namespace)
    cluster.patch(item, {"status": status}, subresource="status")


def in_background(work: Callable[[], T]) -> Callable[[], T]:
    """Start some work; the answer waits for it and returns what it returned."""
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def answer() -> T:
        thread.join(60)
        assert results, "the work failed or is not over"
        return results[0]

    return answer


def test_what_is_created_is_what_comes_back(client: Client) -> None:
    made = client.jobs.create(objects.job(training={"epochs": 2}))

    assert made.spec == objects.job(training={"epochs": 2}).spec
    assert client.jobs.get("demo") == made
    assert client.jobs.list() == [made]


def test_only_what_was_set_is_owned(client: Client, cluster: Cluster, namespace: str) -> None:
    client.jobs.apply(objects.job(training={"epochs": 2}))

    [entry] = cluster.get("FineTuningJob", "demo", namespace)["metadata"]["managedFields"]
    assert entry["manager"] == "finetune"
    assert set(entry["fieldsV1"]["f:spec"]) == {"f:model", "f:dataset", "f:training"}
    assert set(entry["fieldsV1"]["f:spec"]["f:training"]) == {"f:epochs"}


def test_apply_changes_what_may_change_and_is_refused_the_rest(client: Client) -> None:
    client.jobs.apply(objects.job())

    assert client.jobs.apply(objects.job(ttl_seconds_after_finished=60)).spec.ttl_seconds_after_finished == 60
    with pytest.raises(RefusedError) as caught:
        client.jobs.apply(objects.job(backoff_limit=9))
    [cause] = caught.value.causes
    assert cause.field == "spec.backoffLimit"
    assert cause.message.startswith("backoffLimit is fixed at creation; create a new FineTuningJob with another name")


def test_a_path_of_this_machine_is_refused_before_anything_is_sent(client: Client) -> None:
    local = objects.job(dataset={"source": "data/rows.jsonl", "completion": "{a}"})

    with pytest.raises(RefusedError, match=r"spec\.dataset\.source: is a path on this machine") as caught:
        client.jobs.create(local)

    assert [cause.field for cause in caught.value.causes] == ["spec.dataset.source"]
    assert client.jobs.list() == []


def test_an_object_is_created_once(client: Client) -> None:
    client.jobs.create(objects.job())

    with pytest.raises(ConflictError, match="FineTuningJob demo exists already"):
        client.jobs.create(objects.job())


def test_what_is_deleted_is_gone(client: Client) -> None:
    client.jobs.create(objects.job())
    client.jobs.delete("demo")

    for ask in (client.jobs.get, client.jobs.delete, client.jobs.suspend):
        with pytest.raises(NotFoundError, match="there is no FineTuningJob demo"):
            ask("demo")


def test_suspend_and_resume(client: Client) -> None:
    client.jobs.create(objects.job())

    assert client.jobs.suspend("demo").spec.suspend
    assert not client.jobs.resume("demo").spec.suspend
    with pytest.raises(ClusterError, match="a Relocation cannot be suspended"):
        client.relocations.suspend("demo")


def test_a_name_is_never_a_path(client: Client) -> None:
    with pytest.raises(ClusterError):
        client.jobs.get("../../../../api/v1/namespaces/default")


def test_kinds_that_the_cluster_does_not_serve_are_told(client: Client) -> None:
    with pytest.raises(KindsMissingError) as caught:
        client.api.list(Kind("Future", "futures"))

    assert "does not know futures" in caught.value.message
    assert "Install the operator" in caught.value.hint


def test_wait_returns_the_job_when_it_is_complete(client: Client, cluster: Cluster, namespace: str) -> None:
    client.jobs.create(objects.job())
    finished = in_background(lambda: client.jobs.wait("demo", 60))

    tell(cluster, namespace, phase="Training")
    tell(cluster, namespace, **COMPLETE)

    assert finished().status.phase is JobPhase.COMPLETE


def test_wait_tells_why_it_can_never_be(client: Client, cluster: Cluster, namespace: str) -> None:
    client.jobs.create(objects.job())
    tell(cluster, namespace, **FAILED)

    with pytest.raises(WaitFailedError, match=r"FineTuningJob demo: Failed \(OutOfMemory\): train: no memory"):
        client.jobs.wait("demo", 60)
    assert client.jobs.wait("demo", 60, goal=Goal(ConditionType.FAILED)).status.phase is JobPhase.FAILED


def test_wait_has_an_end(client: Client) -> None:
    client.jobs.create(objects.job())

    with pytest.raises(WaitTimeoutError):
        client.jobs.wait("demo", 0.1)


def test_progress_yields_every_change_until_the_end(client: Client, cluster: Cluster, namespace: str) -> None:
    client.jobs.create(objects.job())
    progress = client.jobs.progress("demo", timeout=60)
    seen: list[str] = []
    for number, job in enumerate(progress):
        assert isinstance(job, FineTuningJob)
        seen.append(job.status.phase.value)
        tell(cluster, namespace, **({"phase": "Training"} if number == 0 else COMPLETE))

    assert seen == ["Pending", "Training", "Complete"]
    assert "<b>FineTuningJob demo</b> Complete" in progress._repr_html_()


def test_results_are_rows_and_a_table(client: Client, cluster: Cluster, namespace: str) -> None:
    client.jobs.create(objects.job())
    with pytest.raises(ClusterError, match="no results yet"):
        client.jobs.results("demo")
    tell(cluster, namespace, **COMPLETE)

    results = client.jobs.results("demo")

    assert results["exact-match"].tuned == 0.9
    assert results.records() == COMPLETE["evaluation"]
    assert "<td>exact-match</td><td>0.1</td><td>0.9</td>" in results._repr_html_()
    assert "Pass: 0.8 &gt;= 0.1" in results._repr_html_()


def test_the_namespace_of_the_context_is_the_default(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig.read_text())
    cluster.kubectl("config", "set-context", "--current", f"--namespace={namespace}", f"--kubeconfig={kubeconfig}")

    assert repr(Client(kubeconfig=kubeconfig)) == f"Client(namespace {namespace} of context test)"


def test_causes_are_told_once_and_without_the_words_of_the_server(client: Client) -> None:
    content = {"apiVersion": "finetuning.dev/v1alpha1", "kind": "Relocation", "metadata": {"name": "a"}}

    with pytest.raises(RefusedError) as caught:
        client.api.create(Kind("Relocation", "relocations"), content | {"spec": {"source": "ftp://a/b", "sorce": 1}})
    assert caught.value.causes == (Cause("spec.sorce", "is not a field of this API"),)

    with pytest.raises(RefusedError) as caught:
        client.api.create(Kind("Relocation", "relocations"), content | {"spec": {"source": "hf://a"}})
    message = "an hf:// source is hf://owner/name for a model or hf://datasets/owner/name for a data set"
    assert caught.value.causes == (Cause("spec.source", message),)


def test_a_wait_outlives_a_restart_of_the_api_server(private_plane: PrivatePlane) -> None:
    cluster = private_plane.cluster
    client = Client(kubeconfig=cluster.kubeconfig)
    client.jobs.create(objects.job())
    seen = threading.Event()

    def wait() -> JobPhase:
        for job in client.jobs.watch("demo", timeout=120):
            seen.set()
            phase = job.status.phase
        return phase

    last = in_background(wait)
    assert seen.wait(60)
    private_plane.restart("kube-apiserver")
    tell(cluster, "default", **COMPLETE)

    assert last() is JobPhase.COMPLETE
