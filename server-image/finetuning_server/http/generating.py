"""One request, one or more completions: asked of the engine together, bounded in time, counted, freed at any end."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from finetuning_server.engine.base import Engine, GenerationRequest, Piece, Sampling
from finetuning_server.engine.errors import PromptTooLong
from finetuning_server.http.access import RequestRecord
from finetuning_server.http.errors import took_too_long
from finetuning_server.http.metrics import Meters

Choices = AsyncGenerator[tuple[int, Piece], None]
"""Pieces with the index of the completion that each belongs to."""
_SEED_BOUND = 2**63
"""Seeds are numbers of 64 bits; clients may send others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one HTTP request wants of the engine."""

    model: str
    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int | None
    """None for as many as there is room for."""
    copies: int = 1
    """Completions of each prompt."""
    stop: tuple[str, ...] = ()
    closing_tokens: tuple[int, ...] = ()
    sampling: Sampling
    top_logprobs: int | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(prompt) for prompt in self.prompts)

    def requests(self, context_length: int) -> list[GenerationRequest]:
        """Return a request for each completion, those of one prompt after each other. Raises PromptTooLong."""
        return [
            self._request(prompt, copy=copy, room=_room(prompt, context_length))
            for prompt in self.prompts
            for copy in range(self.copies)
        ]

    def _request(self, prompt: tuple[int, ...], *, copy: int, room: int) -> GenerationRequest:
        seed = self.sampling.seed
        folded = None if seed is None else (seed + copy + _SEED_BOUND) % (2 * _SEED_BOUND) - _SEED_BOUND
        return GenerationRequest(
            model=self.model,
            tokens=prompt,
            max_new_tokens=room if self.max_new_tokens is None else min(self.max_new_tokens, room),
            stop=self.stop,
            closing_tokens=self.closing_tokens,
            sampling=replace(self.sampling, seed=folded),
            top_logprobs=self.top_logprobs,
        )


class Generator:
    """Runs what requests ask for."""

    def __init__(self, engine: Engine, *, meters: Meters, request_seconds: int) -> None:
        self._engine = engine
        self._meters = meters
        self._seconds = request_seconds

    async def run(self, ask: Ask, record: RequestRecord) -> Choices:
        """Yield the pieces of all completions as they come. Raises EngineError, and ApiError when time is up."""
        requests = ask.requests(self._engine.context_length)
        record.prompt_tokens = ask.prompt_tokens
        record.completion_tokens = 0
        deadline = asyncio.get_running_loop().time() + self._seconds - record.elapsed
        with self._meters.in_flight():
            streams = [self._engine.generate(request) for request in requests]
            async with aclosing(self._in_time(_merged(streams), deadline)) as pieces:
                async for index, piece in pieces:
                    self._count(ask, piece, record)
                    yield index, piece

    async def _in_time(self, pieces: Choices, deadline: float) -> Choices:
        async with aclosing(pieces):
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        item = await anext(pieces)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise took_too_long(self._seconds) from None
                yield item

    def _count(self, ask: Ask, piece: Piece, record: RequestRecord) -> None:
        if record.first_token_seconds is None:
            record.first_token_seconds = record.elapsed
            self._meters.count_first_token(ask.model, record.elapsed)
            self._meters.count_prompt(ask.model, ask.prompt_tokens)
        record.completion_tokens = (record.completion_tokens or 0) + piece.tokens
        self._meters.count_generated(ask.model, piece.tokens)


async def _merged(streams: Sequence[AsyncGenerator[Piece, None]]) -> Choices:
    """Yield what comes of any stream; when one fails, or at the end of whoever reads, all are ended."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for piece in only:
                yield 0, piece
        return
    arrived: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(index, stream, arrived)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            index, item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    index: int,
    stream: AsyncGenerator[Piece, None],
    arrived: asyncio.Queue[tuple[int, Piece | Exception | None]],
) -> None:
    try:
        async with aclosing(stream):
            async for piece in stream:
                arrived.put_nowait((index, piece))
    except Exception as error:  # noqa: BLE001  (whatever it is, whoever reads gets to know it)
        arrived.put_nowait((index, error))
    else:
        arrived.put_nowait((index, None))


def _room(prompt: tuple[int, ...], context_length: int) -> int:
    room = context_length - len(prompt)
    if room < 1:
        raise PromptTooLong(tokens=len(prompt), limit=context_length - 1)
    return room
