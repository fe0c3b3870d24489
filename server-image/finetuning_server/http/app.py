"""The routes, and what stands before them."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import TextIO

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from finetuning_api.runconfig import ServeConfig
from finetuning_server.engine.base import Engine, Sampling
from finetuning_server.engine.errors import EngineError
from finetuning_server.http import openapi
from finetuning_server.http.access import AccessLog, Observing, RequestRecord, record_of
from finetuning_server.http.answers import (
    ChatCompletion,
    Completion,
    Health,
    ModelList,
    ModelObject,
    PromptAnswer,
)
from finetuning_server.http.auth import Authenticating, TokenFolder
from finetuning_server.http.errors import (
    ApiError,
    answer_api_error,
    answer_http_error,
    answer_validation_error,
    internal_error,
    not_ready,
)
from finetuning_server.http.generating import Ask, Generator
from finetuning_server.http.limits import Bounded, Limits
from finetuning_server.http.metrics import CONTENT_TYPE, Meters
from finetuning_server.http.names import ListedName, Names
from finetuning_server.http.prompts import PromptEncoder, Tokens
from finetuning_server.http.schemas import (
    MAX_CHOICES,
    ChatRequest,
    CompletionRequest,
    PromptRequest,
    SamplingFields,
    as_tuple,
)
from finetuning_server.http.streaming import EventStream, events
from finetuning_server.http.writing import ChatWriter, CompletionWriter, gathered, usage_of

_LOG = logging.getLogger(__name__)


class Phase(StrEnum):
    """Where a server stands in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True)
class Life:
    """Phase of a server: set by the process, read by the routes."""

    phase: Phase = Phase.LOADING
    began: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""


class Service:
    """What the routes do."""

    def __init__(self, engine: Engine, *, config: ServeConfig, life: Life, meters: Meters) -> None:
        self._engine = engine
        self._life = life
        self._log_prompts = config.log_prompts
        self._names = Names(engine, config.canary)
        self._encoder = PromptEncoder(lambda: engine.tokenizer)
        self._generator = Generator(engine, meters=meters, request_seconds=config.request_seconds)

    def models(self) -> list[ModelObject]:
        """Return what is served."""
        self._require_loaded()
        return [self._described(each) for each in self._names.listed()]

    def model(self, name: str) -> ModelObject:
        """Return what is served under a name. Raises UnknownModel."""
        self._require_loaded()
        return self._described(self._names.find(name))

    async def complete(self, body: CompletionRequest, record: RequestRecord) -> Response:
        """Answer a request for completions."""
        model = self._admit(body.model, record, prompt=body.prompt, key=_draw_key(body, record))
        prompts = await self._completion_prompts(body)
        ask = _ask(body, prompts, model=model, most=body.max_tokens or 16, top_logprobs=body.logprobs)
        writer = CompletionWriter(id=record.id, model=model, with_logprobs=body.logprobs is not None)
        return await self._answer(ask, body, writer=writer, record=record)

    async def chat(self, body: ChatRequest, record: RequestRecord) -> Response:
        """Answer a chat."""
        turns = [message.model_dump(exclude_unset=True) for message in body.messages]
        model = self._admit(body.model, record, prompt=turns, key=_draw_key(body, record))
        prompt = await self._encoder.chat(body.messages)
        top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
        most = body.max_completion_tokens or body.max_tokens
        ask = _ask(body, [prompt.tokens], model=model, most=most, top_logprobs=top_logprobs)
        ask = replace(ask, closing_tokens=prompt.closing)
        writer = ChatWriter(id=record.id, model=model, with_logprobs=bool(body.logprobs))
        return await self._answer(ask, body, writer=writer, record=record)

    async def prompt(self, body: PromptRequest, record: RequestRecord) -> PromptAnswer:
        """Continue one prompt greedily."""
        self._require_loaded()
        asked = body.model or self._default_model()
        model = self._admit(asked, record, prompt=body.input_prompt, key=record.id)
        prompts = await self._encoder.texts([body.input_prompt])
        ask = Ask(model=model, prompts=tuple(prompts), max_new_tokens=body.max_tokens, sampling=Sampling())
        (whole,) = await gathered(self._generator.run(ask, record), count=1)
        return PromptAnswer(response=whole.text)

    async def _completion_prompts(self, body: CompletionRequest) -> list[Tokens]:
        """Return the prompts of any of the four shapes as tokens."""
        prompt = body.prompt
        if isinstance(prompt, str):
            return await self._encoder.texts([prompt])
        texts = [one for one in prompt if isinstance(one, str)]
        if texts:
            return await self._encoder.texts(texts)
        ids = [one for one in prompt if isinstance(one, int)]
        return [tuple(ids)] if ids else [tuple(one) for one in prompt if isinstance(one, list)]

    async def _answer(
        self, ask: Ask, body: SamplingFields, *, writer: CompletionWriter | ChatWriter, record: RequestRecord
    ) -> Response:
        pieces = self._generator.run(ask, record)
        if body.stream:
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            return await EventStream.of(events(pieces, writer=writer, record=record, with_usage=with_usage))
        wholes = await gathered(pieces, count=len(ask.prompts) * ask.copies)
        return _json(writer.whole(wholes, usage_of(record)))

    def _admit(self, asked: str, record: RequestRecord, *, prompt: object, key: str) -> str:
        """Return the model that answers, by a key where the name stands for two. Raises UnknownModel."""
        self._require_loaded()
        model = record.model = self._names.answering(asked, key=key)
        record.asked = None if model == asked else asked
        if self._log_prompts:
            record.prompt = prompt
        return model

    def _require_loaded(self) -> None:
        if self._life.phase is Phase.LOADING:
            raise not_ready("the model is being loaded; try again", code="loading")

    def _default_model(self) -> str:
        base, *adapters = self._engine.models()
        return adapters[0].name if adapters else base.name

    def _described(self, listed: ListedName) -> ModelObject:
        return ModelObject(id=listed.name, created=self._life.began, root=listed.root, split=listed.split)


