"""An engine without a model: it says what its script says, when the test lets it.

It is a fake on purpose. What the HTTP side makes of an engine that is full, slow, out of memory or stopped half-way is
shown at the very piece where it happens; a real engine gets there by chance. That both sides fit is shown by the tests
that put the real engine on a real model behind the same application.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from tests.support.models import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from finetuning_server.engine.base import FinishReason, GenerationRequest, Load, Piece, ServedModel, TokenScore
from finetuning_server.engine.errors import EngineError, EngineStopped, QueueFull, UnknownModel, UnknownToken

_POLL_SECONDS = 0.005
MODELS = (ServedModel("base"), ServedModel("tuned", parent="base"))


@dataclass(slots=True)
class Script:
    """What the engine does with every request."""

    text: str = "one two three four"
    """A token is a word with the space before it."""
    refusal: EngineError | None = None
    """Raised before the first piece."""
    failure: Exception | None = None
    """Raised after the first piece."""
    held: bool = False
    """Whether every request waits after its first piece; a test sets it back from its own thread."""
    places: int = 1000
    """Requests at the same time; one more is refused with QueueFull."""
    load_error: Exception | None = None
    fault: str = ""
    """Why it will never answer again."""


@dataclass(slots=True)
class ScriptedEngine:
    """Implements the protocol Engine."""

    script: Script = field(default_factory=Script)
    tokenizer: PreTrainedTokenizerBase = field(default_factory=tiny_tokenizer)
    context_length: int = 64
    vocabulary: int = 384
    served: tuple[ServedModel, ...] = MODELS
    requests: list[GenerationRequest] = field(default_factory=list)
    """Everything that was asked, in order."""
    running: int = 0
    most_running: int = 0
    stopped: bool = False

    async def start(self) -> None:
        if self.script.load_error is not None:
            raise self.script.load_error

    async def stop(self) -> None:
        self.stopped = True

    def models(self) -> tuple[ServedModel, ...]:
        return self.served

    def load(self) -> Load:
        return Load(running=self.running, waiting=0, cached_tokens=7 * self.running)

    def fault(self) -> str:
        return self.script.fault

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        self._admit(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            words = re.findall(r"\s*\S+", self.script.text)
            for number, word in enumerate(words[: request.max_new_tokens], start=1):
                yield Piece(word, tokens=1, scores=_scores(request, word))
                await self._interlude(number)
            cut = len(words) > request.max_new_tokens
            yield Piece("", tokens=0, finish=FinishReason.LENGTH if cut else FinishReason.STOP)
        finally:
            self.running -= 1

    def _admit(self, request: GenerationRequest) -> None:
        self.requests.append(request)
        names = tuple(model.name for model in self.served)
        if request.model not in names:
            raise UnknownModel(request.model, known=names)
        unknown = [token for token in request.tokens if token >= self.vocabulary]
        if unknown:
            raise UnknownToken(unknown[0], vocabulary=self.vocabulary)
        if self.script.refusal is not None:
            raise self.script.refusal
        if self.running >= self.script.places:
            raise QueueFull(waiting=self.running, retry_after_seconds=3)

    async def _interlude(self, number: int) -> None:
        while number == 1 and self.script.held and not self.stopped:  # noqa: ASYNC110  (the test is another thread)
            await asyncio.sleep(_POLL_SECONDS)
        if number == 1 and self.script.failure is not None:
            raise self.script.failure
        if self.stopped:
            raise EngineStopped("the server is being stopped")
        await asyncio.sleep(0)


def _scores(request: GenerationRequest, word: str) -> tuple[TokenScore, ...]:
    if request.top_logprobs is None:
        return ()
    top = tuple((f"{word}{number}", -1.0 - number) for number in range(request.top_logprobs))
    return (TokenScore(token=5, text=word, logprob=-0.5, top=top),)
