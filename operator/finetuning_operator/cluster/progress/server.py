"""The HTTPS endpoint that programs report to: it answers from memory and never writes to the API server."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from finetuning_api.progress import REPORT_BYTES, UnreadableReportError, parse_report
from finetuning_operator.cluster.progress.address import ROUTE, ProgressKey
from finetuning_operator.cluster.progress.certificates import ReloadingContext
from finetuning_operator.cluster.progress.store import ProgressStore
from finetuning_operator.cluster.progress.tokens import (
    ReporterNotAllowedError,
    ReviewUnavailableError,
    TokenRefusedError,
    TokenVerifier,
    read_claims,
)

_LOG = logging.getLogger(__name__)
_HANDSHAKE_SECONDS = 5.0
_IDLE_SECONDS = 30.0
_LINGERING_SECONDS = 1.0
_CLOSING_SECONDS = 1.0
_RELOAD_SECONDS = 10.0
_BACKLOG = 1024
_KEPT_CONNECTIONS = 64
"""Open connections beyond which each is closed after its answer: asyncio holds about 0.3 MiB for each with TLS."""
_NOT_LEADING_RETRY: Final = 5
_NOT_REVIEWED_RETRY: Final = 2

Knows = Callable[[ProgressKey, str], bool]
"""Whether there is an object with this uid that runs, or soon runs, this step."""


class _Refusal(Exception):
    def __init__(
        self, status: HTTPStatus, message: str, *, retry_after: int | None = None, hang_up: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.hang_up = hang_up


class ProgressEndpoint:
    """Takes reports: who may report is asked before what is reported is read."""

    def __init__(
        self,
        store: ProgressStore,
        verifier: TokenVerifier,
        *,
        knows: Knows,
        leading: Callable[[], bool],
        answered: Callable[[HTTPStatus], None] = lambda _: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        body_seconds: float = 5.0,
    ) -> None:
        """``leading`` says whether this replica is the active one; ``answered`` is told every answer, for metrics.

        A report that does not arrive within ``body_seconds`` is given up.
        """
        self._store = store
        self._verifier = verifier
        self._knows = knows
        self._leading = leading
        self._answered = answered
        self._clock = clock
        self._body_seconds = body_seconds

    def application(self) -> web.Application:
        """Return what aiohttp serves."""
        application = web.Application(client_max_size=REPORT_BYTES)
        application.router.add_post(ROUTE, self.handle)
        return application

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one report: 202, or why it is not taken."""
        try:
            await self._take(request)
        except _Refusal as refusal:
            self._answered(refusal.status)
            return _refused(refusal)
        self._answered(HTTPStatus.ACCEPTED)
        return web.Response(status=HTTPStatus.ACCEPTED)

    async def _take(self, request: web.Request) -> None:
        if not self._leading():
            message = "this replica is not the active one"
            # A kept connection would lead to this same replica again and again.
            raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, retry_after=_NOT_LEADING_RETRY, hang_up=True)
        key = ProgressKey(**request.match_info)
        uid = await self._admit(key, _bearer_token(request))
        try:
            status = parse_report(await self._body(request), now=self._clock())
        except UnreadableReportError as error:
            raise _Refusal(HTTPStatus.BAD_REQUEST, str(error)) from None
        # The object may have gone while the token was reviewed and the report arrived: nobody would forget it again.
        self._require_known(key, uid)
        self._store.put(key, status, uid=uid)

    def _require_known(self, key: ProgressKey, uid: str) -> None:
        if not self._knows(key, uid):
            raise _Refusal(HTTPStatus.NOT_FOUND, "there is no such object that runs such a step")

    async def _admit(self, key: ProgressKey, token: str) -> str:
        """Return the uid of the object that a token may report for.

        What the token says of itself is enough to refuse; so the API server is asked only about tokens that name an
        object which exists, by its uid.
        """
        claims = read_claims(token)
        if claims is None:
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "the token was not made for this endpoint: its audience is another")
        if not key.belongs_to(claims.owner):
            raise _Refusal(HTTPStatus.FORBIDDEN, "the token was made for another object")
        self._require_known(key, claims.owner.uid)
        try:
            reporter = await self._verifier.verify(token, claims)
        except TokenRefusedError:
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "the token is not valid, or no longer") from None
        except ReporterNotAllowedError:
            raise _Refusal(
                HTTPStatus.FORBIDDEN, "the token is not one of a service account of this namespace"
            ) from None
        except ReviewUnavailableError:
            message = "the token cannot be verified at the moment"
            raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, retry_after=_NOT_REVIEWED_RETRY) from None
        _LOG.debug("report for %s by pod %s", key, reporter.pod)
        return claims.owner.uid

    async def _body(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._body_seconds):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a report has at most {REPORT_BYTES} bytes") from None
        except TimeoutError:
            raise _Refusal(HTTPStatus.REQUEST_TIMEOUT, "the report did not arrive in time", hang_up=True) from None
        except (web.RequestPayloadError, ConnectionError):
            raise _Refusal(HTTPStatus.BAD_REQUEST, "the report broke off", hang_up=True) from None


