"""What clients of a server without replicas are told, and whom they wake."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from finetuning_operator.cluster.cache import Cache
from finetuning_operator.cluster.doorway import Doorway
from finetuning_operator.cluster.idle import IdleWatch
from finetuning_operator.cluster.keys import ObjectKey

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CHAT = ObjectKey("InferenceServer", "team", "chat")


def cache(*servers: tuple[str, str], minutes: int | None = 30) -> Cache:
    made = Cache()
    for namespace, name in servers:
        head = {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}", "resourceVersion": "1"}
        spec: dict[str, Any] = {} if minutes is None else {"idleShutdownMinutes": minutes}
        made.put("InferenceServer", {"kind": "InferenceServer", "metadata": head, "spec": spec})
    return made


def asked(known: Cache, host: str, *, method: str = "POST") -> tuple[int, dict[str, Any], str, list[ObjectKey]]:
    """Send a request for a host and return status, error, Retry-After, and who was asked to start."""
    woken: list[ObjectKey] = []

    async def ask() -> tuple[int, dict[str, Any], str]:
        doorway = Doorway(known, ask=woken.append)
        port = await doorway.start(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.request(method, url, headers={"Host": host}, data=b"{}") as answer,
            ):
                return answer.status, (await answer.json())["error"], answer.headers["Retry-After"]
        finally:
            await doorway.stop()

    return *asyncio.run(ask()), woken


def test_a_client_is_told_to_come_again_and_the_server_is_asked_for() -> None:
    status, error, wait, woken = asked(cache(("team", "chat")), "chat.team.svc:8000")

    assert (status, error["code"], error["type"], wait) == (503, "starting", "server_error", "10")
    assert error["message"] == "chat has no replica that answers: one is being started; try again soon"
    assert woken == [CHAT]


@pytest.mark.parametrize(
    "host",
    ["chat", "chat:8000", "chat.team", "chat.team.svc", "Chat.Team.svc.cluster.local:8000", "chat.team.ai.example.org"],
)
def test_a_server_is_meant_by_every_name_that_leads_to_it(host: str) -> None:
    assert asked(cache(("team", "chat"), ("team", "other")), host, method="GET")[-1] == [CHAT]


@pytest.mark.parametrize("host", ["chat", "other.team.svc", "chat.elsewhere.svc", "10.0.0.7:8090", "[fd00::7]:8090"])
def test_nobody_is_woken_by_a_name_that_means_none_or_two(host: str) -> None:
    status, error, _, woken = asked(cache(("team", "chat"), ("team2", "chat")), host)

    assert (status, error["code"], woken) == (404, "unknown_server", [])


def test_a_server_that_is_never_shut_down_is_not_meant() -> None:
    assert asked(cache(("team", "chat"), minutes=None), "chat.team.svc")[-1] == []


def test_what_was_asked_is_remembered_as_long_as_the_server_can_be_shut_down() -> None:
    known, looked_at = cache(("team", "chat")), list[ObjectKey]()

    def wake(keys: Iterable[ObjectKey]) -> None:
        looked_at.extend(keys)

    watch = IdleWatch(known, wake=wake, now=lambda: NOW)
    watch.ask(CHAT)
    watch.ask(ObjectKey("InferenceServer", "team", "gone"))
    before = watch.asked("team-chat")
    known.remove("InferenceServer", known.get(CHAT) or {})

    async def look() -> None:
        await watch.look(lambda _url: asyncio.sleep(0, result=None))

    asyncio.run(look())
    assert (before, looked_at, watch.asked("team-chat")) == (NOW, [CHAT], None)