def create_app(  # the parts of one server
    engine: Engine,
    config: ServeConfig,
    *,
    life: Life,
    log: TextIO,
    limits: Limits | None = None,
) -> ASGIApp:
    """Return the application: the routes behind the access log, the tokens and the limits."""
    meters = Meters(engine.load)
    service = Service(engine, config=config, life=life, meters=meters)
    # No pages that show the document: they would load from elsewhere.
    routes = FastAPI(
        title=openapi.TITLE,
        version=openapi.VERSION,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    routes.include_router(_api(service))
    routes.include_router(_operations(engine, life=life, meters=meters))
    for kind in (ApiError, EngineError):
        routes.add_exception_handler(kind, answer_api_error)
    routes.add_exception_handler(HTTPException, answer_http_error)
    routes.add_exception_handler(Exception, _answer_fault)
    routes.add_exception_handler(RequestValidationError, answer_validation_error)
    openapi.install(routes, with_tokens=config.tokens_path is not None)
    bounds = limits or Limits(body_bytes=config.max_body_bytes, request_seconds=config.request_seconds)
    app: ASGIApp = Bounded(routes, limits=bounds)
    if config.tokens_path is not None:
        app = Authenticating(app, tokens=TokenFolder(Path(config.tokens_path)))
    return Observing(app, meters=meters, log=AccessLog(log), is_closing=lambda: life.phase is Phase.DRAINING)


def _api(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", responses=openapi.errors(), tags=["models"])
    async def list_models() -> ModelList:
        """List the base model and the adapters."""
        return ModelList(data=service.models())

    @router.get("/v1/models/{model:path}", responses=openapi.errors(HTTPStatus.NOT_FOUND), tags=["models"])
    async def get_model(model: str) -> ModelObject:
        """Tell of one model."""
        return service.model(model)

    @router.post(
        "/v1/completions", response_model=Completion, responses=openapi.generation(Completion), tags=["generation"]
    )
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        return await service.complete(body, record_of(request.scope))

    @router.post(
        "/v1/chat/completions", response_model=ChatCompletion, responses=openapi.chat_generation(), tags=["generation"]
    )
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answer a chat."""
        return await service.chat(body, record_of(request.scope))

    @router.post("/prompt", responses=openapi.generation(), tags=["generation"])
    async def prompt(body: PromptRequest, request: Request) -> PromptAnswer:
        """Continue one prompt, greedily."""
        return await service.prompt(body, record_of(request.scope))

    @router.post("/v1/embeddings", status_code=HTTPStatus.BAD_REQUEST, responses=openapi.errors(), tags=["generation"])
    async def create_embedding() -> Response:
        """Refused: the models here generate text."""
        message = "embeddings are not served: the models here generate text"
        # Not 501: clients try again after any 5xx.
        raise ApiError(HTTPStatus.BAD_REQUEST, message, code="unsupported")

    return router


def _operations(engine: Engine, *, life: Life, meters: Meters) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz", responses=openapi.liveness(), response_model_exclude_none=True)
    async def healthz(response: Response) -> Health:
        """Tell whether the server can go on: 503 asks whoever keeps it to start it anew."""
        if fault := engine.fault():
            _LOG.error("unhealthy: %s", fault)
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
            return Health(status="failed", reason=fault)
        return Health(status="ok")

    @router.get("/readyz", responses=openapi.readiness(), response_model_exclude_none=True)
    async def readyz(response: Response) -> Health:
        """Tell whether requests should be sent here: the model is loaded and works, and no end was asked for."""
        if fault := engine.fault():
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
            return Health(status="failed", reason=fault)
        if life.phase is not Phase.READY:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
            return Health(status="loading" if life.phase is Phase.LOADING else "draining")
        return Health(status="ok")

    @router.get("/metrics", response_class=Response, responses=openapi.metrics())
    async def metrics() -> Response:
        """Tell Prometheus."""
        return Response(meters.exposition(), headers={"content-type": CONTENT_TYPE})

    return router


async def _answer_fault(request: Request, _error: Exception) -> Response:
    return internal_error(record_of(request.scope).id).response()


def _draw_key(body: SamplingFields, record: RequestRecord) -> str:
    """Return by what a request is told from others where a name stands for two models.

    Equal users get equal models, and equal requests with equal seeds equal answers; all others are drawn one by one.
    """
    if body.user:
        return f"user {body.user}"
    return f"request {record.id}" if body.seed is None else body.model_dump_json()


def _ask(
    body: SamplingFields, prompts: Sequence[Tokens], *, model: str, most: int | None, top_logprobs: int | None
) -> Ask:
    copies = body.n or 1
    if len(prompts) * copies > MAX_CHOICES:
        message = f"n: {len(prompts)} prompts times n = {copies} are more than {MAX_CHOICES} completions in one request"
        raise ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_value", param="n")
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
    )
    return Ask(
        model=model,
        prompts=tuple(prompts),
        max_new_tokens=most,
        copies=copies,
        stop=as_tuple(body.stop),
        sampling=sampling,
        top_logprobs=top_logprobs,
    )


def _json(content: BaseModel) -> Response:
    return Response(content.model_dump_json(), media_type="application/json")
