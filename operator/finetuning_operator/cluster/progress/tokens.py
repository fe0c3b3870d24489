"""Who reports: a pod's projected token, verified by the API server and remembered for a while."""

import asyncio
import hashlib
import logging
import time
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from finetuning_operator.cluster.errors import ApiError
from finetuning_operator.cluster.progress.address import Owner
from finetuning_operator.cluster.progress.limits import RateLimit

_LOG = logging.getLogger(__name__)
_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_POD_NAME = "authentication.kubernetes.io/pod-name"
_REVIEW_SECONDS = 3.0
"""Less than the 5 s for which reporters wait."""
_ACCEPTED_SECONDS = 300.0
_REFUSED_SECONDS = 10.0
_RENEWED_SECONDS = 240.0
"""Age at which an acceptance is renewed by the next report, which does not wait for it."""
_PAUSE_SECONDS = 1.0
_MAX_IN_FLIGHT = 100
_REVIEWS_PER_SECOND, _REVIEWS_AT_ONCE = 20.0, 100.0

Value = TypeVar("Value")


class TokenRefusedError(Exception):
    """The API server does not vouch for this token."""


class ReporterNotAllowedError(Exception):
    """The token is genuine, but its bearer may not report for this object."""


class ReviewUnavailableError(Exception):
    """The token could be neither accepted nor refused now."""


class ReviewApi(Protocol):
    """What is needed of the API client."""

    async def create_raw(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post an object and return the answer. Raises ApiError."""
        ...


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says of itself. Worth nothing until it is verified, but enough to refuse without asking anybody."""

    owner: Owner
    expires_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports, as the API server knows it."""

    service_account: str
    pod: str | None = None


class _Payload(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    aud: list[str] | str
    exp: float


def read_claims(token: str) -> Claims | None:
    """Return what a token claims, None where it was not made for this endpoint."""
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004  (header, payload, signature)
        return None
    try:
        payload = _Payload.model_validate_json(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, ValidationError):
        return None
    audiences = [payload.aud] if isinstance(payload.aud, str) else payload.aud
    owners = [owner for owner in map(Owner.of_audience, audiences) if owner is not None]
    return Claims(owners[0], payload.exp) if len(owners) == 1 else None


@dataclass(frozen=True, slots=True)
class _Accepted:
    reporter: Reporter
    renew_at: float
    until: float


@dataclass(slots=True)
class TokenVerifier:
    """Asks the API server once for each token and remembers the answer under the token's digest.

    An accepted token is believed for five minutes at most, a refused one is asked for again after ten seconds. Requests
    that come with the same new token share one review. What cannot be reviewed is not accepted. To be used from one
    event loop.
    """

    api: ReviewApi
    capacity: int = 10_000
    clock: Callable[[], float] = time.time
    limit: RateLimit = field(default_factory=lambda: RateLimit(_REVIEWS_PER_SECOND, _REVIEWS_AT_ONCE))
    _accepted: OrderedDict[bytes, _Accepted] = field(init=False, default_factory=OrderedDict)
    _refused: OrderedDict[bytes, tuple[float, type[Exception]]] = field(init=False, default_factory=OrderedDict)
    _in_flight: dict[bytes, asyncio.Task[Reporter]] = field(init=False, default_factory=dict)
    _paused_until: float = field(init=False, default=0.0)

    async def verify(self, token: str, claims: Claims) -> Reporter:
        """Return who reports. ``claims`` are those of the token.

        Raises TokenRefusedError, ReporterNotAllowedError or ReviewUnavailableError.
        """
        # Only digests are kept and compared: neither memory nor timing tells anything about a token.
        digest, now = hashlib.sha256(token.encode()).digest(), self.clock()
        if claims.expires_at <= now:
            raise TokenRefusedError
        known = self._accepted.get(digest)
        if known is not None and now < known.until:
            if now >= known.renew_at:
                self._renew(digest, token=token, claims=claims)
            return known.reporter
        until, refusal = self._refused.get(digest, (0.0, None))
        if refusal is not None and now < until:
            raise refusal
        return await asyncio.shield(self._review(digest, token=token, claims=claims))

    def _renew(self, digest: bytes, *, token: str, claims: Claims) -> None:
        try:
            self._review(digest, token=token, claims=claims)
        except ReviewUnavailableError:
            _LOG.debug("a token could not be reviewed again yet")

    def _review(self, digest: bytes, *, token: str, claims: Claims) -> asyncio.Task[Reporter]:
        """Return the review of a token that is under way, or a new one. Raises ReviewUnavailableError."""
        task = self._in_flight.get(digest)
        if task is None:
            if self.clock() < self._paused_until or len(self._in_flight) >= _MAX_IN_FLIGHT or not self.limit.allows():
                raise ReviewUnavailableError
            task = asyncio.create_task(self._ask(digest, token=token, claims=claims))
            self._in_flight[digest] = task
            task.add_done_callback(lambda done: self._landed(digest, done))
        return task

    def _landed(self, digest: bytes, task: asyncio.Task[Reporter]) -> None:
        del self._in_flight[digest]
        if not task.cancelled():
            task.exception()  # Seen here, for a renewal that nobody waits for.

    async def _ask(self, digest: bytes, *, token: str, claims: Claims) -> Reporter:
        try:
            async with asyncio.timeout(_REVIEW_SECONDS):
                answer = await self.api.create_raw(_REVIEWS, _review_of(token, claims.owner.audience))
        except (ApiError, TimeoutError) as error:
            self._paused_until = self.clock() + _PAUSE_SECONDS
            # Not the error's own words: an API server may quote what it was sent.
            _LOG.warning("tokens of reporting pods cannot be reviewed: %s", type(error).__name__)
            raise ReviewUnavailableError from None
        try:
            reporter = _judge(answer.get("status") or {}, claims.owner)
        except (TokenRefusedError, ReporterNotAllowedError) as refusal:
            self._accepted.pop(digest, None)
            _remember(self._refused, digest, (self.clock() + _REFUSED_SECONDS, type(refusal)), capacity=self.capacity)
            raise
        now = self.clock()
        accepted = _Accepted(reporter, renew_at=now + _RENEWED_SECONDS, until=now + _ACCEPTED_SECONDS)
        _remember(self._accepted, digest, accepted, capacity=self.capacity)
        return reporter


def _review_of(token: str, audience: str) -> dict[str, Any]:
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    }


def _judge(status: Mapping[str, Any], owner: Owner) -> Reporter:
    # A server that knows nothing of audiences leaves them out: then the token was checked for another one than ours.
    if status.get("authenticated") is not True or owner.audience not in (status.get("audiences") or ()):
        raise TokenRefusedError
    user = status.get("user") or {}
    prefix = f"system:serviceaccount:{owner.namespace}:"
    name = str(user.get("username", ""))
    if not name.startswith(prefix) or name == prefix:
        raise ReporterNotAllowedError
    pods = (user.get("extra") or {}).get(_POD_NAME)
    return Reporter(name.removeprefix(prefix), str(pods[0]) if pods else None)


def _remember(cache: OrderedDict[bytes, Value], digest: bytes, value: Value, *, capacity: int) -> None:
    cache[digest] = value
    cache.move_to_end(digest)
    while len(cache) > capacity:
        cache.popitem(last=False)
