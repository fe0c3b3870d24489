"""Watch streams of children: begun at the version of a list, and again where they broke."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from tests.support.fake_api import FakeApi

from finetuning_operator.cluster.api import WatchEvent
from finetuning_operator.cluster.cache import Cache
from finetuning_operator.cluster.errors import Forbidden, Gone, Unavailable
from finetuning_operator.cluster.kinds import JOB, KindRef
from finetuning_operator.cluster.resync import Resync
from finetuning_operator.cluster.streams import Streams

Told = WatchEvent | Exception


class _EndError(Exception):
    """There is nothing more to tell."""


class WatchedApi(FakeApi):
    """Tells prepared streams, one after the other."""

    def __init__(self, *streams: list[Told]) -> None:
        super().__init__()
        self.watched: list[str] = []
        """Versions from which it was watched."""
        self._streams = list(streams)

    async def watch(
        self,
        kind: KindRef,  # noqa: ARG002  (one is enough here)
        namespace: str | None,  # noqa: ARG002
        *,
        label_selector: str | None,  # noqa: ARG002
        resource_version: str,
    ) -> AsyncGenerator[WatchEvent, None]:
        self.watched.append(resource_version)
        if not self._streams:
            raise _EndError
        for told in self._streams.pop(0):
            if isinstance(told, Exception):
                raise told
            yield told


def event(kind: str, version: int, name: str = "a") -> WatchEvent:
    return WatchEvent(kind, {"metadata": {"name": name, "namespace": "team", "resourceVersion": str(version)}})


def follow(api: WatchedApi, *, list_first: bool = True) -> list[tuple[str, str | None, str]]:
    """Follow Jobs until there is nothing more to tell; return what was told."""
    told: list[tuple[str, str | None, str]] = []

    def hear(kind: str, change: str | None, manifest: dict[str, Any]) -> None:
        told.append((kind, change, manifest["metadata"]["name"]))

    def at_once() -> Iterator[float]:
        while True:
            yield 0.0

    async def run() -> None:
        resync = Resync(api, Cache(), namespaces=("team",), wake=lambda _keys: None)
        if list_first:
            await resync.list(JOB, "team")
        with pytest.raises(ExceptionGroup) as end:
            await Streams(api, resync, on_event=hear, backoffs=at_once, pause=0.0).run([JOB])
        assert end.group_contains(_EndError)

    asyncio.run(run())
    return told


def test_a_stream_begins_at_the_list_and_goes_on_where_it_ended() -> None:
    api = WatchedApi([event("ADDED", 200), event("BOOKMARK", 300)], [event("MODIFIED", 301), event("DELETED", 302)])
    assert follow(api) == [("Job", "ADDED", "a"), ("Job", "MODIFIED", "a"), ("Job", "DELETED", "a")]
    assert api.watched == ["100", "300", "302"]


def test_a_stream_that_breaks_goes_on_after_the_last_thing_it_told() -> None:
    api = WatchedApi([event("ADDED", 200), Unavailable("cut")], [Forbidden("no", status=403)], [event("ADDED", 201)])
    assert follow(api) == [("Job", "ADDED", "a"), ("Job", "ADDED", "a")]
    assert api.watched == ["100", "200", "200", "201"]


def test_where_the_server_forgot_what_happened_since_it_is_listed_again() -> None:
    api = WatchedApi([event("ADDED", 200), Gone("too old", status=410)], [event("ADDED", 500)])
    assert follow(api) == [("Job", "ADDED", "a"), ("Job", "ADDED", "a")]
    assert api.watched == ["100", "101", "500"]


def test_a_kind_that_was_not_listed_yet_is_listed_first_for_as_long_as_that_takes() -> None:
    api = WatchedApi([event("ADDED", 200)])
    api.refuse("list", Unavailable("no answer"), Unavailable("no answer"))
    assert follow(api, list_first=False) == [("Job", "ADDED", "a")]
    assert api.watched == ["100", "200"]
