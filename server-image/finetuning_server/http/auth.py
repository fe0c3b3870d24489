"""Tokens of clients: a folder with one file per holder, read again when it changes.

Of a token only its digest is kept: what is not there cannot be logged.
"""

import hashlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from finetuning_server.http.access import record_of
from finetuning_server.http.errors import ApiError

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked by the cluster itself, which has no token."""

_LOG = logging.getLogger(__name__)
_MAX_FILE_BYTES = 8192
_SCHEME = "bearer"
_EXPIRES = "expires:"


class MalformedToken(Exception):
    """A token's file cannot be used; the message never holds its content."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody with a token."""

    name: str
    digest: bytes
    expires: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Return whether the token has not expired."""
        return self.expires is None or now < self.expires


class TokenFolder:
    """The accepted tokens of a folder. Whatever is wrong with one file, the tokens of the others count."""

    def __init__(self, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._now = now
        self._seen: object = None
        self._holders: tuple[Holder, ...] = ()

    def holder_of(self, token: str) -> str | None:
        """Return the name of a token's holder, None for a token that is not accepted.

        The time that it takes does not depend on how much of a token is right, nor on whose it is.
        """
        now = self._now()
        asked = _digest(token)
        found = None
        for holder in self._current():
            is_match = hmac.compare_digest(holder.digest, asked)
            if is_match and holder.is_valid(now):
                found = holder.name
        return found

    def _current(self) -> tuple[Holder, ...]:
        """Return the holders, read again when a file or the folder behind the kubelet's link is another one."""
        try:
            files = [path for path in sorted(self._path.iterdir()) if not path.name.startswith(".")]
            state: object = [(path.name, *_identity(path)) for path in files]
        except OSError as error:
            files, state = [], error.errno
        if state != self._seen:
            self._seen = state
            self._holders = tuple(holder for path in files if (holder := _read(path)) is not None)
            if not self._holders:
                _LOG.error("no usable token in %s: every request is refused", self._path)
        return self._holders


class Authenticating:
    """Lets requests with an accepted token pass; the others are refused before their body is read."""

    def __init__(self, app: ASGIApp, *, tokens: TokenFolder) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            token = _bearer(Headers(scope=scope).get("authorization", ""))
            holder = None if token is None else self._tokens.holder_of(token)
            if holder is None:
                await _refusal(given=token is not None).response()(scope, receive, send)
                return
            record_of(scope).holder = holder
        await self._app(scope, receive, send)


def _refusal(*, given: bool) -> ApiError:
    message = "the token is not accepted" if given else "send a token: Authorization: Bearer <token>"
    challenge = 'Bearer realm="finetuning"' + (', error="invalid_token"' if given else "")
    headers = {"WWW-Authenticate": challenge}
    return ApiError(HTTPStatus.UNAUTHORIZED, message, code="invalid_api_key", headers=headers)


def _bearer(header: str) -> str | None:
    scheme, _, token = header.partition(" ")
    return token.strip() or None if scheme.lower() == _SCHEME else None


def _identity(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_ino, state.st_mtime_ns, state.st_size


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _read(path: Path) -> Holder | None:
    try:
        return _parse(path.name, path)
    except (OSError, MalformedToken) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        _LOG.error("the token in %s is not accepted: %s", path, reason)
        return None


def _parse(name: str, path: Path) -> Holder:
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        message = f"the file has more than {_MAX_FILE_BYTES} bytes"
        raise MalformedToken(message)
    try:
        lines = [line.strip() for line in content.decode("ascii").strip().splitlines()]
    except UnicodeDecodeError:
        message = "a token has visible ASCII characters only"
        raise MalformedToken(message) from None
    if not lines or not all("!" <= character <= "~" for character in lines[0]):
        message = "line 1 must be the token, of visible ASCII characters"
        raise MalformedToken(message)
    return Holder(name=name, digest=_digest(lines[0]), expires=_expiry(lines[1:]))


def _expiry(lines: list[str]) -> datetime | None:
    if not lines:
        return None
    message = f"what follows the token must be one line `{_EXPIRES} <time>` with an RFC 3339 time and its offset"
    if len(lines) > 1 or not lines[0].lower().startswith(_EXPIRES):
        raise MalformedToken(message)
    try:
        expires = datetime.fromisoformat(lines[0][len(_EXPIRES) :].strip())
    except ValueError:
        raise MalformedToken(message) from None
    if expires.tzinfo is None:
        raise MalformedToken(message)
    return expires
