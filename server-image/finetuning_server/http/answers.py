"""What clients get: the objects of OpenAI's API, whole and as chunks of a stream."""

from typing import Literal

from pydantic import BaseModel, Field

from finetuning_server.engine.base import FinishReason


class ModelObject(BaseModel):
    """A name that requests may use."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When this server began to serve, in seconds since 1970.")
    owned_by: str = "finetuning"
    root: str | None = Field(description="Name of the base model of an adapter; null for the base model itself.")
    split: dict[str, int] | None = Field(
        default=None,
        description="Percent of the requests that each model answers; null for a name of one model.",
    )


class ModelList(BaseModel):
    """Everything that is served, the base model first."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """Logarithms of probability, one of each per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int] = Field(description="Where each token begins in the completion, in characters.")


class CompletionChoice(BaseModel):
    """One completion, or what came of it since the last chunk."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(BaseModel):
    """Answer of POST /v1/completions, and the chunks of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    """A token that was likely at a place."""

    token: str
    logprob: float
    bytes: list[int] | None = Field(description="UTF-8 of the token; null for a part of a character.")


class TokenLogprob(TopLogprob):
    """A token that was generated."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Logarithms of probability of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds to an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """What came of one answer since the last chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(BaseModel):
    """Chunk of a chat's stream; the last one may have no choices and tell the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class PromptAnswer(BaseModel):
    """Answer of POST /prompt."""

    response: str


class Health(BaseModel):
    """Answer of the probes."""

    status: Literal["ok", "loading", "draining", "failed"]
    reason: str | None = Field(default=None, description="Why it failed.")
