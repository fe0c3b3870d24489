"""What a cluster refuses and why, in sentences for a person: never a traceback, never a raw Status."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class ClusterError(Exception):
    """Something that the cluster, or the way to it, does not allow; ``hint`` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class NotConfiguredError(ClusterError):
    """No kubeconfig, an unreadable one, or a context that it does not hold."""


class UnreachableError(ClusterError):
    """Nobody answers at the address of the cluster."""


class UnavailableError(ClusterError):
    """The cluster answers that it cannot serve the request at the moment."""


class CredentialsRefusedError(ClusterError):
    """The cluster does not know the caller: credentials are wrong or expired."""


class ForbiddenError(ClusterError):
    """The cluster knows the caller and does not allow the request."""


class KindsMissingError(ClusterError):
    """The cluster does not know the kinds of this API."""


class NotFoundError(ClusterError):
    """There is no object of that name."""


class ConflictError(ClusterError):
    """The object exists already, or somebody else owns a field of it."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason why an object is refused: the field as in the manifest, and what is wrong with it."""

    field: str
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.field, self.message)))


class RefusedError(ClusterError):
    """The object breaks a rule of the API; ``causes`` holds every one that the server tells."""

    def __init__(self, message: str, hint: str = "", *, causes: tuple[Cause, ...] = ()) -> None:
        super().__init__(message, hint)
        self.causes = causes


class WaitTimeoutError(ClusterError):
    """What was waited for did not come in time."""


class WaitFailedError(ClusterError):
    """What was waited for can never come: the object ended otherwise, or is gone."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, as messages name it."""

    verb: str
    kind: str
    plural: str
    namespace: str
    server: str
    name: str = ""

    @property
    def what(self) -> str:
        """Return the object, or the kind where no object is named."""
        return f"{self.kind} {self.name}" if self.name else self.plural


_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT, _INVALID, _THROTTLED = 400, 401, 403, 404, 409, 422, 429
_SERVER_FAULT = 500
_ANONYMOUS = "system:anonymous"
_LONGEST = 1000
"""Characters of a foreign message that are shown."""


def explain(status: int, body: bytes, request: Request) -> ClusterError:
    """Return the error for an answer of the API server with a code of 400 or more."""
    told = _status_of(body)
    message = str(told.get("message") or body.decode("utf-8", errors="replace")).strip()[:_LONGEST]
    if status == _UNAUTHORIZED or (status == _FORBIDDEN and _ANONYMOUS in message):
        hint = "They may have expired: log in to the cluster again, then repeat the command."
        return CredentialsRefusedError(f"the cluster at {request.server} does not accept your credentials", hint)
    if status == _SERVER_FAULT and _UNDECLARED.search(message):
        # What server-side apply finds wrong with the form of an object comes as a fault of the server.
        return _refused({}, message, request)
    if status == _THROTTLED or status >= _SERVER_FAULT:
        hint = "It is overloaded, starting, or a part of it is down: try again in a moment."
        return UnavailableError(f"the cluster cannot {request.verb} {request.what} now ({status}): {message}", hint)
    explained = _EXPLANATIONS.get(status)
    if explained is None:
        return ClusterError(f"the cluster answers {status} to {request.verb} {request.what}: {message}")
    return explained(told, message, request)


def _status_of(body: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, Mapping) else {}


def _forbidden(_: Mapping[str, Any], message: str, request: Request) -> ClusterError:
    if "exceeded quota" in message or "being terminated" in message:
        return ForbiddenError(f"the cluster refuses {request.what}: {message}")
    message = f"you may not {request.verb} {request.plural} in the namespace {request.namespace}: {message}"
    hint = (
        f"Ask for a Role with the verb {request.verb!r} on {request.plural}, or name another namespace with -n."
        f" Check with: kubectl auth can-i {request.verb} {request.plural} -n {request.namespace}"
    )
    return ForbiddenError(message, hint)


def _not_found(told: Mapping[str, Any], _: str, request: Request) -> ClusterError:
    details = told.get("details") or {}
    if details.get("kind") == "namespaces":
        return NotFoundError(f"there is no namespace {request.namespace}", "Create it, or name another with -n.")
    if not details.get("name"):
        # An unknown path: the API server does not serve this kind. Everything else names what is missing.
        hint = "Install the operator with its custom resource definitions, or check the context."
        return KindsMissingError(f"the cluster at {request.server} does not know {request.plural}", hint)
    return NotFoundError(f"there is no {request.what} in the namespace {request.namespace}")


def _conflict(told: Mapping[str, Any], message: str, request: Request) -> ClusterError:
    if told.get("reason") == "AlreadyExists":
        return ConflictError(f"{request.what} exists already", "Apply it instead, or choose another name.")
    owned = ", ".join(f"{cause.field} ({cause.message})" for cause in _causes(told))
    if owned:
        hint = "Leave these fields out, or take them over with --force-conflicts."
        return ConflictError(f"somebody else set fields of {request.what} by other means: {owned}", hint)
    return ConflictError(f"{request.what} was changed by somebody else meanwhile: {message}", "Try again.")


def _refused(told: Mapping[str, Any], message: str, request: Request) -> ClusterError:
    causes = _causes(told) or _decoding_causes(message)
    lines = "\n".join(f"  {cause}" for cause in causes) or f"  {message}"
    return RefusedError(f"the cluster refuses {request.what}:\n{lines}", causes=causes)


_EXPLANATIONS: Mapping[int, Callable[[Mapping[str, Any], str, Request], ClusterError]] = {
    _BAD_REQUEST: _refused,
    _FORBIDDEN: _forbidden,
    _NOT_FOUND: _not_found,
    _CONFLICT: _conflict,
    _INVALID: _refused,
}

_VALUE = r'"(?:[^"\\]|\\.)*"|-?[0-9.eE+-]+|true|false|null'
_PREFIX = re.compile(rf"^(?:Invalid value|Forbidden|Unsupported value): (?:(?:{_VALUE}): )?")
_UNDECLARED = re.compile(r"(\S+): field not declared in schema")
_DECODING = re.compile(r'(unknown|duplicate) field "([^"]*)"')


def _causes(told: Mapping[str, Any]) -> tuple[Cause, ...]:
    found = (told.get("details") or {}).get("causes") or ()
    causes = (Cause(str(each.get("field", "")).lstrip("."), _own_words(each)) for each in found)
    # An API server tells some rules of a list twice.
    return tuple(dict.fromkeys(causes))


def _own_words(cause: Mapping[str, Any]) -> str:
    """Return the sentence of a rule without the server's prefix, which repeats field and value."""
    return _PREFIX.sub("", str(cause.get("message", "")))[:_LONGEST]


def _decoding_causes(message: str) -> tuple[Cause, ...]:
    words = {"unknown": "is not a field of this API", "duplicate": "is given twice"}
    undeclared = (Cause(field.lstrip("."), words["unknown"]) for field in _UNDECLARED.findall(message))
    return (*(Cause(field, words[kind]) for kind, field in _DECODING.findall(message)), *undeclared)
