"""One running operator: its parts joined, started in order, watched over, and stopped in order."""

import asyncio
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

from finetuning_operator.cluster.api import ClusterApi, TokenBucket, connect
from finetuning_operator.cluster.apply import Applier
from finetuning_operator.cluster.cache import Cache
from finetuning_operator.cluster.controller import Controller
from finetuning_operator.cluster.doorway import Doorway
from finetuning_operator.cluster.errors import ApiError
from finetuning_operator.cluster.event_board import EventBoard
from finetuning_operator.cluster.garbage import SparingCollector
from finetuning_operator.cluster.health import HealthServer, at_most, must
from finetuning_operator.cluster.idle import IdleWatch
from finetuning_operator.cluster.inquiries import INQUIRY_BURST, INQUIRY_SHARE, Inquirer
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import NETWORK_POLICY, OWN_KINDS
from finetuning_operator.cluster.lease import Leadership, LeaseTiming
from finetuning_operator.cluster.metrics import Metrics
from finetuning_operator.cluster.options import Options, ProgressOptions
from finetuning_operator.cluster.progress.address import ProgressKey
from finetuning_operator.cluster.progress.server import ProgressEndpoint, ProgressServer
from finetuning_operator.cluster.progress.store import ProgressStore
from finetuning_operator.cluster.progress.tokens import TokenVerifier
from finetuning_operator.cluster.queue import WorkQueue
from finetuning_operator.cluster.recorder import Recorder
from finetuning_operator.cluster.report import Reporter
from finetuning_operator.cluster.resync import Resync
from finetuning_operator.cluster.statuses import PROGRESS_SHARE, ProgressBudget
from finetuning_operator.cluster.streams import Streams
from finetuning_operator.cluster.trash import TrashCollector
from finetuning_operator.cluster.view import View
from finetuning_operator.cluster.watch import watch

_LOGGER = logging.getLogger(__name__)

_STOP_SECONDS = 20.0
"""How long work that has begun may take to end after the process was told to stop."""
_CLOSE_SECONDS = 5.0
_STUCK_SECONDS = 300.0
"""Work on one object that takes longer than this is stuck."""
_GOING_SECONDS = 0.2
"""What goes often goes with its owner, whose own stream may tell of it later: nothing is made again for it at once."""


async def run(options: Options) -> int:
    """Run an operator until SIGTERM or until leadership is lost; return the exit code."""
    async with AsyncExitStack() as stack:
        try:
            client = await connect()
        except ApiError as error:
            _LOGGER.error("%s", error)  # noqa: TRY400  (the message says what to do; a traceback does not)
            return 1
        stack.push_async_callback(client.close)
        metrics = Metrics()
        elected = _Election()
        api = ClusterApi(
            client,
            bucket=TokenBucket(rate=options.api_qps, burst=options.api_burst),
            may_write=elected.may_write,
            on_call=metrics.called,
        )
        elected.join(api, options)
        return await Operator(api, options, metrics=metrics, elected=elected).run()


class _Election:
    """Whether this process is the active one; without a Lease it always is."""

    def __init__(self) -> None:
        self._leadership: Leadership | None = None
        self._alone = False

    def join(self, api: ClusterApi, options: Options) -> None:
        """Take part in the election that the options name."""
        if options.lease_name is None:
            self._alone = True
            return
        # A container that was restarted in its pod goes on at once; two processes of one machine are told apart.
        identity = f"{socket.gethostname()}-{os.getpid()}"
        self._leadership = Leadership(
            api,
            namespace=options.operator_namespace,
            name=options.lease_name,
            identity=identity,
            timing=LeaseTiming.lasting(options.lease_seconds),
        )

    def may_write(self) -> bool:
        return self._alone or (self._leadership is not None and self._leadership.held())

    async def run(self, on_started: Callable[[], None]) -> None:
        """Call ``on_started`` once this process is the active one, and return when it no longer is."""
        if self._leadership is not None:
            await self._leadership.run(on_started)
            return
        on_started()
        await asyncio.Event().wait()

    async def release(self) -> None:
        if self._leadership is not None:
            await self._leadership.release()


