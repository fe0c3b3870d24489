"""From what a client sends to tokens: the same tokens that training and evaluation make of the same text."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from finetuning_api.reasons import Reason
from finetuning_server.http.errors import ApiError, from_user_error
from finetuning_server.http.schemas import ChatMessage
from finetuning_server.prompt import prompt_tokens
from finetuning_workload.data import RenderedRow, Segment, encode_prompt
from finetuning_workload.data.chat import ChatRenderer, Message, Role, read_messages
from finetuning_workload.errors import UserError

Tokens = tuple[int, ...]
_T = TypeVar("_T")
_ANSWER = Message(role=Role.ASSISTANT, content="answer")
"""Stands for the answer to come: what training renders before an answer is the prompt of that answer."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A chat as tokens, and the tokens that close a turn in it."""

    tokens: Tokens
    closing: Tokens


class PromptEncoder:
    """Encodes prompts beside the event loop: a long one takes as long as many tokens of the others."""

    def __init__(self, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> None:
        self._tokenizer = tokenizer
        # One thread: tokenizers are not made for use from several at once.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    async def texts(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of texts as they stand."""
        return await self._aside(lambda: [_of_text(self._tokenizer(), text) for text in texts])

    async def chat(self, messages: Sequence[ChatMessage]) -> ChatPrompt:
        """Return a chat up to where the next answer begins."""
        return await self._aside(lambda: _of_chat(self._tokenizer(), messages))

    async def _aside(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _of_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    tokens = tuple(prompt_tokens(tokenizer, text, chat=False))
    if not tokens:
        raise ApiError(HTTPStatus.BAD_REQUEST, "prompt: the text is empty", code="invalid_value", param="prompt")
    return tokens


def _of_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[ChatMessage]) -> ChatPrompt:
    """Return a chat's prompt. Raises ApiError without a chat template, or for a chat that it refuses."""
    if not tokenizer.chat_template:
        message = "the tokenizer of this model has no chat template; use /v1/completions"
        raise ApiError(HTTPStatus.BAD_REQUEST, message, code="no_chat_template", param="messages")
    try:
        turns = read_messages(
            [message.model_dump(include={"role", "content"}) for message in messages], where="messages"
        )
        row = RenderedRow("chat", _segments(tokenizer, turns))
        return ChatPrompt(tuple(encode_prompt(tokenizer, row)), _closing_tokens(tokenizer, row))
    except UserError as error:
        raise from_user_error(error, param="messages") from error


def _closing_tokens(tokenizer: PreTrainedTokenizerBase, row: RenderedRow) -> Tokens:
    """Return the marks that close a turn: training teaches them, so an answer ends there, as in evaluation."""
    marks = sorted({segment.closing for segment in row.segments if segment.closing})
    encoded = (tokenizer(mark, add_special_tokens=False)["input_ids"] for mark in marks)
    return tuple(ids[0] for ids in encoded if len(ids) == 1)


def _segments(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message]) -> tuple[Segment, ...]:
    renderer = ChatRenderer(tokenizer)
    try:
        return renderer.segments((*turns, _ANSWER), where="messages")
    except UserError as error:
        if error.reason is not Reason.UNSUPPORTED:
            raise
    # A template whose answers do not begin with its own generation prompt: nothing was trained with it.
    chat = [{"role": turn.role.value, "content": turn.content} for turn in turns]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    return (Segment(text, supervised=False),)
