"""From pieces to OpenAI's objects: whole answers, and the chunks of a stream."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from finetuning_server.engine.base import FinishReason, Piece, TokenScore
from finetuning_server.http.access import RequestRecord
from finetuning_server.http.answers import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from finetuning_server.http.generating import Choices

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""
_REPLACEMENT = "\ufffd"
"""What a part of a character reads as."""


@dataclass(slots=True)
class Whole:
    """One completion, gathered from its pieces."""

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    finish: FinishReason = FinishReason.STOP

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        self.text += piece.text
        self.scores += piece.scores
        self.finish = piece.finish or self.finish


async def gathered(pieces: Choices, *, count: int) -> list[Whole]:
    """Return all completions when they are done."""
    wholes = [Whole() for _ in range(count)]
    async for index, piece in pieces:
        wholes[index].add(piece)
    return wholes


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionWriter:
    """Writes the objects of /v1/completions."""

    id: str
    model: str
    with_logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, completions: Sequence[Whole], usage: Usage) -> Completion:
        """Return the answer to a request that does not stream."""
        choices = [
            self._choice(index, one.text, scores=one.scores, offset=0, finish=one.finish)
            for index, one in enumerate(completions)
        ]
        return self._object(choices).model_copy(update={"usage": usage})

    def begin(self, _index: int) -> list[Completion]:
        """Return what a stream says first of a completion: nothing."""
        return []

    def chunk(self, index: int, piece: Piece, *, offset: int) -> list[Completion]:
        """Return what a stream says of a piece that begins at a character of its completion."""
        if not (piece.text or piece.scores or piece.finish):
            return []
        choice = self._choice(index, piece.text, scores=piece.scores, offset=offset, finish=piece.finish)
        return [self._object([choice])]

    def end(self, usage: Usage) -> Completion:
        """Return what a stream says last when it tells the usage."""
        return self._object([]).model_copy(update={"usage": usage})

    def _choice(
        self, index: int, text: str, *, scores: Sequence[TokenScore], offset: int, finish: FinishReason | None
    ) -> CompletionChoice:
        logprobs = completion_logprobs(scores, offset=offset) if self.with_logprobs else None
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish)

    def _object(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(
            id=f"cmpl-{self.id}", object="text_completion", created=self.created, model=self.model, choices=choices
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatWriter:
    """Writes the objects of /v1/chat/completions."""

    id: str
    model: str
    with_logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, completions: Sequence[Whole], usage: Usage) -> ChatCompletion:
        """Return the answer to a request that does not stream."""
        choices = [
            ChatChoice(
                index=index,
                message=AnswerMessage(role="assistant", content=one.text, refusal=None),
                logprobs=self._logprobs(one.scores),
                finish_reason=one.finish,
            )
            for index, one in enumerate(completions)
        ]
        return ChatCompletion(
            id=self._id, object="chat.completion", created=self.created, model=self.model, choices=choices, usage=usage
        )

    def begin(self, index: int) -> list[ChatChunk]:
        """Return what a stream says first of an answer: whose it is."""
        return [self._chunk(index, Delta(role="assistant", content=""))]

    def chunk(self, index: int, piece: Piece, *, offset: int) -> list[ChatChunk]:  # noqa: ARG002  (as in CompletionWriter)
        """Return what a stream says of a piece; the end of an answer is a chunk of its own, as clients expect."""
        chunks = []
        if piece.text or piece.scores:
            chunks.append(self._chunk(index, Delta(content=piece.text), scores=piece.scores))
        if piece.finish is not None:
            chunks.append(self._chunk(index, Delta(), finish=piece.finish))
        return chunks

    def end(self, usage: Usage) -> ChatChunk:
        """Return what a stream says last when it tells the usage."""
        return self._object([]).model_copy(update={"usage": usage})

    @property
    def _id(self) -> str:
        return f"chatcmpl-{self.id}"

    def _logprobs(self, scores: Sequence[TokenScore]) -> ChatLogprobs | None:
        return chat_logprobs(scores) if self.with_logprobs else None

    def _chunk(
        self, index: int, delta: Delta, *, scores: Sequence[TokenScore] = (), finish: FinishReason | None = None
    ) -> ChatChunk:
        logprobs = self._logprobs(scores) if scores else None
        return self._object([ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish)])

    def _object(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self._id, object="chat.completion.chunk", created=self.created, model=self.model, choices=choices
        )


def usage_of(record: RequestRecord) -> Usage:
    """Return the token counts of a request."""
    prompt, completion = record.prompt_tokens or 0, record.completion_tokens or 0
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def completion_logprobs(scores: Sequence[TokenScore], *, offset: int) -> CompletionLogprobs:
    """Return the scores of tokens, the first of which begins at a character of its completion."""
    offsets = []
    for score in scores:
        offsets.append(offset)
        offset += len(score.text)
    return CompletionLogprobs(
        tokens=[score.text for score in scores],
        token_logprobs=[_finite(score.logprob) for score in scores],
        top_logprobs=[{text: _finite(logprob) for text, logprob in score.top} for score in scores],
        text_offset=offsets,
    )


def chat_logprobs(scores: Sequence[TokenScore]) -> ChatLogprobs:
    """Return the scores of tokens in the shape of chats."""
    content = [
        TokenLogprob(
            token=score.text,
            logprob=_finite(score.logprob),
            bytes=_bytes(score.text),
            top_logprobs=[
                TopLogprob(token=text, logprob=_finite(logprob), bytes=_bytes(text)) for text, logprob in score.top
            ],
        )
        for score in scores
    ]
    return ChatLogprobs(content=content, refusal=None)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)


def _bytes(text: str) -> list[int] | None:
    return None if _REPLACEMENT in text else list(text.encode())
