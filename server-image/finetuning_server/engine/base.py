"""What the engine is asked and what it answers; the HTTP side knows no more of it than this."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from transformers import PreTrainedTokenizerBase


class FinishReason(StrEnum):
    """Why a completion ended, in the words of OpenAI's API."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen."""

    temperature: float = 0.0
    """0 is greedy: the likeliest token, always."""
    top_p: float = 1.0
    """Only the likeliest tokens whose probabilities sum up to this are drawn from."""
    seed: int | None = None
    """Equal seeds draw equal tokens, whatever else is generated at the same time."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue."""

    model: str
    """Served name of the base model or of an adapter."""
    tokens: tuple[int, ...]
    """The encoded prompt; never empty."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end the completion; they are not part of it."""
    closing_tokens: tuple[int, ...] = ()
    """Tokens that end the completion beside the model's own end-of-text tokens, such as the mark that closes a turn."""
    sampling: Sampling = field(default_factory=Sampling)
    top_logprobs: int | None = None
    """How many alternatives each token is told with; None tells no logarithms of probabilities at all."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A generated token and its logarithm of probability (natural, after no temperature)."""

    token: int
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest tokens at this place, with their logarithms of probability, likeliest first."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What came since the last piece. Texts of all pieces joined are the completion."""

    text: str
    tokens: int
    """Tokens generated since the last piece, a closing end-of-text token included."""
    scores: tuple[TokenScore, ...] = ()
    finish: FinishReason | None = None
    """Set on the last piece."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that requests may use."""

    name: str
    parent: str | None = None
    """Served name of the base model of an adapter; None for the base model itself."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the engine is."""

    running: int
    """Requests that generate now."""
    waiting: int
    """Requests in the queue."""
    cached_tokens: int
    """Tokens whose keys and values are held in memory."""


class Engine(Protocol):
    """Generates for many requests at once. All methods are called on one event loop."""

    tokenizer: PreTrainedTokenizerBase
    context_length: int
    """Tokens of prompt and completion together at most."""

    async def start(self) -> None:
        """Load, warm up, and begin to look for awaited adapters. Raises ProgramError for what cannot be loaded."""

    async def stop(self) -> None:
        """Take no more requests, end those that run with EngineStopped, and give memory back."""

    def models(self) -> tuple[ServedModel, ...]:
        """Return what can be asked for now, the base model first."""

    def load(self) -> Load:
        """Return how busy the engine is."""

    def fault(self) -> str:
        """Return why the engine will never answer again, empty while it works: whoever can should start it anew."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Yield the completion piece by piece. Closing the generator, or cancelling its task, frees its place at once.

        Raises, before the first piece: UnknownModel, PromptTooLong, QueueFull; at any time: OutOfMemory (this request
        alone), EngineStopped.
        """
