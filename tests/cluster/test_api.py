"""What the API server really says to each call, and what becomes of it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.incluster_config import InClusterConfigLoader
from tests.support.api_proxy import ApiProxy, Fault, Trouble
from tests.support.cluster import Cluster
from tests.support.operator_process import Identity

from finetuning_api.reasons import Reason
from finetuning_operator.cluster import api as api_module
from finetuning_operator.cluster import kinds
from finetuning_operator.cluster.api import Call, ClusterApi, Propagation, TokenBucket, connect
from finetuning_operator.cluster.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    NamespaceTerminating,
    NotFound,
    NotServed,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unavailable,
)
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import KindRef
from finetuning_operator.cluster.recorder import Recorder
from finetuning_operator.reconcile.plan import Event

Use = Callable[[ClusterApi], Awaitable[Any]]

SELF_REVIEW = KindRef("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False)


def ask(kubeconfig: Path, use: Use, *, calls: list[Call] | None = None) -> Any:  # noqa: ANN401  (what ``use`` gives)
    """Let ``use`` talk to the cluster of a kubeconfig."""

    async def run() -> object:
        client = await connect(str(kubeconfig))
        on_call = (calls if calls is not None else []).append
        api = ClusterApi(client, bucket=TokenBucket(rate=1000, burst=1000), on_call=on_call)
        try:
            return await use(api)
        finally:
            await api.close()

    return asyncio.run(run())


def job(name: str = "a") -> dict[str, Any]:
    return {
        "apiVersion": "finetuning.dev/v1alpha1",
        "kind": "FineTuningJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "hf://org/model"},
            "dataset": {"source": "hf://org/data", "completion": "{text}"},
            "suspend": True,
        },
    }


def service(*ports: int) -> dict[str, Any]:
    named = [{"name": f"p{port}", "port": port} for port in ports]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a", "labels": {"ours": "set"}},
        "spec": {"clusterIP": "None", "ports": named},
    }


def claim() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "a"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def version(found: dict[str, Any]) -> str:
    return str(found["metadata"]["resourceVersion"])


def uid(found: dict[str, Any]) -> str:
    return str(found["metadata"]["uid"])


def test_an_object_is_made_once_read_and_deleted_by_its_uid(cluster: Cluster, namespace: str) -> None:
    calls: list[Call] = []

    async def use(api: ClusterApi) -> None:
        made = await api.create(kinds.FINE_TUNING_JOB, namespace, job())
        with pytest.raises(AlreadyExists):
            await api.create(kinds.FINE_TUNING_JOB, namespace, job())
        assert uid(await api.get(kinds.FINE_TUNING_JOB, namespace, "a")) == uid(made)
        assert not await api.delete(kinds.FINE_TUNING_JOB, namespace, "a", uid="of-an-earlier-one")
        assert await api.delete(kinds.FINE_TUNING_JOB, namespace, "a", uid=uid(made))
        assert not await api.delete(kinds.FINE_TUNING_JOB, namespace, "a", uid=uid(made))
        with pytest.raises(NotFound):
            await api.get(kinds.FINE_TUNING_JOB, namespace, "a")

    ask(cluster.kubeconfig, use, calls=calls)

    counted = [(call.verb, call.resource, call.code) for call in calls]
    assert counted == [
        (verb, "finetuningjobs", code)
        for verb, code in [
            ("create", 201),
            ("create", 409),
            ("get", 200),
            ("delete", 409),
            ("delete", 200),
            ("delete", 404),
            ("get", 404),
        ]
    ]


def test_a_status_is_replaced_as_a_whole_or_not_at_all(cluster: Cluster, namespace: str) -> None:
    async def use(api: ClusterApi) -> None:
        made = await api.create(kinds.FINE_TUNING_JOB, namespace, job())

        async def write(status: dict[str, Any], at: str) -> dict[str, Any]:
            return await api.patch_status(kinds.FINE_TUNING_JOB, namespace, "a", status=status, resource_version=at)

        first = await write({"phase": "Pending", "stages": [{"name": "train", "state": "Pending"}]}, version(made))
        second = await write({"phase": "Training", "observedGeneration": 1}, version(first))
        assert second["status"] == {"phase": "Training", "observedGeneration": 1}
        assert second["metadata"]["generation"] == made["metadata"]["generation"]
        with pytest.raises(Conflict):
            await write({"phase": "Failed"}, version(first))
        with pytest.raises(Invalid, match=r"status\.phase"):
            await write({"phase": "Dancing"}, version(second))

        # Another object of the same name has another version, always.
        assert await api.delete(kinds.FINE_TUNING_JOB, namespace, "a", uid=uid(made))
        await api.create(kinds.FINE_TUNING_JOB, namespace, job())
        with pytest.raises(Conflict):
            await write({"phase": "Failed"}, version(second))
        assert "status" not in await api.get(kinds.FINE_TUNING_JOB, namespace, "a")

    ask(cluster.kubeconfig, use)


def test_applying_takes_over_what_it_names_removes_what_it_named_and_else_changes_nothing(
    cluster: Cluster, namespace: str
) -> None:
    async def use(api: ClusterApi) -> None:
        first = await api.apply(kinds.SERVICE, namespace, "a", service(80, 81))
        again = await api.apply(kinds.SERVICE, namespace, "a", service(80, 81))
        assert version(again) == version(first)
        cluster.patch(first, {"metadata": {"labels": {"ours": "changed", "theirs": "kept"}}})

        healed = await api.apply(kinds.SERVICE, namespace, "a", service(80))

        assert [port["port"] for port in healed["spec"]["ports"]] == [80]
        assert healed["metadata"]["labels"] == {"ours": "set", "theirs": "kept"}

    ask(cluster.kubeconfig, use)


def test_a_merge_of_an_older_version_is_a_conflict(cluster: Cluster, namespace: str) -> None:
    async def use(api: ClusterApi) -> None:
        made = await api.create(kinds.CLAIM, namespace, claim())
        labelled = {"metadata": {"labels": {"a": "b"}, "resourceVersion": "1"}}
        with pytest.raises(Conflict):
            await api.merge(kinds.CLAIM, namespace, "a", labelled)
        found = await api.merge(kinds.CLAIM, namespace, "a", {"metadata": {"labels": {"a": "b"}}})
        assert (uid(found), found["metadata"]["labels"]) == (uid(made), {"a": "b"})

    ask(cluster.kubeconfig, use)


def test_lists_are_whole_in_whatever_chunks_they_come(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "_CHUNK", 2)
    names = [f"job-{number}" for number in range(5)]

    async def use(api: ClusterApi) -> None:
        for name in names:
            labels = {"half": "first" if name < "job-3" else "second"}
            await api.create(kinds.JOB, namespace, _suspended_job(name, labels))
        everything = await api.list(kinds.JOB, namespace)
        assert [(item["kind"], item["metadata"]["name"]) for item in everything.items] == [
            ("Job", name) for name in names
        ]
        assert int(everything.resource_version) >= max(int(version(item)) for item in everything.items)
        half = await api.list(kinds.JOB, namespace, label_selector="half=second", each=_name)
        assert half.items == names[3:]
        one = await api.list(kinds.JOB, namespace, field_selector="metadata.name=job-1")
        assert [item["metadata"]["name"] for item in one.items] == ["job-1"]
        cluster_wide = await api.list(kinds.JOB, each=_place)
        assert {(namespace, name) for name in names} <= set(cluster_wide.items)

    ask(cluster.kubeconfig, use)


def _name(found: dict[str, Any]) -> str:
    return str(found["metadata"]["name"])


def _place(found: dict[str, Any]) -> tuple[str, str]:
    return found["metadata"]["namespace"], _name(found)


def _suspended_job(name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    container = {"name": "main", "image": "none"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {
            "suspend": True,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }


def test_a_job_in_foreground_deletion_stays_until_its_pods_are_gone(cluster: Cluster, namespace: str) -> None:
    async def use(api: ClusterApi) -> None:
        made = await api.create(kinds.JOB, namespace, _suspended_job("a"))
        assert await api.delete(kinds.JOB, namespace, "a", uid=uid(made), propagation=Propagation.FOREGROUND)

    ask(cluster.kubeconfig, use)

    cluster.wait_gone("Job", "a", namespace)


def test_a_namespace_without_room_says_so_as_quota(cluster: Cluster, namespace: str) -> None:
    hard = {"count/jobs.batch": "0"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": namespace}}
    cluster.create(quota | {"spec": {"hard": hard}})
    cluster.wait_for_object("ResourceQuota", "none", namespace, where=lambda it: it["status"].get("hard") == hard)

    with pytest.raises(QuotaExceeded, match=r"exceeded quota: none, requested: count/jobs\.batch=1"):
        ask(cluster.kubeconfig, lambda api: api.create(kinds.JOB, namespace, _suspended_job("a")))


def test_a_namespace_on_its_way_out_says_so(cluster: Cluster, namespace: str) -> None:
    held = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "held", "namespace": namespace, "finalizers": ["tests.example.org/hold"]},
    }
    cluster.create(held)
    cluster.delete({"kind": "Namespace", "metadata": {"name": namespace}})
    try:
        with pytest.raises(NamespaceTerminating):
            ask(cluster.kubeconfig, lambda api: api.create(kinds.CLAIM, namespace, claim()))
    finally:
        cluster.patch(held, {"metadata": {"finalizers": None}})


def test_pod_security_is_no_quota(cluster: Cluster, namespace: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []}}
    pod["spec"] = {"containers": [{"name": "main", "image": "none"}]}

    with pytest.raises(Forbidden, match='violates PodSecurity "restricted') as refusal:
        ask(cluster.kubeconfig, lambda api: api.create(kinds.POD, namespace, pod))

    assert type(refusal.value) is Forbidden


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda api: api.get(KindRef("finetuning.dev", "v9", "finetuningjobs", "x"), "default", "a"), NotServed),
        (lambda api: api.list(KindRef("kueue.x-k8s.io", "v1beta1", "workloads", "Workload")), NotServed),
        (lambda api: api.create(kinds.CLAIM, "no-such-namespace", claim()), NotFound),
        (lambda api: api.create(kinds.FINE_TUNING_JOB, "default", job() | {"spec": {}}), Invalid),
        (lambda api: api.create(kinds.JOB, "default", {"kind": "Job"}), Invalid),
        (lambda api: api.apply(kinds.SERVICE, "default", "a", service(80) | {"nonsense": 1}), Invalid),
        (lambda api: api.create(kinds.CLAIM, "default", claim() | {"data": "x" * 4_000_000}), Invalid),
        (
            lambda api: api.logs("default", "no-such-pod", container="main", tail_lines=1, limit_bytes=100),
            NotFound,
        ),
    ],
)
def test_what_cannot_work_says_why(cluster: Cluster, use: Use, expected: type[ApiError]) -> None:
    with pytest.raises(expected) as refusal:
        ask(cluster.kubeconfig, use)

    assert refusal.value.message


def test_rights_are_missed_as_forbidden_and_identity_as_unauthorized(
    cluster: Cluster, operator_identity: Identity, tmp_path: Path
) -> None:
    kubeconfig = operator_identity.write_kubeconfig(tmp_path / "operator")
    secrets = KindRef("", "v1", "secrets", "Secret")

    with pytest.raises(Forbidden, match="cannot list resource"):
        ask(kubeconfig, lambda api: api.list(secrets, "default"))
    text = kubeconfig.read_text().replace(operator_identity.token, "nobody")
    stranger = tmp_path / "stranger"
    stranger.write_text(text)
    with pytest.raises(Unauthorized):
        ask(stranger, lambda api: api.list(kinds.FINE_TUNING_JOB, "default"))
    with pytest.raises(Unauthorized, match="set KUBECONFIG"):
        ask(tmp_path / "nothing", lambda api: api.list(kinds.FINE_TUNING_JOB, "default"))
    assert cluster.server == operator_identity.server


def test_a_create_whose_answer_is_lost_is_found_done_when_it_is_repeated(
    cluster: Cluster, namespace: str, operator_identity: Identity, proxy: ApiProxy, tmp_path: Path
) -> None:
    kubeconfig = operator_identity.write_kubeconfig(tmp_path / "operator", via=proxy)

    async def use(api: ClusterApi) -> None:
        proxy.fail(Fault(Trouble.CUT_AFTER, target="jobs", times=1))
        with pytest.raises(Unavailable):
            await api.create(kinds.JOB, namespace, _suspended_job("a"))
        with pytest.raises(AlreadyExists):
            await api.create(kinds.JOB, namespace, _suspended_job("a"))
        proxy.fail(Fault(Trouble.CUT_BEFORE, target="jobs", times=1))
        with pytest.raises(Unavailable):
            await api.create(kinds.JOB, namespace, _suspended_job("b"))
        await api.create(kinds.JOB, namespace, _suspended_job("b"))
        busy = HTTPStatus.TOO_MANY_REQUESTS
        proxy.fail(Fault(Trouble.STATUS, target="jobs", times=1, status=busy, retry_after=1))
        await api.create(kinds.JOB, namespace, _suspended_job("c"))
        proxy.fail(Fault(Trouble.STATUS, target="jobs", times=1, status=busy, retry_after=600))
        with pytest.raises(Throttled):
            await api.create(kinds.JOB, namespace, _suspended_job("d"))

    ask(kubeconfig, use)

    assert [found["metadata"]["name"] for found in cluster.objects("Job", namespace)] == ["a", "b", "c"]


def test_a_service_account_token_that_was_replaced_is_read_again(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    authority.write_bytes(cluster.ca.read_bytes())
    host, _, port = cluster.server.removeprefix("https://").partition(":")
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}

    async def use() -> list[str]:
        token.write_text(_token_of(cluster, namespace, "first"))
        loader = InClusterConfigLoader(token_filename=str(token), cert_filename=str(authority), environ=environ)
        loader._token_refresh_period = timedelta(0)  # A minute, else.
        configuration = Configuration()
        loader.load_and_set(configuration)
        api = ClusterApi(ApiClient(configuration), bucket=TokenBucket(rate=1, burst=1))
        try:
            before = await _who_am_i(api)
            token.write_text("")
            with pytest.raises(Unavailable, match="the token of the service account cannot be read"):
                await _who_am_i(api)
            token.write_text(_token_of(cluster, namespace, "second"))
            return [before, await _who_am_i(api)]
        finally:
            await api.close()

    assert asyncio.run(use()) == [f"system:serviceaccount:{namespace}:{name}" for name in ("first", "second")]


def _token_of(cluster: Cluster, namespace: str, account: str) -> str:
    cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace}})
    path = cluster.path("ServiceAccount", account, namespace=namespace, subresource="token")
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    return str(cluster.request("POST", path, body=request, content_type="application/json")["status"]["token"])


async def _who_am_i(api: ClusterApi) -> str:
    review = {"apiVersion": SELF_REVIEW.api_version, "kind": SELF_REVIEW.kind}
    return str((await api.create_raw(SELF_REVIEW.path(None), review))["status"]["userInfo"]["username"])


def test_events_are_told_once_and_read_well_in_kubectl_describe(
    cluster: Cluster, namespace: str, operator_identity: Identity, tmp_path: Path
) -> None:
    made = cluster.create(job() | {"metadata": {"name": "a", "namespace": namespace}})
    key = ObjectKey("FineTuningJob", namespace, "a")
    event = Event(Reason.OUT_OF_MEMORY, "the trainer ran out of memory\n" + "ä" * 2000, warning=True)

    async def tell(api: ClusterApi) -> None:
        await Recorder(api, instance="operator-0").record(key, uid(made), event)

    for _restart in range(2):
        ask(operator_identity.write_kubeconfig(tmp_path / "operator"), tell)

    (told,) = cluster.events(namespace, name="a")
    assert (told["type"], told["reason"], told["count"]) == ("Warning", "OutOfMemory", 1)
    assert 1000 < len(told["message"].encode()) <= 1024
    described = cluster.kubectl("describe", "ftj", "a", "-n", namespace).stdout
    (line,) = [line for line in described.splitlines() if "OutOfMemory" in line]
    assert line.split()[:2] == ["Warning", "OutOfMemory"]
    assert "finetuning-operator  the trainer ran out of memory ä" in line
