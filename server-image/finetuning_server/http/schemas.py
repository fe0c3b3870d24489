"""What clients send: the part of OpenAI's API that is answered, and POST /prompt.

Fields that OpenAI knows and this server does not act on are taken with the value that changes nothing and refused with
any other: a setting is never ignored in silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

MAX_CHOICES = 32
"""Completions that one request may ask for: its prompts times n."""
MAX_COMPLETION_LOGPROBS = 5
MAX_CHAT_LOGPROBS = 20


# eq=False: typing keeps one Annotated for equal marks, and 0 is equal to False.
@dataclass(frozen=True, slots=True, eq=False)
class Only:
    """Marks a field that takes the values without effect and refuses others, because they are not supported."""

    values: tuple[Any, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": list(self.values), "description": "Not supported: only values without effect are taken."}

    def _check(self, value: object) -> object:
        # 0 and false are equal in Python, not in JSON.
        if any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.values):
            return value
        raise PydanticCustomError("unsupported_parameter", "is not supported by this server; leave it out")


class Body(BaseModel):
    """Base of the requests: JSON types as they are, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """How a stream is told."""

    include_usage: bool | None = Field(default=None, description="Send the token counts before the stream ends.")
    include_obfuscation: bool | None = Field(default=None, description="Accepted; streams are never padded.")


def _whole_characters(text: str) -> str:
    """Refuse what JSON can write and UTF-8 cannot: half of a surrogate pair."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError("string_unicode", "has half of a surrogate pair, which is no character")
    return text


def _whole_number(value: object) -> object:
    """Take 16.0 for 16: in JSON they are one number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_whole_number)
_CHARACTERS = AfterValidator(_whole_characters)
Text = Annotated[str, _CHARACTERS]
Prompt = Annotated[str, Field(min_length=1), _CHARACTERS]
Stop = Annotated[str, Field(min_length=1, max_length=256), _CHARACTERS]
Model = Annotated[str, Field(min_length=1, max_length=256, description="Name from /v1/models.")]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1), _WHOLE]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class SamplingFields(Body):
    """What completions and chats have in common."""

    model: Model
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), _WHOLE] | None = Field(
        default=1, description="Completions of each prompt; the first uses the seed, the next seed + 1, and so on."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = Field(
        default=None, description="Texts that end a completion; they are not part of it."
    )
    seed: Annotated[int, _WHOLE] | None = Field(
        default=None, description="Equal requests with equal seeds get equal answers."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=1.0, description="0 takes the likeliest token, always."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=1.0, description="Draw only from the likeliest tokens whose probabilities sum up to this."
    )
    stream: bool | None = Field(default=False, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None
    user: str | None = Field(
        default=None, description="Equal users get the same model of a name that stands for two; else not used."
    )
    metadata: dict[str, str] | None = Field(default=None, description="Accepted and not used.")
    store: Annotated[Any, Only((None, False))] = None
    frequency_penalty: Annotated[Any, Only((None, 0))] = None
    presence_penalty: Annotated[Any, Only((None, 0))] = None
    logit_bias: Annotated[Any, Only((None, {}))] = None


class CompletionRequest(SamplingFields):
    """Body of POST /v1/completions."""

    prompt: (
        Prompt
        | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_CHOICES)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES)]
    ) = Field(description="A text, texts, token ids, or several lists of token ids.")
    max_tokens: Annotated[int, Field(ge=1), _WHOLE] | None = Field(
        default=16, description="Tokens to generate at most; never more than the context has room for."
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS), _WHOLE] | None = Field(
        default=None, description="Tell each token's logarithm of probability, and so many alternatives."
    )
    echo: Annotated[Any, Only((None, False))] = False
    suffix: Annotated[Any, Only((None, ""))] = None
    best_of: Annotated[Any, Only((None, 1))] = None


class TextPart(BaseModel):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One turn of a chat. Fields that answers carry may be sent back; those with an effect must be empty."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart] | None = None
    name: str | None = Field(default=None, description="Accepted and not used.")
    tool_calls: Annotated[Any, Only((None, []))] = None
    function_call: Annotated[Any, Only((None,))] = None
    audio: Annotated[Any, Only((None,))] = None


class ChatRequest(SamplingFields):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1), _WHOLE] | None = Field(
        default=None, description="As max_completion_tokens, which goes before it."
    )
    max_completion_tokens: Annotated[int, Field(ge=1), _WHOLE] | None = Field(
        default=None, description="Tokens to generate at most; by default as many as the context has room for."
    )
    logprobs: bool | None = Field(default=False, description="Tell each token's logarithm of probability.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_CHAT_LOGPROBS), _WHOLE] | None = Field(
        default=None, description="How many alternatives to tell with logprobs."
    )
    tools: Annotated[Any, Only((None, []))] = None
    tool_choice: Annotated[Any, Only((None, "none", "auto"))] = None
    parallel_tool_calls: Annotated[Any, Only((None, True, False))] = None
    functions: Annotated[Any, Only((None, []))] = None
    function_call: Annotated[Any, Only((None, "none", "auto"))] = None
    response_format: Annotated[Any, Only((None, {"type": "text"}))] = None
    modalities: Annotated[Any, Only((None, ["text"]))] = None
    service_tier: Annotated[Any, Only((None, "auto", "default"))] = None


class PromptRequest(Body):
    """Body of POST /prompt."""

    input_prompt: Prompt = Field(description="Continued as it stands, without a chat template.")
    model: Model | None = Field(
        default=None, description="By default the first adapter, or the base model where none is served."
    )
    max_tokens: Annotated[int, Field(ge=1), _WHOLE] = Field(default=256, description="Tokens to generate at most.")


def as_tuple(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the texts of a stop field."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)
