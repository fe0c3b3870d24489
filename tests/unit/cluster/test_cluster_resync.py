"""Full lists against missed events, trashed claims, and progress after a restart."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.fake_api import FakeApi
from tests.support.lifecycle import job, relocation

from finetuning_operator.cluster.api import ListResult
from finetuning_operator.cluster.cache import Cache
from finetuning_operator.cluster.errors import Forbidden, NotServed, Unavailable
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import OPTIONAL_KINDS, ROUTE, SCALED_OBJECT, KindRef
from finetuning_operator.cluster.resync import Resync
from finetuning_operator.cluster.trash import TrashCollector
from finetuning_operator.cluster.view import parse, written_progress
from finetuning_operator.reconcile.stages import progress_status

MODEL = ObjectKey("Relocation", "team", "model")
CLAIM = ObjectKey("PersistentVolumeClaim", "team", "demo-adapter")
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def claim(owner_uid: str, *, name: str = CLAIM.name) -> dict[str, Any]:
    labels = {"finetuning.dev/retention": "Trash", "finetuning.dev/owner-uid": owner_uid}
    metadata = {"name": name, "namespace": CLAIM.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": CLAIM.kind, "metadata": metadata, "spec": {}}


def resync(api: FakeApi, cache: Cache, woken: list[ObjectKey], *namespaces: str) -> Resync:
    return Resync(api, cache, namespaces=namespaces, wake=woken.extend)


def test_what_events_did_not_tell_is_found_by_the_next_list() -> None:
    api, cache, woken = FakeApi(), Cache(), list[ObjectKey]()
    lists = resync(api, cache, woken)
    api.store(relocation("team"))
    asyncio.run(lists.once())
    assert woken == [MODEL]
    asyncio.run(lists.once())
    assert woken == [MODEL]
    api.remove(MODEL)
    asyncio.run(lists.once())
    assert (woken, MODEL in cache) == ([MODEL, MODEL], False)


def test_only_the_namespaces_that_are_served_are_listed() -> None:
    api, cache, woken = FakeApi(), Cache(), list[ObjectKey]()
    for namespace in ("team", "other"):
        api.store(relocation(namespace))
    asyncio.run(resync(api, cache, woken, "team").once())
    assert woken == [MODEL]


def test_a_list_that_fails_drops_nothing_and_does_not_count() -> None:
    api, cache, woken = FakeApi(), Cache(), list[ObjectKey]()
    lists = resync(api, cache, woken)
    cache.put("Relocation", api.store(relocation("team")))
    for error in (NotServed("no such path", status=404), Unavailable("no answer")):
        api.refuse("list", error)
        try:
            asyncio.run(lists.once())
        except type(error):
            pass
        assert (MODEL in cache, lists.synced, lists.age_seconds) == (True, False, None)


class SomeKinds(FakeApi):
    """An API server that does not know every kind."""

    unknown: frozenset[KindRef] = frozenset(OPTIONAL_KINDS.values())

    async def list(self, kind: KindRef, namespace: str | None = None, **more: Any) -> ListResult:  # noqa: ANN401
        if kind in self.unknown:
            message = "no such path"
            raise NotServed(message, status=404)
        return await super().list(kind, namespace, **more)


def test_kinds_that_only_some_clusters_know_are_looked_for_at_every_list() -> None:
    api, cache = SomeKinds(), Cache()
    lists = resync(api, cache, [])
    asyncio.run(lists.once())
    before = ROUTE in lists.served
    api.unknown = frozenset({SCALED_OBJECT})
    asyncio.run(lists.once())
    known = (ROUTE in lists.served, SCALED_OBJECT in lists.served)
    head = {"name": "chat", "namespace": "team", "uid": "1", "resourceVersion": "7"}
    cache.put(ROUTE.kind, {"kind": ROUTE.kind, "metadata": head})
    api.unknown = frozenset({ROUTE})
    asyncio.run(lists.once())

    assert (before, known) == (False, (True, False))
    assert (ROUTE in lists.served, SCALED_OBJECT in lists.served) == (False, True)
    assert cache.keys(ROUTE.kind) == ()


def test_a_claim_whose_job_is_gone_is_marked_and_deleted_when_its_time_is_over() -> None:
    api, cache, now = FakeApi(), Cache(), [START]
    collector = TrashCollector(api, cache, ttl_seconds=60, now=lambda: now[0])
    made = api.store(job("team"))
    cache.put("FineTuningJob", made)
    cache.put(CLAIM.kind, api.store(claim(made["metadata"]["uid"])))
    assert asyncio.run(collector.collect()) is None
    assert api.writes == []

    cache.forget(ObjectKey("FineTuningJob", "team", "demo"))
    assert asyncio.run(collector.collect()) == 60
    assert api.objects[CLAIM]["metadata"]["annotations"] == {"finetuning.dev/trashed-at": "2026-03-01T12:00:00Z"}

    now[0] += timedelta(seconds=20)
    assert asyncio.run(collector.collect()) == 40
    now[0] += timedelta(seconds=40)
    assert asyncio.run(collector.collect()) is None
    assert CLAIM not in api.objects
    assert api.writes == [("patch", f"{CLAIM.kind}/{CLAIM.name}"), ("delete", f"{CLAIM.kind}/{CLAIM.name}")]


def test_a_claim_that_cannot_be_changed_keeps_no_other_one() -> None:
    api, cache, now = FakeApi(), Cache(), [START]
    collector = TrashCollector(api, cache, ttl_seconds=60, now=lambda: now[0])
    for name in ("first", "second", "third"):
        cache.put(CLAIM.kind, api.store(claim("gone", name=name)))

    def left() -> dict[str, bool]:
        claims = {key.name: found["metadata"].get("annotations", {}) for key, found in api.objects.items()}
        return {name: "finetuning.dev/trashed-at" in noted for name, noted in claims.items()}

    api.refuse("patch", Forbidden("a policy says no", status=403))
    assert asyncio.run(collector.collect()) == 60
    assert left() == {"first": False, "second": True, "third": True}

    now[0] += timedelta(seconds=60)
    api.refuse("patch", Forbidden("a policy says no", status=403))
    api.refuse("delete", Forbidden("a policy says no", status=403))
    asyncio.run(collector.collect())
    assert left() == {"first": False, "second": True}


def test_a_mark_of_a_stranger_deletes_nothing() -> None:
    api, cache = FakeApi(), Cache()
    odd = claim("gone")
    odd["metadata"]["labels"]["finetuning.dev/retention"] = "Perhaps"
    odd["metadata"]["annotations"] = {"finetuning.dev/trashed-at": "long ago"}
    cache.put(CLAIM.kind, api.store(odd))
    collector = TrashCollector(api, cache, ttl_seconds=0, now=lambda: START)
    assert asyncio.run(collector.collect()) is None
    assert api.writes == []


def test_after_a_restart_the_written_progress_stands_until_the_next_report() -> None:
    progress = {
        "percent": 41,
        "step": 410,
        "totalSteps": 1000,
        "etaSeconds": 90,
        "tokensPerSecond": 1234.5,
        "loss": 0.1875,
        "updatedAt": "2026-03-01T12:00:00Z",
    }
    manifest = job("team") | {
        "status": {"stages": [{"name": "train", "state": "Running"}], "progress": progress},
    }
    resource = parse("FineTuningJob", manifest)
    report = written_progress(resource, "train")
    told = progress_status(report)
    assert told is not None
    assert told.to_wire() == progress
    assert written_progress(resource, "preflight") is None
