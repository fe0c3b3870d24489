"""Which servers nobody asks: their pods are, now and then, for those that are to be shut down when idle."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

from finetuning_operator.cluster.cache import Cache
from finetuning_operator.cluster.facts import PodFacts, read_pod
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import INFERENCE_SERVER

_LOGGER = logging.getLogger(__name__)
_LOOK_SECONDS = 20.0
_PATIENCE_SECONDS = 5.0
_LONGEST_ANSWER = 1 << 20
_IN_FLIGHT = "finetuning_server_requests_in_flight"
_PROMPT_TOKENS = "finetuning_server_prompt_tokens_total"
"""Grows with every request that asks a model; probes, scrapes and strangers without a token leave it as it is."""

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Use:
    """How a replica is used, by its own metrics."""

    in_flight: float
    prompt_tokens: float


Scrape = Callable[[str], Awaitable[Use | None]]
"""Asks an address for its metrics; None where nothing was learned."""


@dataclass(frozen=True, slots=True)
class _Watched:
    """A server without a request since a moment, and what its replicas had counted then."""

    since: datetime
    uses: Mapping[str, Use]
    """By the uid of the pod."""


class IdleWatch:
    """Remembers since when servers are idle. A restart, a new replica or silence begin anew: what was seen counts."""

    def __init__(
        self,
        cache: Cache,
        *,
        wake: Callable[[Iterable[ObjectKey]], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cache = cache
        self._wake = wake
        self._now = now
        self._watched: dict[str, _Watched] = {}
        self._asked: dict[str, datetime] = {}

    def ask(self, key: ObjectKey) -> None:
        """Remember that a server without replicas was asked something, and have it looked at."""
        identity = self._cache.identity(key)
        if identity is not None:
            self._asked[identity[0]] = self._now()
            self._wake([key])

    def asked(self, uid: str) -> datetime | None:
        """Return when a server without replicas was last asked something; None where it never was."""
        return self._asked.get(uid)

    def since(self, uid: str, pods: Sequence[Manifest]) -> datetime | None:
        """Return since when no replica of a server was asked anything, None where that is not known of all of them."""
        watched, ready = self._watched.get(uid), _ready(pods)
        if watched is None or not ready or any(pod.uid not in watched.uses for pod in ready):
            return None
        return watched.since

    async def run(self) -> None:
        """Look again and again."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PATIENCE_SECONDS)) as session:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                await self.look(lambda url: scrape(session, url))

    async def look(self, ask: Scrape) -> None:
        """Ask every replica of every server that is to be shut down when idle."""
        found = ((key, self._cache.get(key)) for key in self._cache.keys(INFERENCE_SERVER.kind))
        concerned = [(key, server) for key, server in found if server and server["spec"].get("idleShutdownMinutes")]
        looks = [self._look_at(key, server, ask) for key, server in concerned]
        seen = await asyncio.gather(*looks)
        before, self._watched = self._watched, dict(filter(None, seen))
        here = {server["metadata"]["uid"] for _, server in concerned}
        self._asked = {uid: at for uid, at in self._asked.items() if uid in here}
        self._wake(key for key, server in concerned if _is_new(server["metadata"]["uid"], before, self._watched))

    async def _look_at(self, key: ObjectKey, server: Manifest, ask: Scrape) -> tuple[str, _Watched] | None:
        uid, port = server["metadata"]["uid"], server["spec"].get("port", 8000)
        pods = [pod for name in self._cache.pods(key) if (pod := self._cache.get(name)) is not None]
        addresses = {pod["metadata"]["uid"]: pod.get("status", {}).get("podIP", "") for pod in pods}
        ready = [pod.uid for pod in _ready(pods)]
        answers = await asyncio.gather(*(ask(_url(addresses[each], port)) for each in ready))
        uses = {each: answer for each, answer in zip(ready, answers, strict=True) if answer is not None}
        if not ready or len(uses) < len(ready):
            return None
        before = self._watched.get(uid)
        quiet = before is not None and before.uses == uses and not any(use.in_flight for use in uses.values())
        return uid, before if before is not None and quiet else _Watched(self._now().replace(microsecond=0), uses)


async def scrape(session: aiohttp.ClientSession, url: str) -> Use | None:
    """Return how the replica at an address is used, None where it does not tell."""
    try:
        async with session.get(url) as answer:
            if answer.status != 200:  # noqa: PLR2004  (OK)
                return None
            text = (await answer.content.read(_LONGEST_ANSWER)).decode(errors="replace")
        return read_use(text)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        _LOGGER.debug("%s: %s", url, error)
        return None


def read_use(exposition: str) -> Use | None:
    """Return what metrics in Prometheus' text format tell; None where they are not those of our server."""
    sums = {_IN_FLIGHT: 0.0, _PROMPT_TOKENS: 0.0}
    told = False
    for line in exposition.splitlines():
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        if name not in sums:
            continue
        try:
            sums[name] += float(value)
        except ValueError:
            return None
        told = told or name == _IN_FLIGHT
    return Use(sums[_IN_FLIGHT], sums[_PROMPT_TOKENS]) if told else None


def _ready(pods: Iterable[Manifest]) -> list[PodFacts]:
    return [pod for pod in map(read_pod, pods) if pod.ready and not pod.deleted_at]


def _is_new(uid: str, before: Mapping[str, _Watched], after: Mapping[str, _Watched]) -> bool:
    """Whether it is known from now on since when a server is idle: from then on the clock alone decides."""
    return uid in after and uid not in before


def _url(address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/metrics"
