"""Which replica works: one at a time, by a Lease, judged by this machine's own clock alone.

The client library has an elector, but it compares wall clocks, waits for an answer for minutes, gives up over half an
answer, and cannot say whether a process that was frozen may still write. So the few lines that matter are here.
"""

import logging
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetuning_operator.cluster.api import ClusterApi
from finetuning_operator.cluster.errors import ApiError, NotFound
from finetuning_operator.cluster.kinds import LEASE

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """Seconds. A leader stops to write ``margin`` before others may take over from it.

    Two renewals in a row may stay without an answer: a burst of the operator's own writes delays them, too.
    """

    duration: float = 15.0
    """How long others let an unrenewed Lease stand."""
    margin: float = 3.0
    renew_every: float = 3.0
    retry_every: float = 1.0

    @classmethod
    def lasting(cls, seconds: float) -> "LeaseTiming":
        """Return the usual proportions for another duration."""
        standard = cls()
        times = (standard.margin, standard.renew_every, standard.retry_every)
        return cls(seconds, *(each * seconds / standard.duration for each in times))


def boot_clock() -> float:
    """Return seconds that also pass while the machine sleeps, where the system can tell."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Leadership:
    """Strives for the Lease and knows at any moment whether it is held.

    Timestamps in the Lease are for people: a candidate waits until it has itself seen the Lease unchanged for its whole
    duration. A leader counts from before it sent the renewal that was answered. So clocks may differ as they like.

    ``identity`` must be unique among all running processes; the name of a pod is, and lets a restarted container go on
    at once.
    """

    def __init__(
        self,
        api: ClusterApi,
        *,
        namespace: str,
        name: str,
        identity: str,
        timing: LeaseTiming | None = None,
        clock: Callable[[], float] = boot_clock,
        pause: Callable[[float], Awaitable[None]] = sleep,
    ) -> None:
        self._timing = timing or LeaseTiming()
        self._api = api.unguarded(rate=5, burst=10, timeout=self._timing.duration / 5)
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._pause = pause
        self._held_until = float("-inf")
        self._lease: dict[str, Any] | None = None
        """As last answered; None reads it again."""
        self._seen: object = None
        self._seen_at = float("-inf")

    def held(self) -> bool:
        """Return whether this process may write now. Safe to ask after any pause of the process."""
        return self._clock() < self._held_until

    async def run(self, on_started: Callable[[], None]) -> None:
        """Campaign until elected, call ``on_started``, renew, and return when leadership is lost.

        Who has lost it must end: what it knows and what it was about to do belong to a leader.
        """
        while not await self._attempt():
            await self._pause(self._timing.retry_every)
        _LOGGER.info("leading as %s", self._identity)
        on_started()
        pause = self._timing.renew_every
        while True:
            await self._pause(pause)
            # A process that was frozen finds its time over and must not touch the Lease of its successor.
            if not self.held():
                break
            pause = self._timing.renew_every if await self._attempt() else self._timing.retry_every
        _LOGGER.error("leadership was lost")

    async def release(self) -> None:
        """Leave the Lease to whoever comes next. To be called when nothing writes any more."""
        if not self.held():
            return
        self._held_until = float("-inf")
        try:
            lease = await self._api.get(LEASE, self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                await self._write(lease, {"holderIdentity": None, "renewTime": _timestamp()})
        except ApiError as error:
            _LOGGER.warning("the Lease was not released, others wait for its end: %s", error)

    async def _attempt(self) -> bool:
        """Take or renew the Lease and return whether that worked."""
        started = self._clock()
        try:
            self._lease = await self._take()
        except ApiError as error:
            # Includes conflicts: somebody was quicker, or an earlier renewal arrived whose answer did not.
            _LOGGER.warning("the Lease %s/%s was not renewed: %s", self._namespace, self._name, error)
            self._lease = None
            return False
        if self._lease is None:
            self._held_until = float("-inf")
            return False
        self._held_until = started + self._timing.duration - self._timing.margin
        return True

    async def _take(self) -> dict[str, Any] | None:
        """Return the Lease as it is once it is ours, None where another holds it."""
        lease = self._lease
        if lease is None:
            try:
                lease = await self._api.get(LEASE, self._namespace, self._name)
            except NotFound:
                return await self._create()
        return await self._write(lease, self._claim(lease["spec"])) if self._is_free(lease) else None

    async def _create(self) -> dict[str, Any]:
        manifest = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._name},
            "spec": self._claim({}),
        }
        return await self._api.create(LEASE, self._namespace, manifest)

    def _is_free(self, lease: dict[str, Any]) -> bool:
        spec = lease.setdefault("spec", {})
        if spec != self._seen:
            self._seen, self._seen_at = dict(spec), self._clock()
        if spec.get("holderIdentity") in {None, "", self._identity}:
            return True
        promised = max(self._timing.duration, float(spec.get("leaseDurationSeconds") or 0))
        return self._clock() - self._seen_at >= promised

    def _claim(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of the Lease that make or keep it ours."""
        now = _timestamp()
        kept = {"leaseDurationSeconds": max(1, round(self._timing.duration)), "renewTime": now}
        if spec.get("holderIdentity") == self._identity:
            return kept
        return kept | {
            "holderIdentity": self._identity,
            "acquireTime": now,
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1,
        }

    async def _write(self, lease: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
        version = lease["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version}, "spec": spec}
        return await self._api.merge(LEASE, self._namespace, self._name, patch)


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
