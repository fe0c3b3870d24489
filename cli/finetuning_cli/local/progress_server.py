"""The progress endpoint of a run: steps post there what they would post to the operator."""

import hmac
import secrets
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

from finetuning_api.progress import REPORT_BYTES, UnreadableReportError, parse_report
from finetuning_api.runconfig import TrainerStatus

_REQUEST_SECONDS = 5.0


class ProgressServer:
    """Keeps the latest report of every step. Listens on loopback only; reports need the token of this run."""

    def __init__(self, on_report: Callable[[], None]) -> None:
        self.token = secrets.token_urlsafe(32)
        self._on_report = on_report
        self._latest: dict[str, TrainerStatus] = {}
        self._guard = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, name="progress-server", daemon=True)
        self._thread.start()

    def url(self, step: str) -> str:
        """Return where a step reports to; ``step`` is any name without spaces."""
        return f"http://127.0.0.1:{self._server.server_port}/{step}"

    def latest(self, step: str) -> TrainerStatus | None:
        """Return the latest report of a step."""
        with self._guard:
            return self._latest.get(step)

    def forget(self, step: str) -> None:
        """Drop the report of an earlier attempt."""
        with self._guard:
            self._latest.pop(step, None)

    def record(self, step: str, status: TrainerStatus) -> None:
        """Keep a report."""
        with self._guard:
            self._latest[step] = status
        self._on_report()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, reports: ProgressServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reports = reports


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_SECONDS
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        reports = cast("_Server", self.server).reports
        given = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {reports.token}".encode()):
            self._answer(HTTPStatus.UNAUTHORIZED)
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > REPORT_BYTES:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        try:
            status = parse_report(self.rfile.read(int(length)), now=datetime.now(UTC))
        except UnreadableReportError:
            self._answer(HTTPStatus.BAD_REQUEST)
            return
        reports.record(self.path.lstrip("/"), status)
        self._answer(HTTPStatus.ACCEPTED)

    def _answer(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
        """Say nothing: standard error belongs to the user."""