class Operator:
    """The parts of one process. A standby watches and learns like the active one; it only does not work."""

    def __init__(self, api: ClusterApi, options: Options, *, metrics: Metrics, elected: _Election) -> None:
        self._api = api
        self._options = options
        self._metrics = metrics
        self._elected = elected
        self._cache = Cache()
        self._queue: WorkQueue[ObjectKey] = WorkQueue()
        self._progress = ProgressStore(self._reported)
        self._resync = Resync(api, self._cache, namespaces=options.namespaces, wake=self._wake)
        self._idle = IdleWatch(self._cache, wake=self._wake)
        turns = TokenBucket(rate=options.api_qps * INQUIRY_SHARE, burst=INQUIRY_BURST)
        view = View(self._cache, self._progress, idle_since=self._idle.since, asked_at=self._idle.asked)
        self._controller = Controller(
            api,
            self._cache,
            self._queue,
            view=view,
            applier=Applier(
                api,
                self._cache,
                options,
                wake=self._wake,
                wake_later=self._wake_later,
                serves=lambda kind: kind in self._resync.served,
            ),
            reporter=Reporter(
                api,
                self._cache,
                Recorder(api, instance=socket.gethostname()),
                metrics=metrics,
                delay=options.status_delay,
                budget=ProgressBudget(per_second=options.api_qps * PROGRESS_SHARE),
                wake=self._wake,
                waiting=lambda: self._queue.depth,
            ),
            inquirer=Inquirer(api, EventBoard(api, turns), turns),
            progress=self._progress,
            metrics=metrics,
            settings=options.settings,
        )
        self._trash = TrashCollector(api, self._cache, ttl_seconds=options.trash_ttl_seconds)
        self._collector = SparingCollector()
        self._stop = asyncio.Event()
        self._synced = asyncio.Event()
        self._unwatch = asyncio.Event()
        self._leading = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        """Start everything, and end when told to: 0 for a stop, 1 for the loss of leadership or of a part."""
        self._show()
        async with AsyncExitStack() as stack:
            stack.enter_context(self._collector.sparing())
            await self._serve_health(stack)
            await self._serve_progress(stack)
            await self._serve_doorway(stack)
            self._take_signals()
            parts = self._start()
            stopping = asyncio.create_task(self._stop.wait(), name="stop")
            await asyncio.wait((*parts, stopping), return_when=asyncio.FIRST_COMPLETED)
            code = 0 if self._stop.is_set() else _cause(parts)
            stopping.cancel()
            await self._finish(parts)
        return code

    def _start(self) -> list[asyncio.Task[None]]:
        return [
            asyncio.create_task(self._elected.run(self._leading.set), name="election"),
            asyncio.create_task(self._work(), name="work"),
            asyncio.create_task(self._watch(), name="watch"),
            asyncio.create_task(self._watch_children(), name="streams"),
        ]

    async def _watch(self) -> None:
        """Follow the cluster, once everything is served that is watched: kopf would not notice what comes later."""
        await self._synced.wait()
        await watch(
            self._take_event,
            namespaces=self._options.namespaces,
            stop=self._unwatch,
            signals=self._take_signals,
        )

    async def _watch_children(self) -> None:
        await self._synced.wait()
        children = self._resync.served - frozenset(OWN_KINDS.values())
        await Streams(self._api, self._resync, on_event=self._take_event).run(children)

    async def _work(self) -> None:
        """Learn the state of the cluster; as soon as this is the active process, work. Ends only with an error."""
        await self._resync.first()
        self._synced.set()
        _LOGGER.info("synced: %s", self._cache.counts())
        await self._leading.wait()
        self._controller.prime()
        async with asyncio.TaskGroup() as group:
            self._workers = [group.create_task(self._controller.work()) for _ in range(self._options.workers)]
            group.create_task(self._collector.run())
            group.create_task(self._resync.run(self._options.resync_seconds, after=self._revisit))
            group.create_task(self._trash.run(self._options.resync_seconds))
            group.create_task(self._idle.run())

    def _revisit(self) -> None:
        self._controller.revisit(within=self._options.resync_seconds / 2)
        self._collector.search_if_grown()

    async def _finish(self, parts: list[asyncio.Task[None]]) -> None:
        """Begin nothing more, end what has begun, and leave the Lease to the next."""
        self._queue.close()
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=_STOP_SECONDS)
            if late:
                _LOGGER.warning("%d objects were still worked on", len(late))
        election, work, watching, streams = parts
        for part in (election, work, streams):
            part.cancel()
        await self._elected.release()
        self._unwatch.set()
        if self._synced.is_set():
            # kopf ends its streams in order when it is asked to, and not when it is cancelled.
            await asyncio.wait((watching,), timeout=_CLOSE_SECONDS)
        watching.cancel()
        await asyncio.wait(parts, timeout=_CLOSE_SECONDS)

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    def _take_event(self, kind: str, event: str | None, manifest: dict[str, Any]) -> None:
        """Take in what a watch stream tells."""
        is_gone = event == "DELETED"
        concerned = self._cache.remove(kind, manifest) if is_gone else self._cache.put(kind, manifest)
        if kind not in OWN_KINDS and (is_gone or "deletionTimestamp" in manifest["metadata"]):
            self._wake_later(concerned, _GOING_SECONDS)
        else:
            self._wake(concerned)
        if kind == NETWORK_POLICY.kind and event in {"DELETED", "MODIFIED"}:
            self._queue.add(ObjectKey(kind, manifest["metadata"]["namespace"], ""))

    def _wake(self, keys: Iterable[ObjectKey]) -> None:
        for key in keys:
            self._queue.add(key)

    def _wake_later(self, keys: Iterable[ObjectKey], seconds: float) -> None:
        for key in keys:
            self._queue.add_after(key, seconds)

    def _reported(self, key: ProgressKey) -> None:
        self._controller.progressed(ObjectKey(key.kind, key.namespace, key.name))

    def _show(self) -> None:
        self._metrics.objects(self._counts)
        self._metrics.gauge("queue_depth", "Objects that wait for a worker.", lambda: self._queue.depth)
        self._metrics.gauge("working", "Objects that are worked on.", lambda: self._queue.working)
        self._metrics.gauge("leading", "Whether this process is the active one.", self._elected.may_write)

    def _counts(self) -> Counter[tuple[str, str]]:
        return Counter((kind, self._cache.phase(key)) for kind in OWN_KINDS for key in self._cache.keys(kind))

    async def _serve_health(self, stack: AsyncExitStack) -> None:
        health = HealthServer(
            alive={
                "work": at_most(
                    "an object is stuck", lambda: self._queue.longest_running_seconds, limit=_STUCK_SECONDS
                ),
                "lists": at_most(
                    "nothing was listed", lambda: self._resync.age_seconds, limit=self._options.resync_seconds * 3 + 60
                ),
            },
            ready={"synced": must("the first lists are not complete", lambda: self._resync.synced)},
            metrics=self._metrics.render,
        )
        await health.start(self._options.health_port)
        stack.push_async_callback(health.stop)

    async def _serve_progress(self, stack: AsyncExitStack) -> None:
        chosen = self._options.progress
        if chosen is not None:
            server = self._progress_server(chosen)
            await server.start(port=chosen.port)
            stack.push_async_callback(server.close)

    async def _serve_doorway(self, stack: AsyncExitStack) -> None:
        if self._options.doorway is not None:
            doorway = Doorway(self._cache, ask=self._idle.ask)
            await doorway.start(self._options.doorway.port)
            stack.push_async_callback(doorway.stop)

    def _progress_server(self, chosen: ProgressOptions) -> ProgressServer:
        endpoint = ProgressEndpoint(
            self._progress,
            TokenVerifier(self._api),
            knows=self._knows,
            leading=self._elected.may_write,
            answered=lambda status: self._metrics.progress_reported(str(int(status))),
        )
        return ProgressServer(endpoint, certificate=chosen.certificate, key=chosen.key)

    def _knows(self, key: ProgressKey, uid: str) -> bool:
        owner = ObjectKey(key.kind, key.namespace, key.name)
        known = self._cache.identity(owner)
        return known is not None and known[0] == uid and not self._cache.is_finished(owner)


def _cause(parts: list[asyncio.Task[None]]) -> int:
    """Log what ended, which nothing should, and return the exit code."""
    for part in parts:
        if part.done() and not part.cancelled():
            error = part.exception()
            _LOGGER.error("%s ended%s", part.get_name(), f": {error}" if error else "", exc_info=error)
    return 1