def _bearer_token(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip() or not token.isascii():
        raise _Refusal(HTTPStatus.UNAUTHORIZED, "a bearer token is needed: that of the pod's progress volume")
    return token.strip()


def _refused(refusal: _Refusal) -> web.Response:
    response = web.json_response({"message": str(refusal)}, status=refusal.status)
    if refusal.status is HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    if refusal.hang_up:
        response.force_close()
    return response


class _BrokenRequests(logging.Filter):
    """Keeps requests that break HTTP out of the log: what is logged quotes them, with the token if it comes to that."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


def _http_log() -> logging.Logger:
    log = logging.Logger(f"{__name__}.http")  # noqa: LOG001  (its filter must not stay behind in a shared one)
    log.parent = _LOG
    log.addFilter(_BrokenRequests())
    return log


class ProgressServer:
    """Listens with TLS, and follows its certificate's files."""

    def __init__(self, endpoint: ProgressEndpoint, *, certificate: Path, key: Path) -> None:
        """Raises OSError where certificate and key cannot be served."""
        self._tls = ReloadingContext(certificate, key)
        application = endpoint.application()
        application.middlewares.append(self._close_beyond_limit)
        self._runner = web.AppRunner(
            application,
            logger=_http_log(),
            access_log=None,
            # Also ends connections on which no request ever comes.
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=_LINGERING_SECONDS,
            shutdown_timeout=_CLOSING_SECONDS,
            # A report is read as it came: a small compressed one could unfold without bounds.
            auto_decompress=False,
        )
        self._listener: asyncio.Server | None = None
        self._reloading: asyncio.Task[None] | None = None

    async def start(self, *, port: int, host: str | None = None) -> int:
        """Listen on all addresses unless ``host`` names one, and return the port: 0 asks for a free one.

        Raises OSError where the port is taken.
        """
        await self._runner.setup()
        self._listener = await asyncio.get_running_loop().create_server(
            cast("web.Server", self._runner.server),
            host,
            port,
            ssl=self._tls.context,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS,
            backlog=_BACKLOG,
        )
        self._reloading = asyncio.create_task(self._follow_files(), name="progress-certificate")
        return int(self._listener.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and end what is open."""
        if self._reloading is not None:
            self._reloading.cancel()
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    def refresh_certificate(self) -> bool:
        """Serve what the certificate's files hold now; return whether that is new."""
        return self._tls.refresh()

    @web.middleware
    async def _close_beyond_limit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        server = self._runner.server
        # While it is being closed there is none, and requests that have begun are still answered.
        if server is None or len(server.connections) > _KEPT_CONNECTIONS:
            response.force_close()
        return response

    async def _follow_files(self) -> None:
        while True:
            await asyncio.sleep(_RELOAD_SECONDS)
            self.refresh_certificate()
