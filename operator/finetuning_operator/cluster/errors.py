"""What an API server's refusals mean to the operator.

One class for each way of going on: look again, ask again later, tell the user, give up. The queue retries every
ApiError; callers catch only those that they can do something about.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

LONGEST_MESSAGE = 1024
"""In characters. An API server repeats whole pod templates in the messages of refused updates."""

_QUOTA_MARKS = ("exceeded quota: ", "failed quota: ", "status unknown for quota: ")


class ApiError(Exception):
    """The API server did not do what it was asked. ``status`` is 0 where no answer came."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        """Seconds after which the server wants to be asked again, where it said so."""
        self.details: Mapping[str, Any] = details or {}
        """Of the server's Status: name, kind, group and causes, where it gave them."""

    @property
    def causes(self) -> tuple[Mapping[str, Any], ...]:
        causes = self.details.get("causes")
        return tuple(cause for cause in causes if isinstance(cause, Mapping)) if isinstance(causes, list) else ()


class NotFound(ApiError):
    """The object, or the namespace it belongs to, does not exist."""


class NotServed(ApiError):
    """The server knows no such path: the kind is not installed. No object may be called gone because of it."""


class Conflict(ApiError):
    """The object changed since it was read, or is another one of the same name."""


class AlreadyExists(ApiError):
    """An object of this name exists."""


class Forbidden(ApiError):
    """Permissions, or an admission rule such as Pod Security or a limit range, say no."""


class QuotaExceeded(Forbidden):
    """A ResourceQuota of the namespace leaves no room, or asks for requests or limits that the pod does not name."""


class NamespaceTerminating(Forbidden):
    """The namespace is being deleted: nothing new can be made in it, and nothing needs to be."""


class Invalid(ApiError):
    """The server does not accept the object as it is written; asking again with the same one cannot help."""


class BadRequest(Invalid):
    """The request makes no sense at this time, for example the log of a container that has not started."""


class Throttled(ApiError):
    """The server is busy; it says when to come back."""


class Unavailable(ApiError):
    """No answer, half an answer or an internal error: whether the request took effect is not known."""


class Gone(ApiError):
    """The resource version or the continuation of a list is too old."""


class Unauthorized(ApiError):
    """The server does not know who is asking."""


class NotLeader(ApiError):
    """A write was not sent, because this process may no longer write."""


def error_of(status: int, body: str | bytes, headers: Mapping[str, str]) -> ApiError:
    """Return what an answer of ``status`` 400 or more means; ``headers`` are looked up by their usual spelling."""
    content = _status_object(body)
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    message = str(content.get("message") or text.strip() or _phrase(status))
    details = content.get("details")
    details = details if isinstance(details, Mapping) else {}
    reason = str(content.get("reason") or "")
    return _class_of(status, reason=reason, message=message, details=details, served=bool(content))(
        _clip(message),
        status=status,
        reason=reason,
        retry_after=_retry_after(headers, details),
        details=details,
    )


def _class_of(status: int, *, reason: str, message: str, details: Mapping[str, Any], served: bool) -> type[ApiError]:
    match status:
        case HTTPStatus.NOT_FOUND:
            # Unknown paths are answered in plain text, missing objects by a Status.
            return NotFound if served else NotServed
        case HTTPStatus.CONFLICT:
            return AlreadyExists if reason == "AlreadyExists" else Conflict
        case HTTPStatus.FORBIDDEN:
            return _refusal(message, details)
        case HTTPStatus.INTERNAL_SERVER_ERROR if message.startswith("failed to create typed patch object"):
            # A field that the schema lacks, in server-side apply: the manifest is wrong, not the server.
            return Invalid
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return Unavailable
    return _BY_STATUS.get(status, ApiError)


_BY_STATUS: Mapping[int, type[ApiError]] = {
    HTTPStatus.BAD_REQUEST: BadRequest,
    HTTPStatus.UNAUTHORIZED: Unauthorized,
    HTTPStatus.REQUEST_TIMEOUT: Unavailable,
    HTTPStatus.GONE: Gone,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Invalid,
    HTTPStatus.UNPROCESSABLE_ENTITY: Invalid,
    HTTPStatus.TOO_MANY_REQUESTS: Throttled,
}


def _refusal(message: str, details: Mapping[str, Any]) -> type[ApiError]:
    causes = ApiError("", details=details).causes
    if any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
        return NamespaceTerminating
    # Quota admission gives no cause, only its words.
    return QuotaExceeded if any(mark in message for mark in _QUOTA_MARKS) else Forbidden


def _status_object(body: str | bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) and content.get("kind") == "Status" else {}


def _retry_after(headers: Mapping[str, str], details: Mapping[str, Any]) -> float | None:
    value = headers.get("Retry-After") or details.get("retryAfterSeconds")
    try:
        seconds = float(value) if value is not None else None
    except (TypeError, ValueError):
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"HTTP status {status}"


def _clip(message: str) -> str:
    return message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 1] + "…"
