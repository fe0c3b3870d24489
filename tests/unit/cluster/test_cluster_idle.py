"""Which servers are idle: counted by their own metrics, and never concluded from silence."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from finetuning_operator.cluster.cache import Cache
from finetuning_operator.cluster.idle import IdleWatch, Use, read_use, scrape
from finetuning_operator.cluster.keys import ObjectKey

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = ObjectKey("InferenceServer", "team", "chat")
QUIET, BUSY, ASKED = Use(0, 10), Use(1, 10), Use(0, 25)
METRICS = """\
# HELP finetuning_server_requests_in_flight Requests that generate or wait for their turn.
# TYPE finetuning_server_requests_in_flight gauge
finetuning_server_requests_in_flight 2.0
finetuning_server_prompt_tokens_total{model="base"} 7.0
finetuning_server_prompt_tokens_total{model="a b"} 5.0
finetuning_server_requests_total{route="/healthz",status="200"} 99.0
"""


class Site:
    """A server with replicas that answer what a test says, at a time that it says."""

    def __init__(self, *, minutes: int | None = 30) -> None:
        self.cache, self.now, self.woken = Cache(), START, list[ObjectKey]()
        self.answers: dict[str, Use | None] = {}
        self.asked: list[str] = []
        self.watch = IdleWatch(self.cache, wake=self.woken.extend, now=lambda: self.now)
        head = {"name": "chat", "namespace": "team", "uid": "u", "resourceVersion": "1"}
        spec = {"port": 9000} | ({} if minutes is None else {"idleShutdownMinutes": minutes})
        self.cache.put("InferenceServer", {"kind": "InferenceServer", "metadata": head, "spec": spec})

    def replica(self, name: str, address: str, answer: Use | None, *, ready: bool = True) -> None:
        labels = {"finetuning.dev/kind": "InferenceServer", "finetuning.dev/name": "chat"}
        head = {"name": name, "namespace": "team", "uid": name, "resourceVersion": "1", "labels": labels}
        conditions = [{"type": "Ready", "status": str(ready)}]
        status = {"phase": "Running", "podIP": address, "conditions": conditions}
        self.cache.put("Pod", {"kind": "Pod", "metadata": head, "spec": {}, "status": status})
        host = f"[{address}]" if ":" in address else address
        self.answers[f"http://{host}:9000/metrics"] = answer

    def look(self, *, after: int = 0) -> datetime | None:
        """Return since when the server is idle, as it is seen some seconds later."""
        self.now += timedelta(seconds=after)
        asyncio.run(self.watch.look(self._answer))
        return self.since

    @property
    def since(self) -> datetime | None:
        pods = [self.cache.get(key) for key in self.cache.pods(KEY)]
        return self.watch.since("u", [pod for pod in pods if pod is not None])

    async def _answer(self, url: str) -> Use | None:
        self.asked.append(url)
        return self.answers[url]


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_server_is_idle_since_its_replicas_were_last_seen_to_be_asked() -> None:
    site = Site()
    site.replica("a", "10.0.0.1", QUIET)
    site.replica("b", "fd00::2", QUIET)
    course = [site.look(), site.look(after=20)]
    site.replica("c", "10.0.0.3", QUIET, ready=False)
    course.append(site.look(after=20))
    site.answers["http://10.0.0.1:9000/metrics"] = ASKED
    course += [site.look(after=20), site.look(after=20)]
    site.answers["http://[fd00::2]:9000/metrics"] = BUSY
    course += [site.look(after=20), site.look(after=20)]

    assert course == [at(0), at(0), at(0), at(60), at(60), at(100), at(120)]
    assert site.woken == [KEY]


def test_silence_and_replicas_that_nobody_asked_yet_prove_nothing() -> None:
    site = Site()
    assert site.look() is None
    site.replica("a", "10.0.0.1", QUIET)
    assert site.since is None
    assert site.look(after=20) == at(20)
    site.replica("b", "10.0.0.2", QUIET)
    assert site.since is None
    assert site.look(after=20) == at(40)
    site.answers["http://10.0.0.1:9000/metrics"] = None
    assert site.look(after=20) is None


def test_nobody_is_asked_who_is_not_to_be_shut_down() -> None:
    site = Site(minutes=None)
    site.replica("a", "10.0.0.1", QUIET)

    assert (site.look(), site.asked) == (None, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (METRICS, Use(in_flight=2, prompt_tokens=12)),
        ("finetuning_server_requests_in_flight 0.0\n", Use(0, 0)),
        ("up 1\n", None),
        ("finetuning_server_requests_in_flight many\n", None),
        ("", None),
    ],
)
def test_use_is_read_from_the_metrics_of_our_server_alone(text: str, expected: Use | None) -> None:
    assert read_use(text) == expected


def test_metrics_are_asked_for_over_http_and_a_server_that_does_not_tell_is_no_error() -> None:
    async def ask() -> list[Use | None]:
        async def answer(request: web.Request) -> web.Response:
            return web.Response(text=METRICS) if request.path == "/metrics" else web.Response(status=500)

        app = web.Application()
        app.router.add_get("/{path}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        listening = web.TCPSite(runner, "127.0.0.1", 0)
        await listening.start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession() as session:
            found: list[Any] = [await scrape(session, f"{address}/{path}") for path in ("metrics", "broken")]
            await runner.cleanup()
            return [*found, await scrape(session, f"{address}/metrics")]

    assert asyncio.run(ask()) == [Use(2, 12), None, None]
