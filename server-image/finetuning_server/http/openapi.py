"""What /openapi.json says beyond the types of the routes."""

from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from finetuning_server.http.answers import ChatChunk, Completion, Health
from finetuning_server.http.auth import OPEN_PATHS
from finetuning_server.http.errors import ErrorAnswer

TITLE = "finetuning-server"
VERSION = version("finetuning-operator")

Responses = dict[int | str, dict[str, Any]]

_REFERENCE = "#/components/schemas/{model}"
_EXPLAINED = {
    HTTPStatus.BAD_REQUEST: "The request is wrong; the message names the field.",
    HTTPStatus.UNAUTHORIZED: "No accepted token was sent.",
    HTTPStatus.NOT_FOUND: "The model is not served here.",
    HTTPStatus.REQUEST_TIMEOUT: "The body did not arrive in time.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is not JSON by its Content-Type.",
    HTTPStatus.TOO_MANY_REQUESTS: "As many requests wait as are allowed to; Retry-After tells when to come again.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The server failed; the message has the id under which its log tells more.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The model is being loaded, the server is being stopped, or memory ran out.",
    HTTPStatus.GATEWAY_TIMEOUT: "The request was not done within the server's limit.",
}
_EVERYWHERE = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_OF_GENERATION = (
    HTTPStatus.NOT_FOUND,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.GATEWAY_TIMEOUT,
)


def errors(*more: HTTPStatus) -> Responses:
    """Return the documentation of the refusals that a route has in common with all, and of its own."""
    told: Responses = {
        int(status): {"model": ErrorAnswer, "description": _EXPLAINED[status]} for status in (*_EVERYWHERE, *more)
    }
    return told | {"4XX": {"model": ErrorAnswer, "description": "The request is refused."}}


def generation(chunk: type[Completion] | type[ChatChunk] | None = None) -> Responses:
    """Return the documentation of the answers of a route that generates, with the chunks of its stream."""
    if chunk is None:
        return errors(*_OF_GENERATION)
    text = "The answer; with `stream` as events `data: <chunk>`, the last of which is `data: [DONE]`."
    told = {"contentMediaType": "application/json", "contentSchema": {"$ref": _REFERENCE.format(model=chunk.__name__)}}
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, told]}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    content = {"text/event-stream": {"schema": event}}
    return errors(*_OF_GENERATION) | {200: {"description": text, "content": content}}


def chat_generation() -> Responses:
    """Return the documentation of the answers to a chat."""
    return generation(ChatChunk)


def liveness() -> Responses:
    """Return the documentation of a server that has to be started anew."""
    return {503: {"model": Health, "description": "The engine failed for good."}}


def readiness() -> Responses:
    """Return the documentation of a server that is not ready."""
    text = "The model is being loaded, the server is being stopped, or its engine failed."
    return {503: {"model": Health, "description": text}}


def metrics() -> Responses:
    """Return the documentation of the metrics."""
    text = "The text format of Prometheus."
    return {200: {"description": text, "content": {"text/plain": {"schema": {"type": "string"}}}}}


def install(app: FastAPI, *, with_tokens: bool) -> None:
    """Let the application describe itself, with the tokens that it asks for."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            # FastAPI knows the types of whole answers only.
            chunks = ChatChunk.model_json_schema(ref_template=_REFERENCE)
            schema["components"]["schemas"] |= chunks.pop("$defs") | {ChatChunk.__name__: chunks}
            app.openapi_schema = _with_tokens(schema) if with_tokens else schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _with_tokens(schema: dict[str, Any]) -> dict[str, Any]:
    schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        if path not in OPEN_PATHS:
            for operation in operations.values():
                operation["security"] = [{"token": []}]
    return schema
