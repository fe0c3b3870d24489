"""A chat that is served has the tokens that training made of the same chat."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.support.models import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from finetuning_api.dataset import RowFormat
from finetuning_server.http.errors import ApiError
from finetuning_server.http.prompts import ChatPrompt, PromptEncoder
from finetuning_server.http.schemas import ChatMessage
from finetuning_server.prompt import prompt_tokens
from finetuning_workload.data import encode_prompt, load_table, render_rows

CLOSED_BY_A_MARK = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
OPENS_A_THOUGHT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
)
ONLY_IN_TURNS = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}x"
CHAT = [
    {"role": "system", "content": "You triage."},
    {"role": "user", "content": "the invoice was charged twice"},
    {"role": "assistant", "content": "billing"},
    {"role": "user", "content": "refund please"},
]


def encoded(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, object]]) -> ChatPrompt:
    encoder = PromptEncoder(lambda: tokenizer)
    return asyncio.run(encoder.chat([ChatMessage.model_validate(message) for message in messages]))


def trained(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[int]:
    """Return the prompt that training and evaluation make of the chat with one more answer."""
    rows = RowFormat(messages="messages")
    answered = [*CHAT, {"role": "assistant", "content": "done"}]
    (folder / "chats.jsonl").write_text(json.dumps({"messages": answered}) + "\n")
    (row,) = render_rows(load_table(folder / "chats.jsonl", rows), rows, tokenizer)
    return encode_prompt(tokenizer, row)


@pytest.mark.parametrize("template", [None, CLOSED_BY_A_MARK])
def test_a_chat_of_several_turns_is_encoded_as_in_training(tmp_path: Path, template: str | None) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template

    found = encoded(tokenizer, CHAT)

    assert list(found.tokens) == trained(tokenizer, tmp_path)


def test_the_mark_that_closes_a_turn_ends_the_answer() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CLOSED_BY_A_MARK

    assert encoded(tokenizer, CHAT).closing == (tokenizer.convert_tokens_to_ids("<pad>"),)


def test_one_message_is_encoded_as_finetune_prompt_does() -> None:
    tokenizer = tiny_tokenizer()

    found = encoded(tokenizer, [{"role": "user", "content": "refund please"}])

    assert list(found.tokens) == prompt_tokens(tokenizer, "refund please", chat=True)


def test_content_in_parts_and_the_role_developer_are_understood() -> None:
    tokenizer = tiny_tokenizer()
    parts: list[Mapping[str, object]] = [
        {"role": "developer", "content": "You triage."},
        {"role": "user", "content": [{"type": "text", "text": "refund "}, {"type": "text", "text": "please"}]},
    ]
    plain: list[Mapping[str, object]] = [
        {"role": "system", "content": "You triage."},
        {"role": "user", "content": "refund please"},
    ]

    assert encoded(tokenizer, parts) == encoded(tokenizer, plain)


def test_a_template_that_opens_a_thought_before_each_answer_is_used_as_it_is() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = OPENS_A_THOUGHT

    found = encoded(tokenizer, [{"role": "user", "content": "refund please"}])

    assert tokenizer.decode(list(found.tokens)) == "user: refund please\nassistant: <think>\n"


def test_a_chat_that_the_template_refuses_is_the_clients_mistake() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = ONLY_IN_TURNS

    with pytest.raises(ApiError, match="begin with the user") as caught:
        encoded(tokenizer, CHAT)

    assert (caught.value.status, caught.value.error.param) == (400, "messages")
