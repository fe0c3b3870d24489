"""The life of the server's process: listen, load, answer, drain, end."""

import asyncio
import logging
import resource
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import uvicorn

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ServeConfig
from finetuning_server.engine.base import Engine
from finetuning_server.engine.batching import BatchingEngine
from finetuning_server.http.app import Life, Phase, create_app
from finetuning_server.http.connections import patient_protocol
from finetuning_server.http.limits import Limits
from finetuning_workload.errors import EnvironmentFault
from finetuning_workload.program import Context, StopFlag

_LOG = logging.getLogger(__name__)
_BACKLOG = 2048
_OPEN_FILES = 65536
_SPARE_CONNECTIONS = 1000
"""Connections beyond one for each request: probes, idle clients, and those that are refused."""
_POLL_SECONDS = 0.1
_FLUSH_SECONDS = 5
"""For the last words to requests that were ended, before their connections are cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long is waited for clients."""

    head_seconds: float = 10.0
    """For the head of a request."""
    body_seconds: float = 30.0
    """For its body."""
    idle_seconds: int = 75
    """For the next request on a connection; longer than the 60 s after which proxies commonly close theirs."""
    last_call_seconds: float = 2.0
    """How long new connections are taken after the request to end: somebody may still hold the address."""


def serve(config: ServeConfig, context: Context) -> None:
    """Answer requests until asked to end. Raises ProgramError for what cannot be loaded or listened on."""
    _require_model(config)
    _allow_many_connections()
    serve_engine(BatchingEngine(config, environment=context.environment), config, stop=context.stop)


def serve_engine(
    engine: Engine, config: ServeConfig, *, stop: StopFlag, log: TextIO = sys.stdout, patience: Patience | None = None
) -> None:
    """Answer requests with an engine that is not started yet."""
    with _listener(config.host, config.port) as listener:
        asyncio.run(_Serving(engine, config, stop=stop, patience=patience or Patience()).run(listener, log))


class _Server(uvicorn.Server):
    """Uvicorn without handlers of its own for signals: they belong to the frame of the program."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class _Serving:
    """One run of the server."""

    def __init__(self, engine: Engine, config: ServeConfig, *, stop: StopFlag, patience: Patience) -> None:
        self._engine = engine
        self._config = config
        self._stop = stop
        self._patience = patience
        self._life = Life()

    async def run(self, listener: socket.socket, log: TextIO) -> None:
        """Answer probes from the first moment, requests from the moment that the engine is warm."""
        server = self._server(log)
        answering = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            if await self._load():
                self._life.phase = Phase.READY
                names = ", ".join(model.name for model in self._engine.models())
                _LOG.info("serving %s at %s:%d", names, self._config.host, self._config.port)
                await self._stopped()
                await self._drain(server, answering, listener)
        finally:
            server.should_exit = True
            await self._engine.stop()
            await answering

    def _server(self, log: TextIO) -> _Server:
        config, patience = self._config, self._patience
        limits = Limits(
            body_bytes=config.max_body_bytes,
            request_seconds=config.request_seconds,
            body_seconds=patience.body_seconds,
        )
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        return _Server(
            uvicorn.Config(
                create_app(self._engine, config, life=self._life, log=log, limits=limits),
                http=patient_protocol(patience.head_seconds),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                limit_concurrency=config.max_running + config.max_waiting + _SPARE_CONNECTIONS,
                timeout_keep_alive=patience.idle_seconds,
                timeout_graceful_shutdown=config.drain_seconds + _FLUSH_SECONDS,
            )
        )

    async def _load(self) -> bool:
        """Start the engine; returns whether it is ready, and not asked to end meanwhile."""
        starting = asyncio.create_task(self._engine.start())
        stopping = asyncio.create_task(self._stopped())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                _LOG.info("asked to end while loading")
                return False
            starting.result()
            return True
        finally:
            starting.cancel()
            stopping.cancel()

    async def _stopped(self) -> None:
        while not self._stop:  # noqa: ASYNC110  (set by a signal's handler, which must not touch the event loop)
            await asyncio.sleep(_POLL_SECONDS)

    async def _drain(self, server: _Server, answering: asyncio.Task[None], listener: socket.socket) -> None:
        """Let running requests go on for the time that they are given.

        Readiness is off at once, and every answer closes its connection. The listener stays open a little longer: a
        client that still finds the address is answered, not refused.
        """
        self._life.phase = Phase.DRAINING
        last_call = min(self._patience.last_call_seconds, self._config.drain_seconds)
        _LOG.info("asked to end: %d requests run", self._engine.load().running)
        await asyncio.sleep(last_call)
        # What waits in the socket's queue when it is closed would be reset: take no more, and let the queue run empty.
        listener.listen(0)
        await asyncio.sleep(_POLL_SECONDS)
        server.should_exit = True
        _done, late = await asyncio.wait({answering}, timeout=self._config.drain_seconds - last_call)
        if late:
            load = self._engine.load()
            unfinished = load.running + load.waiting
            _LOG.warning("%d requests are ended after %d s", unfinished, self._config.drain_seconds)


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        message = f"cannot listen on {host}:{port}: {error.strerror}"
        hint = "Choose another port or address, or end what listens there."
        raise EnvironmentFault(Reason.INTERNAL, message, hint) from error


def _require_model(config: ServeConfig) -> None:
    """Raise EnvironmentFault where the base model's folder is not there at all: a volume that is not mounted."""
    if not Path(config.model.path).is_dir():
        message = f"the folder of the base model, {config.model.path}, is not there"
        hint = "Check that the volume with the base model exists and is mounted there."
        raise EnvironmentFault(Reason.VOLUME_UNAVAILABLE, message, hint)


def _allow_many_connections() -> None:
    """Raise the limit of open files, often 1024, as far as the system allows: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
