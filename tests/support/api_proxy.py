"""A proxy between a client and the API server: it writes down every request, and things go wrong on request."""

import asyncio
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web
from tests.support.tls import Certificate

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_HOP_BY_HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"})
_LONGEST_BODY = 64 * 2**20
_LONGEST_EVENT = 4 * 2**20
_START_SECONDS = 30
_RECORD = web.RequestKey("record", list["Seen"])
_GONE = {
    "type": "ERROR",
    "object": {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": 410,
        "reason": "Expired",
        "message": "too old resource version",
    },
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request is about, in the words of RBAC."""

    verb: str
    group: str
    resource: str
    """Plural name of the kind; empty for addresses that are no resources."""
    subresource: str
    namespace: str
    name: str
    path: str

    @property
    def target(self) -> str:
        """Resource and subresource as a rule names them, for example ``jobs/status``."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came through."""

    asked: Asked
    method: str
    query: str
    status: int
    """What the client was answered, 0 where it got no answer."""
    answered: int
    """What the API server answered, 0 where it never got the request."""
    user_agent: str
    at: float
    """Seconds of the monotonic clock."""
    body: bytes = field(repr=False, default=b"")
    """Kept for writes, when the proxy was told to keep bodies."""


class Trouble(StrEnum):
    """What goes wrong with a request."""

    STATUS = "status"
    """The proxy answers ``status`` by itself, with Retry-After where ``retry_after`` is set."""
    CUT_BEFORE = "cut-before"
    """The connection ends; the server never hears of the request."""
    CUT_AFTER = "cut-after"
    """The server did what was asked; the connection ends before the client hears so."""
    DELAY = "delay"
    """The request is held for ``seconds``, then goes its way."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Trouble for requests that fit: after ``skip`` of them, the next ``times``; None is all that follow."""

    trouble: Trouble
    verbs: frozenset[str] = WRITES
    target: str | None = None
    """Resource or resource/subresource; None fits all."""
    skip: int = 0
    times: int | None = 1
    status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE
    retry_after: int | None = None
    seconds: float = 0
    message: str = "trouble on request"
    where: Callable[[Asked], bool] = lambda _: True

    def fits(self, asked: Asked) -> bool:
        """Whether the fault is meant for such a request."""
        return asked.verb in self.verbs and self.target in {None, asked.target} and self.where(asked)


@dataclass(slots=True, eq=False)
class _Watch:
    """An open watch of a client."""

    asked: Asked
    silent: bool = False
    expired: asyncio.Event = field(default_factory=asyncio.Event)
    request: web.Request | None = None


class ApiProxy:
    """An HTTPS server on loopback in front of an API server; a context manager with a thread of its own.

    Clients trust ``ca`` and identify themselves by token, which is passed on.
    """

    def __init__(self, server: str, *, server_ca: Path, folder: Path, keep_bodies: bool = False) -> None:
        self._server = server
        self._trust = ssl.create_default_context(cafile=server_ca)
        self._certificate = Certificate.make(folder)
        self._keep_bodies = keep_bodies
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._under_way: set[Future[None]] = set()
        self._faults: list[tuple[Fault, list[int]]] = []
        self._watches: set[_Watch] = set()
        self._silent = False
        self._unreachable = False
        self._address: Future[str] = Future()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ended = asyncio.Event()

    @property
    def url(self) -> str:
        """Address that clients use."""
        return self._address.result(_START_SECONDS)

    @property
    def ca(self) -> Path:
        """Certificate that clients trust."""
        return self._certificate.path

    def __enter__(self) -> Self:
        self._thread.start()
        self._address.result(_START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    # What was asked for

    def seen(
        self, *, verbs: Iterable[str] | None = None, target: str | None = None, namespace: str | None = None
    ) -> list[Seen]:
        """Return the requests so far, or those that fit, in the order of their answers.

        What the API server was already asked to change counts: others may see its effect before the answer is here.
        """
        wanted = None if verbs is None else frozenset(verbs)
        with self._lock:
            under_way = set(self._under_way)
        wait(under_way, timeout=_START_SECONDS)
        with self._lock:
            return [
                each
                for each in self._seen
                if (wanted is None or each.asked.verb in wanted)
                and target in {None, each.asked.target}
                and namespace in {None, each.asked.namespace}
            ]

    def writes(self, *, target: str | None = None, namespace: str | None = None) -> list[Seen]:
        """Return the requests that change something."""
        return self.seen(verbs=WRITES, target=target, namespace=namespace)

    def counts(self) -> Counter[tuple[str, str]]:
        """Return how often each (verb, resource/subresource) was asked for."""
        return Counter((each.asked.verb, each.asked.target) for each in self.seen())

    def forget(self) -> None:
        """Start the record anew. A request that is under way counts for the old one: its effect may be seen already."""
        with self._lock:
            self._seen = []

    # What goes wrong

    def fail(self, *faults: Fault) -> None:
        """Let requests fail from now on. Of several faults that fit, the first that is due counts."""
        with self._lock:
            self._faults.extend((fault, [0]) for fault in faults)

    def met(self, fault: Fault) -> int:
        """Return how many requests fitted a fault so far."""
        with self._lock:
            return sum(count[0] for each, count in self._faults if each is fault)

    def heal(self) -> None:
        """End all trouble. Watches that were silenced stay silent: what they missed is lost."""
        with self._lock:
            self._faults.clear()
        self._silent = self._unreachable = False

    def be_unreachable(self) -> None:
        """End all connections, and every new one, until ``heal``."""
        self._unreachable = True
        self.drop_watches()

    def drop_watches(self, target: str | None = None) -> int:
        """Cut the open watches and return how many there were."""
        return self._for_watches(target, _cut_watch)

    def silence_watches(self, target: str | None = None) -> int:
        """Swallow what open watches would tell, and, where no target is named, later ones until ``heal``."""
        self._silent = target is None

        def silence(watch: _Watch) -> None:
            watch.silent = True

        return self._for_watches(target, silence)

    def expire_watches(self, target: str | None = None) -> int:
        """End the open watches with the error 410 Expired."""
        return self._for_watches(target, lambda watch: watch.expired.set())

    def open_watches(self, target: str | None = None) -> int:
        """Return how many watches are open."""
        return self._for_watches(target, lambda _: None)

    def _for_watches(self, target: str | None, act: Callable[[_Watch], None]) -> int:
        async def in_loop() -> int:
            watches = [watch for watch in self._watches if target in {None, watch.asked.target}]
            for watch in watches:
                act(watch)
            return len(watches)

        return asyncio.run_coroutine_threadsafe(in_loop(), self._loop).result(_START_SECONDS)

    # The server

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        application = web.Application(client_max_size=_LONGEST_BODY)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0)
        connector = aiohttp.TCPConnector(ssl=self._trust, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with aiohttp.ClientSession(
                connector=connector, timeout=timeout, auto_decompress=False, read_bufsize=_LONGEST_EVENT
            ) as self._session:
                await runner.setup()
                site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._certificate.server_context())
                await site.start()
                self._address.set_result(f"https://127.0.0.1:{runner.addresses[0][1]}")
                await self._ended.wait()
                for watch in self._watches:
                    _cut_watch(watch)
                await runner.cleanup()
        except Exception as error:
            if not self._address.done():
                self._address.set_exception(error)
            raise

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        request[_RECORD] = self._seen
        asked = read_address(request.method, request.path, watch=request.query.get("watch", ""))
        body = await request.read()
        fault = self._due_fault(asked)
        if self._unreachable or (fault is not None and fault.trouble is Trouble.CUT_BEFORE):
            return self._cut(request, asked, body=body)
        if fault is not None and fault.trouble is Trouble.STATUS:
            self._record(request, asked, status=fault.status, body=body)
            return _refusal(fault)
        if fault is not None and fault.trouble is Trouble.DELAY:
            await asyncio.sleep(fault.seconds)
        with self._counted(asked):
            return await self._pass_on(request, asked, body=body, fault=fault)

    @contextmanager
    def _counted(self, asked: Asked) -> Iterator[None]:
        """Let whoever counts requests wait until a change that may have happened already is written down."""
        if asked.verb not in WRITES:
            yield
            return
        done: Future[None] = Future()
        with self._lock:
            self._under_way.add(done)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(done)
            done.set_result(None)

    async def _pass_on(
        self, request: web.Request, asked: Asked, *, body: bytes, fault: Fault | None
    ) -> web.StreamResponse:
        try:
            async with self._forward(request, body) as answer:
                if fault is not None and fault.trouble is Trouble.CUT_AFTER:
                    await answer.read()
                    return self._cut(request, asked, body=body, answered=answer.status)
                self._record(request, asked, status=answer.status, body=body, answered=answer.status)
                return await self._answer(request, asked, answer)
        except (aiohttp.ClientError, ConnectionError):
            # The server is away: the client sees what it would see without us.
            return self._cut(request, asked, body=body)

    def _forward(self, request: web.Request, body: bytes) -> "aiohttp.client._RequestContextManager":
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
        return self._session.request(
            request.method, self._server + request.raw_path, headers=headers, data=body or None, allow_redirects=False
        )

    async def _answer(self, request: web.Request, asked: Asked, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        headers = [(name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP]
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        response.headers.extend(headers)
        await response.prepare(request)
        try:
            if asked.verb == "watch" and answer.status == HTTPStatus.OK:
                await self._relay_watch(_Watch(asked, silent=self._silent, request=request), answer, response)
            else:
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            await response.write_eof()
        except (aiohttp.ClientError, ConnectionError):
            _abort(request)  # One side went away in the middle of the answer.
        return response

    async def _relay_watch(self, watch: _Watch, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        """Pass events on until either side ends or the watch is made to expire."""
        self._watches.add(watch)
        ends = [asyncio.ensure_future(end) for end in (_pass_events(watch, answer, response), watch.expired.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._watches.discard(watch)
            for end in ends:
                end.cancel()
            passed, _ = await asyncio.gather(*ends, return_exceptions=True)
        if watch.expired.is_set():
            await response.write(json.dumps(_GONE).encode() + b"\n")
        elif isinstance(passed, Exception):
            raise passed

    def _due_fault(self, asked: Asked) -> Fault | None:
        """Return the fault that hits a request. Every fault that fits counts it, hit or not."""
        due: Fault | None = None
        with self._lock:
            for fault, count in self._faults:
                if fault.fits(asked):
                    count[0] += 1
                    last = None if fault.times is None else fault.skip + fault.times
                    if due is None and count[0] > fault.skip and (last is None or count[0] <= last):
                        due = fault
        return due

    def _cut(self, request: web.Request, asked: Asked, *, body: bytes, answered: int = 0) -> web.Response:
        self._record(request, asked, status=0, body=body, answered=answered)
        _abort(request)
        return web.Response()

    def _record(self, request: web.Request, asked: Asked, *, status: int, body: bytes, answered: int = 0) -> None:
        seen = Seen(
            asked=asked,
            method=request.method,
            query=request.query_string,
            status=status,
            answered=answered,
            user_agent=request.headers.get("User-Agent", ""),
            at=time.monotonic(),
            body=body if self._keep_bodies and asked.verb in WRITES else b"",
        )
        with self._lock:
            request[_RECORD].append(seen)


async def _pass_events(watch: _Watch, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    """Pass on whole events, one a line."""
    while line := await answer.content.readline():
        if not watch.silent:
            await response.write(line)


def read_address(method: str, path: str, *, watch: str = "") -> Asked:
    """Read from method and address what RBAC decides on."""
    parts = [part for part in path.split("/") if part]
    group, rest = _group(parts)
    namespace = ""
    # /namespaces/x alone is the namespace itself; with something behind it, it is where that lies.
    if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in {"status", "finalize"}:
        namespace, rest = rest[1], rest[2:]
    resource, name, subresource = (*rest, "", "", "")[:3]
    return Asked(
        verb=_verb(method, resource=resource, name=name, watch=watch in {"1", "true", "True"}),
        group=group,
        resource=resource,
        subresource=subresource,
        namespace=namespace,
        name=name,
        path=path,
    )


def _group(parts: list[str]) -> tuple[str, list[str]]:
    if parts[:1] == ["api"]:
        return "", parts[2:]
    if parts[:1] == ["apis"]:
        return (parts[1] if len(parts) > 1 else ""), parts[3:]
    return "", []


def _verb(method: str, *, resource: str, name: str, watch: bool) -> str:
    if not resource:
        return method.lower()
    if method in {"GET", "HEAD"}:
        return "watch" if watch else ("get" if name else "list")
    if method == "DELETE":
        return "delete" if name else "deletecollection"
    return {"POST": "create", "PUT": "update", "PATCH": "patch"}[method]


def _refusal(fault: Fault) -> web.Response:
    reason = "".join(word.capitalize() for word in fault.status.name.split("_"))
    status = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": int(fault.status)}
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    body = status | {"reason": reason, "message": fault.message}
    return web.json_response(body, status=fault.status, headers=headers)


def _cut_watch(watch: _Watch) -> None:
    if watch.request is not None:
        _abort(watch.request)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
