"""Throwing adapters away: claims whose jobs are gone are marked, and deleted when their time is over."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime

from finetuning_api.finetuningjob import RetentionPolicy
from finetuning_operator.cluster.api import ClusterApi
from finetuning_operator.cluster.cache import Cache
from finetuning_operator.cluster.errors import ApiError, NotFound
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import CLAIM, OWN_KINDS
from finetuning_operator.reconcile import labels
from finetuning_operator.reconcile.claims import Claim, expired_claims

_LOGGER = logging.getLogger(__name__)
_SHORTEST_PAUSE = 1.0


class TrashCollector:
    """Does to claims what ``expired_claims`` decides; to be asked only while the cache is true to a full list."""

    def __init__(
        self,
        api: ClusterApi,
        cache: Cache,
        *,
        ttl_seconds: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._cache = cache
        self._ttl = ttl_seconds
        self._now = now

    async def run(self, every: float) -> None:
        """Collect every so many seconds, and when the time of a marked claim is over."""
        while True:
            pause = min(every, await self.collect() or every)
            await asyncio.sleep(max(pause, _SHORTEST_PAUSE))

    async def collect(self) -> float | None:
        """Collect once; return the seconds until there is more to do, None where only events bring more.

        A claim that cannot be changed, by a rule of its namespace for example, keeps no other one waiting.
        """
        now = self._now().replace(microsecond=0)
        trash = expired_claims(self._claims(), owners=self._owners(), now=now, ttl=self._ttl)
        moment = now.isoformat().replace("+00:00", "Z")
        for claim in trash.to_mark:
            await self._try(claim, self._mark(claim, moment))
        for claim in trash.to_unmark:
            await self._try(claim, self._mark(claim, None))
        for claim in trash.to_delete:
            await self._try(claim, self._delete(claim))
        return min((each for each in (trash.look_again, self._ttl if trash.to_mark else None) if each), default=None)

    async def _try(self, claim: Claim, change: Awaitable[None]) -> None:
        try:
            await change
        except ApiError as error:
            key = ObjectKey(CLAIM.kind, claim.namespace, claim.name)
            _LOGGER.warning("%s was not collected, it is tried again: %s", key, error)

    async def _mark(self, claim: Claim, moment: str | None) -> None:
        change = {"metadata": {"annotations": {labels.TRASHED_AT: moment}}}
        try:
            self._cache.put(CLAIM.kind, await self._api.merge(CLAIM, claim.namespace, claim.name, change))
        except NotFound:
            self._cache.forget(ObjectKey(CLAIM.kind, claim.namespace, claim.name))

    async def _delete(self, claim: Claim) -> None:
        key = ObjectKey(CLAIM.kind, claim.namespace, claim.name)
        identity = self._cache.identity(key)
        if identity is not None and not self._cache.is_deleting(key):
            _LOGGER.info("%s is deleted: its job has been gone for %d seconds", key, self._ttl)
            await self._api.delete(CLAIM, key.namespace, key.name, uid=identity[0])

    def _owners(self) -> frozenset[str]:
        keys = (key for kind in OWN_KINDS for key in self._cache.keys(kind))
        return frozenset(identity[0] for key in keys if (identity := self._cache.identity(key)) is not None)

    def _claims(self) -> Iterator[Claim]:
        for key in self._cache.keys(CLAIM.kind):
            found = self._cache.get(key) or {"metadata": {}}
            in_use = bool(self._cache.holders(key.namespace, key.name))
            claim = _read(key, found["metadata"], in_use=in_use)
            if claim is not None:
                yield claim


def _read(key: ObjectKey, head: dict[str, object], *, in_use: bool) -> Claim | None:
    """Return a claim that can outlive its owner; None for one whose retention says nothing."""
    told, noted = _texts(head.get("labels")), _texts(head.get("annotations"))
    try:
        retention = RetentionPolicy(told.get(labels.RETENTION, ""))
    except ValueError:
        return None
    return Claim(
        namespace=key.namespace,
        name=key.name,
        retention=retention,
        owner_uid=told.get(labels.OWNER_UID, ""),
        trashed_at=_moment(noted.get(labels.TRASHED_AT, "")),
        in_use=in_use,
    )


def _texts(value: object) -> dict[str, str]:
    return value if isinstance(value, dict) else {}


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
