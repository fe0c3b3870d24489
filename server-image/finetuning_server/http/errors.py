"""Refusals: one shape for all of them, which is OpenAI's, and the status codes that its clients tell apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from finetuning_server.engine.errors import (
    EngineError,
    EngineStopped,
    OutOfMemory,
    PromptTooLong,
    QueueFull,
    UnknownModel,
    UnknownToken,
)
from finetuning_workload.errors import UserError

_INVALID, _SERVER = "invalid_request_error", "server_error"
_STOPPED_RETRY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class _Told:
    """How an error of the engine is told."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    code: str = "internal"
    param: str | None = None
    kind: str = _SERVER


_OF_ENGINE: dict[type[EngineError], _Told] = {
    UnknownModel: _Told(HTTPStatus.NOT_FOUND, "model_not_found", "model", _INVALID),
    PromptTooLong: _Told(HTTPStatus.BAD_REQUEST, "context_length_exceeded", "prompt", _INVALID),
    UnknownToken: _Told(HTTPStatus.BAD_REQUEST, "invalid_value", "prompt", _INVALID),
    QueueFull: _Told(HTTPStatus.TOO_MANY_REQUESTS, "queue_full", None, "rate_limit_error"),
    OutOfMemory: _Told(HTTPStatus.SERVICE_UNAVAILABLE, "out_of_memory"),
}
_BRANCHES = frozenset({"str", "int", "float", "bool", "none"})
"""What pydantic adds to the place of a mistake for a branch of a union; lists are written list[...]."""


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str = Field(description="What happened and, where something can be done about it, what to do.")
    type: str = Field(description="Group of the error, as OpenAI names them.")
    param: str | None = Field(description="Field of the request that is wrong; null where it is not one field.")
    code: str | None = Field(description="Machine-readable cause.")


class ErrorAnswer(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorObject


class ApiError(Exception):
    """A request that is answered with an error object."""

    def __init__(  # the four parts of OpenAI's object, and how it is sent
        self,
        status: HTTPStatus,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = _INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = ErrorObject(message=message, type=kind, param=param, code=code)
        self.headers = dict(headers or {})

    @property
    def answer(self) -> ErrorAnswer:
        """The body that tells it."""
        return ErrorAnswer(error=self.error)

    def response(self) -> Response:
        """Return the answer."""
        body = self.answer.model_dump_json()
        return Response(body, status_code=self.status, headers=self.headers, media_type="application/json")


def not_ready(message: str, *, code: str) -> ApiError:
    """Return the error of a server that cannot answer at the moment."""
    headers = {"Retry-After": str(_STOPPED_RETRY_SECONDS)}
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code=code, kind=_SERVER, headers=headers)


def took_too_long(seconds: int) -> ApiError:
    """Return the error of a request that used up its time."""
    message = f"the request was not done within {seconds} s, its time in the queue included; ask for fewer tokens"
    return ApiError(HTTPStatus.GATEWAY_TIMEOUT, message, code="timeout", kind=_SERVER)


def internal_error(request_id: str) -> ApiError:
    """Return the error of a fault of the server itself."""
    message = f"the server failed at this request; its log has the details under the id {request_id}"
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, message, code="internal", kind=_SERVER)


def from_engine(error: EngineError) -> ApiError:
    """Return how a request that the engine refused or gave up is answered."""
    if isinstance(error, EngineStopped):
        return not_ready(str(error), code="stopped")
    known = next((told for kind, told in _OF_ENGINE.items() if isinstance(error, kind)), _Told())
    retry = {"Retry-After": str(error.retry_after_seconds)} if isinstance(error, QueueFull) else None
    return ApiError(known.status, str(error), code=known.code, param=known.param, kind=known.kind, headers=retry)


def from_user_error(error: UserError, *, param: str) -> ApiError:
    """Return how a prompt that cannot be rendered is answered."""
    message = f"{error.message}. {error.hint}" if error.hint else error.message
    return ApiError(HTTPStatus.BAD_REQUEST, message, code="unsupported", param=param)


def answer_http_error(_request: Request, error: Exception) -> Response:
    """Answer what the router refuses: unknown paths and methods."""
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    code = {HTTPStatus.NOT_FOUND: "not_found", HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed"}.get(status)
    message = str(error.detail)
    if status is HTTPStatus.NOT_FOUND:
        message = "there is nothing under this path; /openapi.json tells what there is"
    if status is HTTPStatus.BAD_REQUEST:
        # FastAPI's only one: the parser gave up for another reason than a wrong character.
        code, message = (
            "invalid_json",
            "the body cannot be read as JSON: not UTF-8, nested too deeply, or a huge number",
        )
    return ApiError(status, message, code=code, headers=error.headers).response()


def answer_validation_error(request: Request, error: Exception) -> Response:
    """Answer a body that is not what the route takes."""
    if not isinstance(error, RequestValidationError):
        raise error
    if isinstance(error.body, bytes) and error.body:
        message = "send the request as JSON with the header Content-Type: application/json"
        kind = request.headers.get("content-type")
        told = message if kind is None else f"{message}, not as {kind}"
        return ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, told, code="unsupported_media_type").response()
    return _first_mistake(error.errors()).response()


def answer_api_error(_request: Request, error: Exception) -> Response:
    """Answer what a route refuses."""
    if isinstance(error, EngineError):
        return from_engine(error).response()
    if isinstance(error, ApiError):
        return error.response()
    raise error


def _first_mistake(mistakes: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the error for the first field that is wrong, with all that is wrong with it; never with its value."""
    first = mistakes[0]
    if first["type"] == "json_invalid":
        message = f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1] + 1}"
        return ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_json")
    param = _param(first["loc"])
    words = list(dict.fromkeys(str(mistake["msg"]) for mistake in mistakes if _param(mistake["loc"]) == param))
    told = "; or: ".join(word[:1].lower() + word[1:] for word in words)
    if not param:
        return ApiError(HTTPStatus.BAD_REQUEST, f"the body: {told}", code="invalid_value")
    if first["type"] == "extra_forbidden":
        message = f"{param}: there is no such parameter here; leave it out"
        return ApiError(HTTPStatus.BAD_REQUEST, message, code="unknown_parameter", param=param)
    return ApiError(HTTPStatus.BAD_REQUEST, f"{param}: {told}", code="invalid_value", param=param)


def _param(place: Sequence[str | int]) -> str:
    """Return the path of a field as a client writes it, without the names of a union's branches."""
    parts = [str(part) for part in place[1:]]
    return ".".join(part for part in parts if part not in _BRANCHES and "[" not in part)
