import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from finetuning_operator.cluster import kinds
from finetuning_operator.cluster.api import Call, ClusterApi, ListResult, TokenBucket
from finetuning_operator.cluster.errors import (
    ApiError,
    Gone,
    NotLeader,
    Throttled,
    Unavailable,
)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Use = Callable[[ClusterApi], Awaitable[Any]]

_MANIFEST = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}}


def _says(status: int, content: object = None, **headers: str) -> Answer:
    async def answer(_request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=json.dumps(content).encode(), headers=named)

    return answer


async def _breaks_off(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b'{"kind": "Job", ')
    assert request.transport is not None
    request.transport.close()
    return answer


async def _never_answers(_request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()


@dataclass
class _Server:
    """Gives prepared answers, the last one again and again, and notes what it was asked."""

    answers: list[Answer]
    asked: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path, dict(request.query)))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


@asynccontextmanager
async def _listening(server: _Server) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _ask(
    server: _Server,
    use: Use,
    *,
    calls: list[Call] | None = None,
    may_write: Callable[[], bool] = lambda: True,
    timeout: float = 10.0,
    patience: float = 5.0,
) -> Any:  # noqa: ANN401  (whatever ``use`` gives)
    async def ask() -> object:
        async with _listening(server) as host:
            api = ClusterApi(
                ApiClient(Configuration(host=host)),
                bucket=TokenBucket(rate=1000, burst=1000),
                may_write=may_write,
                on_call=(calls if calls is not None else []).append,
                timeout=timeout,
                patience=patience,
            )
            try:
                return await use(api)
            finally:
                await api.close()

    return asyncio.run(ask())


def _get(api: ClusterApi) -> Awaitable[dict[str, Any]]:
    return api.get(kinds.JOB, "team", "a")


def _create(api: ClusterApi) -> Awaitable[dict[str, Any]]:
    return api.create(kinds.JOB, "team", _MANIFEST)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_wants_to(status: int) -> None:
    server = _Server([_says(status, Retry_After="0"), _says(201, {"kind": "Job"})])
    calls: list[Call] = []

    assert _ask(server, _create, calls=calls) == {"kind": "Job"}

    assert [(call.verb, call.resource, call.code) for call in calls] == [
        ("create", "jobs", status),
        ("create", "jobs", 201),
    ]


def test_patience_with_a_busy_server_ends() -> None:
    server = _Server([_says(429, Retry_After="0")])

    with pytest.raises(Throttled):
        _ask(server, _create, patience=0.25)

    assert len(server.asked) == 3


def test_a_server_that_wants_to_be_left_alone_for_long_is_left_to_the_queue() -> None:
    server = _Server([_says(429, Retry_After="60")])

    with pytest.raises(Throttled) as refusal:
        _ask(server, _get, patience=5.0)

    assert (refusal.value.retry_after, len(server.asked)) == (60.0, 1)


@pytest.mark.parametrize(
    ("answer", "code", "timeout"),
    [
        (_says(500, {}), 500, 10.0),
        (_says(503, {}), 503, 10.0),
        (_says(504, {}, Retry_After="1"), 504, 10.0),
        (_breaks_off, 0, 10.0),
        (_never_answers, 0, 0.3),
    ],
)
def test_half_an_answer_and_none_are_raised_at_once_as_unavailable(answer: Answer, code: int, timeout: float) -> None:
    server = _Server([answer])
    calls: list[Call] = []

    with pytest.raises(Unavailable):
        _ask(server, _create, calls=calls, timeout=timeout)

    assert [(call.verb, call.code) for call in calls] == [("create", code)]


@pytest.mark.parametrize("content", ["not an object", None, [1]])
def test_an_answer_that_is_no_object_is_none(content: object) -> None:
    with pytest.raises(Unavailable, match="the answer to GET /apis/batch/v1/namespaces/team/jobs/a is no object"):
        _ask(_Server([_says(200, content)]), _get)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    async def ask() -> None:
        async with _listening(_Server([_says(200, {})])) as host:
            pass
        client = ApiClient(Configuration(host=host))
        api = ClusterApi(client, bucket=TokenBucket(rate=1, burst=1))
        try:
            await _get(api)
        finally:
            await api.close()

    with pytest.raises(Unavailable, match="GET /apis/batch/v1/namespaces/team/jobs/a: "):
        asyncio.run(ask())


@pytest.mark.parametrize(
    "write",
    [
        _create,
        lambda api: api.apply(kinds.JOB, "team", "a", _MANIFEST),
        lambda api: api.merge(kinds.JOB, "team", "a", {}),
        lambda api: api.patch_status(kinds.RELOCATION, "team", "a", status={}, resource_version="1"),
        lambda api: api.delete(kinds.JOB, "team", "a", uid="u"),
    ],
)
def test_who_does_not_lead_writes_nothing(write: Use) -> None:
    server = _Server([_says(200, {})])

    with pytest.raises(NotLeader):
        _ask(server, write, may_write=lambda: False)

    assert server.asked == []


def test_who_does_not_lead_reads_reviews_and_renews() -> None:
    server = _Server([_says(200, {"items": [], "metadata": {"resourceVersion": "7"}})])

    async def use(api: ClusterApi) -> None:
        await _get(api)
        await api.list(kinds.JOB)
        await api.create_raw(kinds.TOKEN_REVIEW.path(None), {})
        await api.unguarded(rate=1, burst=1, timeout=10).merge(kinds.LEASE, "team", "a", {})

    _ask(server, use, may_write=lambda: False)

    assert [method for method, _path, _query in server.asked] == ["GET", "GET", "POST", "PATCH"]


