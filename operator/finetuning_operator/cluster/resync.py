"""Full lists of everything: at the start, and every few minutes against events that were missed."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from finetuning_operator.cluster.api import ClusterApi
from finetuning_operator.cluster.cache import Cache, key_of
from finetuning_operator.cluster.errors import ApiError, NotServed
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import CHILD_KINDS, OPTIONAL_KINDS, OWN_KINDS, KindRef
from finetuning_operator.reconcile import labels

_LOGGER = logging.getLogger(__name__)
SELECTOR = f"{labels.MANAGED_BY}={labels.OPERATOR}"
_RETRY_SECONDS = 2.0
_SETTLED_SECONDS = 15.0
"""When watch streams are sure to have begun."""

WATCHED: tuple[KindRef, ...] = (*OWN_KINDS.values(), *CHILD_KINDS.values())
"""Every kind that is kept in the cache: custom resources all of them, others as far as they are ours."""


def selector_of(kind: KindRef) -> str | None:
    """Return which objects of a kind are ours; None for all."""
    return None if kind.kind in OWN_KINDS else SELECTOR


class Resync:
    """Keeps the cache true to full lists."""

    def __init__(
        self,
        api: ClusterApi,
        cache: Cache,
        *,
        namespaces: tuple[str, ...],
        wake: Callable[[Iterable[ObjectKey]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._cache = cache
        self.namespaces: tuple[str | None, ...] = namespaces or (None,)
        """Those that are served; None is all of them."""
        self._wake = wake
        self._clock = clock
        self._done_at: float | None = None
        self._served = frozenset(WATCHED)
        self._versions: dict[tuple[KindRef, str | None], str] = {}

    @property
    def synced(self) -> bool:
        """Whether everything was listed at least once."""
        return self._done_at is not None

    @property
    def served(self) -> frozenset[KindRef]:
        """Kinds that this cluster serves, as far as they matter: what was found at the last full list."""
        return self._served

    @property
    def age_seconds(self) -> float | None:
        """Seconds since the last full list, None before the first."""
        return None if self._done_at is None else self._clock() - self._done_at

    async def first(self) -> None:
        """List everything, again and again until it works: an operator may start before its cluster is complete."""
        while True:
            try:
                await self.once()
            except NotServed:
                _LOGGER.warning("the custom resources of finetuning.dev are not installed; waiting for them")
            except ApiError as error:
                _LOGGER.warning("listing failed, it is tried again: %s", error)
            else:
                return
            await asyncio.sleep(_RETRY_SECONDS)

    def version(self, kind: KindRef, namespace: str | None) -> str | None:
        """Return the version of the last list of a kind, None before the first: from there on it can be watched."""
        return self._versions.get((kind, namespace))

    async def run(self, every: float, *, after: Callable[[], None]) -> None:
        """List everything every so many seconds; ``after`` is called each time.

        What kopf watches is listed soon as well: what was deleted after the very first list and before its streams
        began is not told.
        """
        await asyncio.sleep(min(every, _SETTLED_SECONDS))
        await self._succeeds(self._list_all(OWN_KINDS.values()), every)
        while True:
            await asyncio.sleep(every)
            if await self._succeeds(self.once(), every):
                after()

    async def once(self) -> None:
        """List everything once and wake whom a difference concerns. Raises ApiError."""
        await self._list_all(WATCHED)
        optional = [kind for kind in OPTIONAL_KINDS.values() if await self._list_if_served(kind)]
        self._served = frozenset((*WATCHED, *optional))
        self._done_at = self._clock()

    async def _list_all(self, kinds: Iterable[KindRef]) -> None:
        for kind in kinds:
            for namespace in self.namespaces:
                await self.list(kind, namespace)

    async def _list_if_served(self, kind: KindRef) -> bool:
        try:
            await self._list_all((kind,))
        except NotServed:
            for key in self._cache.keys(kind.kind):
                self._wake(self._cache.forget(key))
            return False
        return True

    async def list(self, kind: KindRef, namespace: str | None) -> str:
        """List a kind, wake whom a difference concerns, and return the version of the list. Raises ApiError."""

        def take(manifest: Mapping[str, Any]) -> ObjectKey:
            self._wake(self._cache.put(kind.kind, manifest))
            return key_of(kind.kind, manifest)

        found = await self._api.list(kind, namespace, label_selector=selector_of(kind), each=take)
        listed, version = frozenset(found.items), int(found.resource_version)
        self._wake(self._cache.retain(kind.kind, listed, version=version, namespace=namespace))
        self._versions[kind, namespace] = found.resource_version
        return found.resource_version

    async def _succeeds(self, listing: Awaitable[None], every: float) -> bool:
        try:
            await listing
        except ApiError as error:
            _LOGGER.warning("listing failed, it is tried again in %.0f s: %s", every, error)
            return False
        return True
