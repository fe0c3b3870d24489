"""HTTP servers on loopback that misbehave on request: cut connections, stall, lie and refuse."""

import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

_CHUNK_BYTES = 4096


class Trouble(StrEnum):
    """What goes wrong with an answer."""

    CUT = "cut"
    """The connection ends after ``after_bytes`` of the body."""
    STALL = "stall"
    """Nothing more comes after ``after_bytes`` of the body; the connection stays open."""
    WRONG_BYTES = "wrong-bytes"
    """The body has the right length, but its byte at ``after_bytes`` is another one."""
    STATUS = "status"
    """The answer is ``status`` in place of the content."""


@dataclass(slots=True)
class Fault:
    """Trouble with one path, for a number of requests."""

    trouble: Trouble
    after_bytes: int = 0
    status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE
    times: int = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that the server answered."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    """With names in lower case."""
    body: bytes = b""

    @property
    def range_start(self) -> int:
        """First byte that was asked for."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answers before any fault. A body that may be asked for in parts says so by ``ranges``."""

    body: bytes = b""
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = False


Application = Callable[[Seen], Answer]


class LoopbackServer:
    """A server of one application; a context manager that stops with its last connection cut."""

    def __init__(self, application: Application, *, tls: ssl.SSLContext | None = None) -> None:
        self._application = application
        self._faults: dict[str, Fault] = {}
        self._released = threading.Event()
        self._lock = threading.Lock()
        self.seen: list[Seen] = []
        self.body_bytes_sent = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Address of the server, without a slash at its end."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, path: str, fault: Fault) -> None:
        """Let the next requests for a path fail."""
        self._faults[path] = fault

    def requests_for(self, path: str, *, method: str = "GET") -> list[Seen]:
        """Return what was asked for under a path, in order."""
        return [seen for seen in self.seen if seen.path == path and seen.method == method]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def _take_fault(self, path: str) -> Fault | None:
        with self._lock:
            fault = self._faults.get(path)
            if fault is None or fault.times <= 0:
                return None
            fault.times -= 1
            return fault

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._serve(self)

            do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815  (names that the base class looks for)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name of the base class)
                """Say nothing: tests look at ``seen``."""

        return Handler

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        address = urlsplit(handler.path)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        seen = Seen(
            method=handler.command,
            path=unquote(address.path),
            query=address.query,
            headers=headers,
            body=handler.rfile.read(int(headers.get("content-length", 0))),
        )
        self.seen.append(seen)
        fault = None if seen.method == "HEAD" else self._take_fault(seen.path)
        if fault is not None and fault.trouble is Trouble.STATUS:
            self._send(handler, Answer(body=b"trouble", status=fault.status), fault=None)
        else:
            self._send(handler, _in_range(self._application(seen), seen), fault=fault)

    def _send(self, handler: BaseHTTPRequestHandler, answer: Answer, *, fault: Fault | None) -> None:
        handler.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | dict(answer.headers)).items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        body = answer.body if fault is None else _spoilt(answer.body, fault)
        for start in range(0, len(body), _CHUNK_BYTES):
            handler.wfile.write(body[start : start + _CHUNK_BYTES])
        handler.wfile.flush()
        with self._lock:
            self.body_bytes_sent += len(body)
        if fault is not None and fault.trouble is Trouble.STALL:
            self._released.wait()
        if len(body) < len(answer.body):
            handler.close_connection = True


def _spoilt(body: bytes, fault: Fault) -> bytes:
    if fault.trouble is Trouble.WRONG_BYTES:
        position = fault.after_bytes
        return body[:position] + bytes([body[position] ^ 0xFF]) + body[position + 1 :]
    return body[: fault.after_bytes]


def _in_range(answer: Answer, seen: Seen) -> Answer:
    """Return the part of an answer that was asked for, as RFC 9110 wants it: If-Range must name the same entity."""
    asked = "range" in seen.headers and answer.ranges and answer.status is HTTPStatus.OK
    if not asked or seen.headers.get("if-range", answer.headers.get("ETag")) != answer.headers.get("ETag"):
        return answer
    size, start = len(answer.body), seen.range_start
    if start >= size:
        refused = {"Content-Range": f"bytes */{size}"}
        return Answer(status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=refused)
    headers = dict(answer.headers) | {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
    return Answer(body=answer.body[start:], status=HTTPStatus.PARTIAL_CONTENT, headers=headers, ranges=True)
