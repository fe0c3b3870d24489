"""What a client may cost: bytes of a body, seconds to send it, seconds to be answered, and nothing once it has left."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetuning_server.http.access import record_of
from finetuning_server.http.errors import ApiError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one request."""

    body_bytes: int
    request_seconds: int
    body_seconds: float = 30.0
    """For a client to send its body; a slow one is cut off."""
    flush_seconds: float = 10.0
    """How much longer than its request a client may take to read the end of the answer."""


class Bounded:
    """Reads a body in full, within its limits, before the application sees the request; cancels what nobody waits for.

    So a handler never waits for its client, and its work ends the moment that the client leaves.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            message = f"the body did not arrive within {self._limits.body_seconds:g} s"
            refused = ApiError(HTTPStatus.REQUEST_TIMEOUT, message, code="timeout", headers={"Connection": "close"})
            await refused.response()(scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)
        else:
            if body is not None:
                await self._answer(scope, body, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body, None from a client that left. Raises ApiError as soon as it is seen to be too large."""
        limit = self._limits.body_bytes
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _too_large(limit)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                return bytes(body)

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_gone(receive))
        exchange = _Exchange(body, gone=gone, send=send)
        work = asyncio.create_task(_run(self._app, scope, exchange))
        try:
            seconds = self._limits.request_seconds + self._limits.flush_seconds
            await asyncio.wait({work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not exchange.is_complete:
                record_of(scope).error = "client_gone" if gone.done() else "client_too_slow"
                work.cancel()
            await asyncio.wait({work})
        finally:
            gone.cancel()
            work.cancel()
        if not work.cancelled():
            work.result()


class _Exchange:
    """The application's side of a request whose body is read."""

    def __init__(self, body: bytes, *, gone: asyncio.Task[None], send: Send) -> None:
        self._body: bytes | None = body
        self._gone = gone
        self._send = send
        self.is_complete = False

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.shield(self._gone)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True
        await self._send(message)


async def _run(app: ASGIApp, scope: Scope, exchange: _Exchange) -> None:
    await app(scope, exchange.receive, exchange.send)


async def _gone(receive: Receive) -> None:
    """Return when the client has left, or has its answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limit: int) -> ApiError:
    message = f"the body has more than {limit} bytes, which is the limit of this server"
    return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, code="body_too_large")
