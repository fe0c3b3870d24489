"""Chats become segments: every answer is learned, and together they are what the tokenizer's template writes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tokenizing import (
    ALTERNATING_ONLY,
    CHATML,
    FOREIGN_GENERATION_PROMPT,
    FORGETS_EARLIER_ANSWERS,
    HEADERS_WITH_BOS,
    INSTRUCTIONS,
    TURNS_WITHOUT_EOS,
    UNMARKED,
    byte_tokenizer,
)

from finetuning_api.reasons import Reason
from finetuning_workload.data.chat import ChatRenderer, Message, Role, read_messages
from finetuning_workload.data.segments import Segment
from finetuning_workload.errors import UserError

WHERE = "row 3, column 'messages'"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye 🙂"},
    {"role": "assistant", "content": "Bye"},
]
TEMPLATES = [CHATML, HEADERS_WITH_BOS, TURNS_WITHOUT_EOS, INSTRUCTIONS, UNMARKED, FORGETS_EARLIER_ANSWERS]


def segments(chat: object, template: str, *, eos: str = "</s>") -> tuple[Segment, ...]:
    renderer = ChatRenderer(byte_tokenizer(eos=eos, chat_template=template))
    return renderer.segments(read_messages(chat, where=WHERE), where=WHERE)


def text_of(found: tuple[Segment, ...]) -> str:
    return "".join(segment.text + segment.closing for segment in found)


def failure(chat: object, template: str = CHATML) -> UserError:
    with pytest.raises(UserError) as caught:
        segments(chat, template)
    assert WHERE in caught.value.message
    return caught.value


def test_every_answer_is_learned_with_the_mark_that_ends_its_turn() -> None:
    assert segments(CHAT, CHATML, eos="<|im_end|>") == (
        Segment(
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
            supervised=False,
        ),
        Segment("Hello", supervised=True, closing="<|im_end|>"),
        Segment("\n<|im_start|>user\nBye 🙂<|im_end|>\n<|im_start|>assistant\n", supervised=False),
        Segment("Bye", supervised=True, closing="<|im_end|>"),
        Segment("\n", supervised=False),
    )


def test_mark_that_is_not_eos_closes_a_turn_too() -> None:
    found = segments(CHAT, TURNS_WITHOUT_EOS)
    learned = [segment for segment in found if segment.supervised]
    assert [(segment.text, segment.closing) for segment in learned] == [
        ("Hello", "<end_of_turn>"),
        ("Bye", "<end_of_turn>"),
    ]


def test_an_opening_that_answers_nothing_is_seen_and_not_learned() -> None:
    opening = {"role": "assistant", "content": "Welcome"}
    found = segments([opening, *CHAT[1:3]], CHATML, eos="<|im_end|>")

    assert [segment.text for segment in found if segment.supervised] == ["Hello"]
    assert text_of(found).startswith("<|im_start|>assistant\nWelcome<|im_end|>")
    assert not any(segment.supervised for segment in segments([opening], CHATML))


def test_template_without_marks_leaves_the_closing_to_encoding() -> None:
    learned = [segment for segment in segments(CHAT, UNMARKED) if segment.supervised]
    assert [(segment.text, segment.closing) for segment in learned] == [(" Hello\n", ""), (" Bye\n", "")]


@pytest.mark.parametrize("template", TEMPLATES)
def test_segments_together_are_what_the_template_writes(template: str) -> None:
    tokenizer = byte_tokenizer(chat_template=template)
    assert text_of(segments(CHAT, template)) == tokenizer.apply_chat_template(CHAT, tokenize=False)


@pytest.mark.parametrize("template", [CHATML, TURNS_WITHOUT_EOS, UNMARKED])
@given(contents=st.lists(st.text(), min_size=1, max_size=5))
def test_segments_together_are_the_whole_chat_whatever_is_said(template: str, contents: list[str]) -> None:
    chat = [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(contents)]
    tokenizer = byte_tokenizer(chat_template=template)
    assert text_of(segments(chat, template)) == tokenizer.apply_chat_template(chat, tokenize=False)


def test_template_that_rewrites_earlier_answers_has_only_the_last_one_learned() -> None:
    assert segments(CHAT, FORGETS_EARLIER_ANSWERS) == (
        Segment(
            "system: Be brief.</s>\nuser: Hi</s>\nassistant: (earlier)</s>\nuser: Bye 🙂</s>\nassistant: ",
            supervised=False,
        ),
        Segment("Bye", supervised=True, closing="</s>"),
        Segment("\n", supervised=False),
    )


def test_turns_after_the_last_answer_carry_no_loss() -> None:
    found = segments(CHAT[:4], CHATML)
    assert [segment.text for segment in found if segment.supervised] == ["Hello"]
    assert found[-1] == Segment("\n<|im_start|>user\nBye 🙂<|im_end|>\n", supervised=False)


@pytest.mark.parametrize("chat", [CHAT[:2], [CHAT[1], {"role": "assistant", "content": " \n"}]])
def test_chat_without_an_answer_has_nothing_to_learn(chat: list[dict[str, str]]) -> None:
    assert [segment.supervised for segment in segments(chat, CHATML)] == [False]


def test_generation_prompt_that_no_answer_begins_with_is_refused() -> None:
    error = failure(CHAT, FOREIGN_GENERATION_PROMPT)
    assert (error.reason, "generation prompt" in error.message) == (Reason.UNSUPPORTED, True)


def test_refusal_of_the_template_is_passed_on() -> None:
    error = failure(CHAT, ALTERNATING_ONLY)
    assert (error.reason, "roles must alternate" in error.message) == (Reason.DATASET_UNREADABLE, True)


def test_tokenizer_without_chat_template_is_refused_with_a_way_out() -> None:
    with pytest.raises(UserError) as caught:
        ChatRenderer(byte_tokenizer())
    assert (caught.value.reason, "prompt and completion" in caught.value.hint) == (Reason.UNSUPPORTED, True)


# Spellings


@pytest.mark.parametrize(
    "value",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        [
            {"role": "user", "content": "a", "from": None, "value": None, "tool_calls": None},
            {"role": None, "content": None, "from": "gpt", "value": "b", "tool_calls": []},
        ],
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "model", "content": "b"}],
        json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
    ],
)
def test_common_spellings_of_a_chat_mean_the_same(value: object) -> None:
    assert read_messages(value, where=WHERE) == (Message(Role.USER, "a"), Message(Role.ASSISTANT, "b"))


@pytest.mark.parametrize(
    ("value", "reason", "told"),
    [
        ("hello", Reason.DATASET_UNREADABLE, "text that is not JSON"),
        (7, Reason.DATASET_UNREADABLE, "holds a int, not a list"),
        ({"role": "user"}, Reason.DATASET_UNREADABLE, "holds a dict, not a list"),
        (["hello"], Reason.DATASET_UNREADABLE, "message 1 is a str"),
        ([{"content": "a"}], Reason.DATASET_UNREADABLE, "message 1 has the role None"),
        ([{"role": "narrator", "content": "a"}], Reason.DATASET_UNREADABLE, "message 1 has the role 'narrator'"),
        ([{"role": "tool", "content": "a"}], Reason.UNSUPPORTED, "message 1 uses tools"),
        ([{"role": "assistant", "tool_calls": [{}]}], Reason.UNSUPPORTED, "message 1 uses tools"),
        ([{"role": "user", "content": [{"type": "image"}]}], Reason.UNSUPPORTED, "content that is not text"),
    ],
)
def test_what_is_no_chat_is_told_with_its_place(value: object, reason: Reason, told: str) -> None:
    error = failure(value)
    assert (error.reason, told in error.message) == (reason, True)
