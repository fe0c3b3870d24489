"""kopf as what it is good at: our own kinds, watched with reconnections and authentication, and nothing else.

Only ``on.event`` is used: kopf then writes nothing to any object. What a stream misses, the full lists find. Children
are watched by ``streams``.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Iterator
from typing import Any

import kopf

from finetuning_api.base import GROUP
from finetuning_operator.cluster.kinds import OWN_KINDS, KindRef

OnEvent = Callable[[str, str | None, dict[str, Any]], None]
"""Told kind, type of the event (None for what was there before) and object."""

_CHUNK = 500
_IDLE_SECONDS = 0.2
"""A task per object lives this long after its event and keeps the object in memory."""


class Backoffs:
    """Pauses between attempts of one request, without an end: only leadership and probes end this process."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1.0, 2.0, 4.0, 8.0), itertools.repeat(15.0))


class _AllTasks(Collection[Any]):
    """Every task there is: at its end kopf would cancel whatever was begun since its start, our work included."""

    def __contains__(self, _: object) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter(asyncio.all_tasks())

    def __len__(self) -> int:
        return len(asyncio.all_tasks())


class _NoDifferences(kopf.DiffBaseStorage):
    """Nothing: kopf would copy every object several times to find differences that nobody asks for."""

    def build(self, *, body: Any, extra_fields: Any = None) -> Any:  # noqa: ANN401, ARG002  (as kopf calls it)
        return {}

    def fetch(self, *, body: Any) -> Any:  # noqa: ANN401, ARG002  (as kopf calls it)
        return None

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:  # noqa: ANN401  (as kopf calls it)
        """Keep nothing."""


class _NoProgress(kopf.ProgressStorage):
    """Nothing: handlers of events have no progress."""

    def fetch(self, *, key: Any, body: Any) -> Any:  # noqa: ANN401, ARG002  (as kopf calls it)
        return None

    def store(self, *, key: Any, record: Any, body: Any, patch: Any) -> None:  # noqa: ANN401  (as kopf calls it)
        """Keep nothing."""

    def purge(self, *, key: Any, body: Any, patch: Any) -> None:  # noqa: ANN401  (as kopf calls it)
        """Keep nothing."""

    def touch(self, *, body: Any, patch: Any, value: Any) -> None:  # noqa: ANN401  (as kopf calls it)
        """Write nothing."""

    def clear(self, *, essence: Any) -> Any:  # noqa: ANN401  (as kopf calls it)
        return essence


def make_registry(on_event: OnEvent) -> kopf.OperatorRegistry:
    """Return handlers that pass every event of our own kinds on."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(_login)
    for kind in OWN_KINDS.values():
        _register(registry, kind, on_event)
    return registry


def _register(registry: kopf.OperatorRegistry, kind: KindRef, on_event: OnEvent) -> None:
    async def handle(event: Any, **_: Any) -> None:  # noqa: ANN401  (as kopf calls it)
        on_event(kind.kind, event["type"], event["object"])

    kopf.on.event(kind.group, kind.version, kind.plural, id=kind.plural, registry=registry)(handle)


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401  (as kopf calls it)
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def make_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: no scanning, no events, no giving up, streams that are noticed when they fall silent."""
    settings = kopf.OperatorSettings()
    # Namespaces and definitions are not looked for while running: no rights are needed to see all of them.
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = _NoDifferences()
    settings.persistence.progress_storage = _NoProgress()
    # kopf takes a finalizer of its own off objects that need none; that of another operator may bear its usual name.
    settings.persistence.finalizer = f"{GROUP}/never-used"
    settings.networking.error_backoffs = Backoffs()
    settings.networking.request_timeout = 60.0
    settings.networking.connect_timeout = 10.0
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 10.0
    settings.watching.inactivity_timeout = 70.0
    settings.watching.chunk_size = _CHUNK
    settings.queueing.idle_timeout = _IDLE_SECONDS
    settings.process.ultimate_exiting_timeout = None
    return settings


async def watch(
    on_event: OnEvent, *, namespaces: tuple[str, ...], stop: asyncio.Event, signals: Callable[[], None]
) -> None:
    """Follow our own kinds until ``stop``. ``signals`` takes the signals back, which kopf claims for itself."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    tasks = await kopf.spawn_tasks(
        registry=make_registry(on_event),
        settings=make_settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
    )
    signals()
    await kopf.run_tasks(tasks, ignored=_AllTasks())
