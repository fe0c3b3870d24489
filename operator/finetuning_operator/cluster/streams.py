"""Watch streams of what our objects became: Jobs, pods, claims and the rest of the children.

kopf watches our own kinds. A child has ten events for one of its owner's, and needs nothing of what kopf does for an
object besides telling of it: no memory, no task, no handlers, no causes.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass

from finetuning_operator.cluster.api import ClusterApi
from finetuning_operator.cluster.errors import ApiError, Gone
from finetuning_operator.cluster.kinds import KindRef
from finetuning_operator.cluster.resync import Resync, selector_of
from finetuning_operator.cluster.watch import Backoffs, OnEvent

_LOGGER = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.1
"""Between two streams of a kind, so that a server which ends each at once is not asked in a busy loop."""

_LIVED_SECONDS = 1.0
"""A stream that worked for so long is begun again at once."""


@dataclass(slots=True)
class _Stream:
    """One kind in one namespace, None for all of them."""

    kind: KindRef
    namespace: str | None
    version: str | None
    """After which to go on; None where only a list can tell."""


class Streams:
    """Follows kinds from the versions of their lists on; a stream that breaks is begun again where it broke."""

    def __init__(
        self,
        api: ClusterApi,
        resync: Resync,
        *,
        on_event: OnEvent,
        backoffs: Callable[[], Iterable[float]] = Backoffs,
        pause: float = _PAUSE_SECONDS,
    ) -> None:
        self._api = api
        self._resync = resync
        self._on_event = on_event
        self._backoffs = backoffs
        self._pause = pause

    async def run(self, kinds: Iterable[KindRef]) -> None:
        """Follow kinds for ever."""
        async with asyncio.TaskGroup() as group:
            for kind in kinds:
                for namespace in self._resync.namespaces:
                    version = self._resync.version(kind, namespace)
                    group.create_task(self._follow(_Stream(kind, namespace, version)))

    async def _follow(self, stream: _Stream) -> None:
        pauses = iter(self._backoffs())
        while True:
            began = time.monotonic()
            try:
                await self._watch(stream)
            except Gone:
                stream.version = None
            except ApiError as error:
                _LOGGER.warning("the watch stream of %s broke and is begun again: %s", stream.kind.plural, error)
                if time.monotonic() - began > _LIVED_SECONDS:
                    # Somebody waits for what it did not tell.
                    pauses = iter(self._backoffs())
                else:
                    await asyncio.sleep(next(pauses))
            await asyncio.sleep(self._pause)

    async def _watch(self, stream: _Stream) -> None:
        """Tell of what happens until the server ends the stream. Raises ApiError."""
        kind, namespace = stream.kind, stream.namespace
        if stream.version is None:
            stream.version = await self._resync.list(kind, namespace)
        told = self._api.watch(kind, namespace, label_selector=selector_of(kind), resource_version=stream.version)
        async with aclosing(told) as events:
            async for event in events:
                if event.type != "BOOKMARK":
                    self._on_event(kind.kind, event.type, event.object)
                stream.version = event.version
