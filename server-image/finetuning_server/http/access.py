"""One JSON line for each request, and what is known of a request while it runs."""

import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TextIO, cast

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetuning_server.http.metrics import Meters

REQUEST_ID = "x-request-id"
SERVED_MODEL = "x-served-model"
CLIENT_GONE = 499
"""Status in log and metrics of a request whose client left before it was answered; nothing is sent."""

_LOG = logging.getLogger(__name__)
_GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KEY = "record"
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds."""


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """What the access log tells of a request; filled in as it becomes known."""

    id: str
    method: str
    path: str
    started: float = field(default_factory=time.monotonic)
    status: int | None = None
    holder: str | None = None
    model: str | None = None
    """What answers."""
    asked: str | None = None
    """Name that stands for several models, where that was asked for."""
    prompt: object = None
    """What was sent as prompt; only where the server is told to log prompts."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_seconds: float | None = None
    error: str | None = None
    """Code of what ended a stream that had begun."""

    @property
    def elapsed(self) -> float:
        """Seconds since the head of the request was read."""
        return time.monotonic() - self.started


class AccessLog:
    """Writes one line of JSON for each request."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, record: RequestRecord, *, client: str | None) -> None:
        """Write the line of a request that is over."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "request_id": record.id,
            "client": client,
            "holder": record.holder,
            "method": record.method,
            "path": record.path,
            "status": record.status,
            "seconds": round(record.elapsed, 4),
            "first_token_seconds": None if record.first_token_seconds is None else round(record.first_token_seconds, 4),
            "model": record.model,
            "asked_model": record.asked,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "error": record.error,
            "prompt": record.prompt,
        }
        told = {name: value for name, value in line.items() if value is not None}
        self._stream.write(f"{json.dumps(told)}\n")
        self._stream.flush()


class Observing:
    """Gives every request an id and a record, counts it, writes its line, and answers faults of the server itself."""

    def __init__(self, app: ASGIApp, *, meters: Meters, log: AccessLog, is_closing: Callable[[], bool]) -> None:
        self._app = app
        self._meters = meters
        self._log = log
        self._is_closing = is_closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(id=_request_id(scope), method=scope["method"], path=scope["path"])
        scope.setdefault("state", {})[_KEY] = record
        is_complete = False

        async def sending(message: Message) -> None:
            nonlocal is_complete
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = record.id
                if record.model is not None:
                    headers[SERVED_MODEL] = record.model
                if self._is_closing():
                    headers["connection"] = "close"
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            _LOG.exception("request %s failed", record.id)
            record.error = "internal"
            if not is_complete:
                raise
        finally:
            self._end(record, scope)

    def _end(self, record: RequestRecord, scope: Scope) -> None:
        if record.status is None:
            record.status = CLIENT_GONE
        self._meters.count(record.path, model=record.model, status=record.status, seconds=record.elapsed)
        if record.asked is not None:
            self._meters.count_split(record.asked, model=record.model or "", status=record.status)
        if record.path not in _QUIET_PATHS:
            client = scope.get("client")
            self._log.write(record, client=client[0] if client else None)


def record_of(scope: Scope) -> RequestRecord:
    """Return the record of a request that Observing has begun."""
    return cast("RequestRecord", scope["state"][_KEY])


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
