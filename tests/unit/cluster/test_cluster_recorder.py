import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest

from finetuning_api.reasons import Reason
from finetuning_operator.cluster.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    NamespaceTerminating,
    Throttled,
    Unavailable,
)
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import EVENT, KindRef
from finetuning_operator.cluster.recorder import Recorder, clipped, event_manifest
from finetuning_operator.reconcile.plan import Event

if TYPE_CHECKING:
    from finetuning_operator.cluster.api import ClusterApi

KEY = ObjectKey("FineTuningJob", "team", "triage")
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
FAILED = Event(Reason.OUT_OF_MEMORY, "the trainer ran out of memory", warning=True)


@dataclass
class _Api:
    """Notes what is created; ``refuse`` says with which error."""

    created: list[str] = field(default_factory=list)
    refuse: Callable[[], ApiError] | None = None

    async def create(self, kind: KindRef, namespace: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        assert (kind, namespace) == (EVENT, "team")
        self.created.append(body["metadata"]["name"])
        if self.refuse:
            raise self.refuse()
        return body


def _recorder(api: _Api) -> Recorder:
    return Recorder(cast("ClusterApi", api), instance="operator-0", now=lambda: NOON)


def test_an_event_says_what_happened_to_whom() -> None:
    manifest = event_manifest(KEY, "uid-1", FAILED, instance="operator-0", now=NOON)

    name = manifest["metadata"].pop("name")
    assert name.startswith("triage.")
    assert manifest == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "team"},
        "involvedObject": {
            "apiVersion": "finetuning.dev/v1alpha1",
            "kind": "FineTuningJob",
            "namespace": "team",
            "name": "triage",
            "uid": "uid-1",
        },
        "type": "Warning",
        "reason": "OutOfMemory",
        "message": "the trainer ran out of memory",
        "firstTimestamp": "2026-11-22T12:00:00Z",
        "lastTimestamp": "2026-11-22T12:00:00Z",
        "count": 1,
        "source": {"component": "finetuning-operator"},
        "reportingComponent": "finetuning-operator",
        "reportingInstance": "operator-0",
    }


def test_the_name_of_an_event_tells_objects_reasons_and_messages_apart_but_not_moments() -> None:
    def name(uid: str, event: Event, now: datetime = NOON) -> str:
        return str(event_manifest(KEY, uid, event, instance="any", now=now)["metadata"]["name"])

    first = name("uid-1", FAILED)
    assert name("uid-1", FAILED, NOON.replace(year=2027)) == first
    others = {
        name("uid-2", FAILED),
        name("uid-1", Event(Reason.SUCCEEDED, FAILED.message)),
        name("uid-1", Event(FAILED.reason, "other")),
    }
    assert len(others | {first}) == 4


@pytest.mark.parametrize("refuse", [None, lambda: AlreadyExists("it exists", status=409)])
def test_the_same_event_is_sent_once(refuse: Callable[[], ApiError] | None) -> None:
    api = _Api(refuse=refuse)
    recorder = _recorder(api)

    async def twice() -> None:
        await recorder.record(KEY, "uid-1", FAILED)
        await recorder.record(KEY, "uid-1", FAILED)

    asyncio.run(twice())

    assert len(api.created) == 1


def test_an_event_that_could_not_be_written_is_logged_and_tried_again_when_it_comes_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = _Api(refuse=lambda: NamespaceTerminating("namespace team is being terminated", status=403))
    recorder = _recorder(api)

    async def twice() -> None:
        await recorder.record(KEY, "uid-1", FAILED)
        await recorder.record(KEY, "uid-1", FAILED)

    asyncio.run(twice())

    assert len(api.created) == 2
    assert (
        caplog.messages
        == ["the event OutOfMemory of FineTuningJob team/triage was not written: namespace team is being terminated"]
        * 2
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("short", "short"),
        ("two\nlines\x00\x1b[31m\u2028", "two lines [31m"),
        ("x" * 1024, "x" * 1024),
        ("x" * 1025, "x" * 1021 + "…"),
        ("ä" * 513, "ä" * 510 + "…"),
        ("\ud800 half a character", "? half a character"),
    ],
)
def test_messages_fit_into_1024_bytes_and_one_line(message: str, expected: str) -> None:
    assert clipped(message) == expected
    assert len(clipped(message).encode()) <= 1024


@pytest.mark.parametrize(
    "trouble",
    [Unavailable("no answer"), Throttled("busy", status=429), Conflict("the quota was changed", status=409)],
    ids=["no-answer", "throttled", "conflict"],
)
def test_an_event_that_met_trouble_is_sent_again_for_a_short_while(trouble: ApiError) -> None:
    troubles: list[ApiError] = [trouble, AlreadyExists("it arrived", status=409)]
    api = _Api(refuse=lambda: troubles.pop(0))
    recorder = _recorder(api)

    asyncio.run(recorder.record(KEY, "uid-1", FAILED))
    assert len(api.created) == 2
    asyncio.run(recorder.record(KEY, "uid-1", FAILED))

    assert len(api.created) == 2
