"""Events: what happened to an object, told once to whoever describes it."""

import asyncio
import hashlib
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from finetuning_operator.cluster.api import ClusterApi
from finetuning_operator.cluster.errors import AlreadyExists, ApiError, Conflict, Throttled, Unavailable
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import EVENT, OWN_KINDS
from finetuning_operator.reconcile.plan import Event

_LOGGER = logging.getLogger(__name__)
_COMPONENT = "finetuning-operator"
_LONGEST_MESSAGE = 1024
"""In bytes, as the API server counts."""
_REMEMBERED = 4096
_REPETITIONS = 2
_PAUSE_SECONDS = 0.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def _now() -> datetime:
    return datetime.now(UTC)


class Recorder:
    """Writes Events whose names follow from what they tell, so that a restart or a repeated plan tells nothing twice.

    An Event is a courtesy: that it could not be written is logged and changes nothing else.
    """

    def __init__(self, api: ClusterApi, *, instance: str, now: Callable[[], datetime] = _now) -> None:
        self._api = api
        self._instance = instance
        self._now = now
        self._told: OrderedDict[str, None] = OrderedDict()

    async def record(self, key: ObjectKey, uid: str, event: Event) -> None:
        """Tell of ``event`` at the object ``key`` of this uid."""
        manifest = event_manifest(key, uid, event, instance=self._instance, now=self._now())
        name = manifest["metadata"]["name"]
        if f"{key.namespace}/{name}" in self._told:
            return
        try:
            await self._write(key.namespace, manifest)
        except AlreadyExists:
            pass
        except ApiError as error:
            _LOGGER.warning("the event %s of %s was not written: %s", event.reason, key, error)
            return
        self._told[f"{key.namespace}/{name}"] = None
        if len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)

    async def _write(self, namespace: str, manifest: dict[str, Any]) -> None:
        """Create an Event, again where that may pass: nothing else will bring it up once more.

        A server that counts a quota answers a creation with Conflict where another one was counted meanwhile.
        """
        for _ in range(_REPETITIONS):
            try:
                await self._api.create(EVENT, namespace, manifest)
            except (Conflict, Throttled, Unavailable):
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return
        await self._api.create(EVENT, namespace, manifest)


def event_manifest(key: ObjectKey, uid: str, event: Event, *, instance: str, now: datetime) -> dict[str, Any]:
    """Return the Event as the API wants it. Its name is the same for the same object, reason and message."""
    message = clipped(event.message)
    digest = hashlib.sha256(f"{uid}\0{event.reason}\0{message}".encode()).hexdigest()[:16]
    timestamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": f"{key.name}.{digest}", "namespace": key.namespace},
        "involvedObject": {
            "apiVersion": OWN_KINDS[key.kind].api_version,
            "kind": key.kind,
            "namespace": key.namespace,
            "name": key.name,
            "uid": uid,
        },
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason.value,
        "message": message,
        "firstTimestamp": timestamp,
        "lastTimestamp": timestamp,
        "count": 1,
        "source": {"component": _COMPONENT},
        "reportingComponent": _COMPONENT,
        "reportingInstance": instance,
    }


def clipped(message: str) -> str:
    """Return the message on one line and in at most 1024 bytes, cut between characters."""
    line = _CONTROL.sub(" ", message).strip()
    encoded = line.encode(errors="replace")
    if len(encoded) <= _LONGEST_MESSAGE:
        return encoded.decode()
    return encoded[: _LONGEST_MESSAGE - len("…".encode())].decode(errors="ignore") + "…"