def test_leadership_is_asked_for_again_before_a_write_is_repeated() -> None:
    server = _Server([_says(429, Retry_After="0"), _says(201, {})])
    answers = iter([True, False])

    with pytest.raises(NotLeader):
        _ask(server, _create, may_write=lambda: next(answers))

    assert len(server.asked) == 1


def _page(*names: str, following: str = "") -> Answer:
    items = [{"metadata": {"name": name}} for name in names]
    metadata = {"resourceVersion": "7", "continue": following}
    return _says(200, {"kind": "JobList", "apiVersion": "batch/v1", "metadata": metadata, "items": items})


def _names(item: Mapping[str, Any]) -> tuple[str, str, str]:
    return item["apiVersion"], item["kind"], item["metadata"]["name"]


def test_lists_are_read_in_chunks_and_every_item_says_what_it_is() -> None:
    server = _Server([_page("a", "b", following="more"), _page("c")])

    found = _ask(server, lambda api: api.list(kinds.JOB, "team", label_selector="x=y", each=_names))

    assert found == ListResult([("batch/v1", "Job", name) for name in "abc"], "7")
    path = "/apis/batch/v1/namespaces/team/jobs"
    assert server.asked == [
        ("GET", path, {"labelSelector": "x=y", "limit": "25"}),
        ("GET", path, {"labelSelector": "x=y", "limit": "25", "continue": "more"}),
    ]


def test_others_have_a_turn_after_each_object_of_a_list() -> None:
    turns, seen = 0, []

    async def list_beside_others(api: ClusterApi) -> None:
        nonlocal turns
        listing = asyncio.create_task(api.list(kinds.JOB, each=lambda _: seen.append(turns)))
        while not listing.done():
            turns += 1
            await asyncio.sleep(0)
        await listing

    _ask(_Server([_page(*"abcdefgh")]), list_beside_others)

    assert len(set(seen)) == len("abcdefgh")


def test_a_list_that_outlives_the_memory_of_the_server_is_read_in_one_piece() -> None:
    server = _Server([_page("a", following="more"), _says(410, {}), _page("b", "c")])

    found = _ask(server, lambda api: api.list(kinds.JOB, each=_names))

    assert [name for _version, _kind, name in found.items] == ["b", "c"]
    assert server.asked[2] == ("GET", "/apis/batch/v1/jobs", {})


def test_a_list_that_cannot_be_read_at_all_is_no_empty_list() -> None:
    with pytest.raises(Gone):
        _ask(_Server([_says(410, {})]), lambda api: api.list(kinds.JOB))
    with pytest.raises(ApiError):
        _ask(_Server([_says(404, "404 page not found")]), lambda api: api.list(kinds.RELOCATION))


def test_every_write_waits_its_turn() -> None:
    now = 100.0
    bucket = TokenBucket(rate=2, burst=3, clock=lambda: now)

    assert [bucket.reserve() for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 1.0]
    now = 102.0
    assert [bucket.reserve() for _ in range(3)] == [0.0, 0.0, 0.5]
    now = 1000.0
    assert [bucket.reserve() for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def _streams(*lines: object, cut: bool = False) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse()
        await stream.prepare(request)
        whole = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        # Pieces end anywhere.
        for start in range(0, len(whole), 50):
            await stream.write(whole[start : start + 50])
        if cut:
            assert request.transport is not None
            request.transport.close()
        return stream

    return answer


def _told(kind: str, version: str) -> dict[str, object]:
    return {"type": kind, "object": {"metadata": {"name": "a", "resourceVersion": version}}}


async def _watched(api: ClusterApi) -> list[tuple[str, str]]:
    watch = api.watch(kinds.JOB, "team", label_selector="mine=yes", resource_version="7")
    return [(event.type, event.version) async for event in watch]


def test_a_watch_stream_tells_of_each_change_until_the_server_ends_it() -> None:
    server = _Server([_streams(_told("ADDED", "8"), _told("BOOKMARK", "9"), _told("DELETED", "10"))])
    calls: list[Call] = []

    assert _ask(server, _watched, calls=calls) == [("ADDED", "8"), ("BOOKMARK", "9"), ("DELETED", "10")]

    query = {"allowWatchBookmarks": "true", "labelSelector": "mine=yes", "resourceVersion": "7", "watch": "true"}
    assert server.asked == [("GET", "/apis/batch/v1/namespaces/team/jobs", query | {"timeoutSeconds": "300"})]
    assert [(call.verb, call.resource, call.code) for call in calls] == [("watch", "jobs", 200)]


_EXPIRED = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}


@pytest.mark.parametrize("answer", [_says(410, _EXPIRED), _streams({"type": "ERROR", "object": _EXPIRED})])
def test_a_version_that_is_too_old_to_watch_from_is_gone(answer: Answer) -> None:
    with pytest.raises(Gone, match="too old"):
        _ask(_Server([answer]), _watched)


@pytest.mark.parametrize(
    "answer",
    [_streams(_told("ADDED", "8"), cut=True), _streams("no event"), _streams({"type": "ERROR", "object": {}})],
)
def test_a_watch_stream_that_breaks_is_unavailable(answer: Answer) -> None:
    with pytest.raises(Unavailable):
        _ask(_Server([answer]), _watched)
