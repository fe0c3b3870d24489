"""Server-sent events: an answer told piece by piece."""

import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Protocol

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from finetuning_server.engine.base import Piece
from finetuning_server.engine.errors import EngineError
from finetuning_server.http.access import RequestRecord
from finetuning_server.http.answers import Usage
from finetuning_server.http.errors import ApiError, ErrorAnswer, from_engine, internal_error
from finetuning_server.http.generating import Choices
from finetuning_server.http.writing import usage_of

MEDIA_TYPE = "text/event-stream"
_LOG = logging.getLogger(__name__)
_DONE = b"data: [DONE]\n\n"

Events = AsyncGenerator[bytes, None]


class ChunkWriter(Protocol):
    """Writes the chunks of one API."""

    def begin(self, index: int, /) -> Sequence[BaseModel]: ...
    def chunk(self, index: int, piece: Piece, *, offset: int) -> Sequence[BaseModel]: ...
    def end(self, usage: Usage) -> BaseModel: ...


class EventStream(Response):
    """Sends events as they come. However it ends, the generator that they come from is closed at once.

    (Starlette's own StreamingResponse leaves that to the garbage collector when the client stops reading.)
    """

    media_type = MEDIA_TYPE

    def __init__(self, first: bytes, rest: Events) -> None:
        # Proxies that gather what they pass on would turn a stream into one late answer.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._rest = rest

    @classmethod
    async def of(cls, events: Events) -> "EventStream":
        """Return the response after its first event is there: what is refused is refused before an answer begins."""
        return cls(await anext(events), events)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (ASGI's three)
        async with aclosing(self._rest) as rest:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for event in rest:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def events(pieces: Choices, *, writer: ChunkWriter, record: RequestRecord, with_usage: bool) -> Events:
    """Yield the events of a stream: chunks, the usage where it is asked for, and the end.

    Raises what the first piece raises. A later error is an event with an error object, and nothing follows it.
    """
    teller = _Teller(writer)
    async with aclosing(pieces):
        first = await anext(pieces)
        try:
            for event in teller.tell(*first):
                yield event
            async for index, piece in pieces:
                for event in teller.tell(index, piece):
                    yield event
        except Exception as error:  # noqa: BLE001  (the answer has begun: it can only be told in the stream)
            yield _event(_told(error, record))
            return
    if with_usage:
        yield _event(writer.end(usage_of(record)))
    yield _DONE


class _Teller:
    """Knows how far the text of each completion is told."""

    def __init__(self, writer: ChunkWriter) -> None:
        self._writer = writer
        self._offsets: dict[int, int] = {}

    def tell(self, index: int, piece: Piece) -> Iterator[bytes]:
        begin = () if index in self._offsets else self._writer.begin(index)
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(piece.text)
        return (_event(chunk) for chunk in (*begin, *self._writer.chunk(index, piece, offset=offset)))


def _told(error: Exception, record: RequestRecord) -> ErrorAnswer:
    if isinstance(error, EngineError):
        known = from_engine(error)
    elif isinstance(error, ApiError):
        known = error
    else:
        _LOG.error("request %s failed while it streamed", record.id, exc_info=error)
        known = internal_error(record.id)
    record.error = known.error.code
    return known.answer


def _event(content: BaseModel) -> bytes:
    return b"data: " + content.model_dump_json(exclude_unset=True).encode() + b"\n\n"
