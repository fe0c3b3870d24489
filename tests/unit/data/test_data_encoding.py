"""Golden samples: which tokens a row becomes, and which of them carry loss."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tokenizing import (
    CHATML,
    HEADERS_WITH_BOS,
    INSTRUCTIONS,
    TURNS_WITHOUT_EOS,
    UNMARKED,
    byte_tokenizer,
    shown,
    word_tokenizer,
)
from transformers import PreTrainedTokenizerBase

from finetuning_workload.data import RenderedRow, Segment, TokenizedSample, encode_prompt, encode_row
from finetuning_workload.data.chat import ChatRenderer, read_messages
from finetuning_workload.data.encoding import Encoder, pieces, truncated
from finetuning_workload.data.segments import close_turn, closing_marks

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "Why"},
    {"role": "assistant", "content": "So"},
]
WORDS = "Hi Yes Why So"


def completion_row(prompt: str | None, completion: str, tokenizer: PreTrainedTokenizerBase) -> RenderedRow:
    before = () if prompt is None else (Segment(prompt, supervised=False),)
    return RenderedRow("id", before + close_turn(completion, closing_marks(tokenizer)))


def chat_row(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]] = CHAT) -> RenderedRow:
    return RenderedRow("id", ChatRenderer(tokenizer).segments(read_messages(chat, where="w"), where="w"))


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_completion_and_closing_eos_carry_loss_also_where_eos_is_the_pad(pad: str) -> None:
    tokenizer = word_tokenizer(words=WORDS, pad=pad)
    sample = encode_row(tokenizer, completion_row("Why:", "So", tokenizer))
    assert shown(tokenizer, sample) == "Why:«So</s>»"
    expected_ids = tokenizer.convert_tokens_to_ids(["Why", ":", "So", "</s>"])
    assert (sample.ids, sample.supervised) == (expected_ids, [False, False, True, True])


def test_bos_comes_once_where_the_tokenizer_adds_one() -> None:
    tokenizer = word_tokenizer(words=WORDS, adds_bos=True)
    assert shown(tokenizer, encode_row(tokenizer, completion_row("Why:", "So", tokenizer))) == "<s>Why:«So</s>»"


@pytest.mark.parametrize("completion", ["So</s>", "So</s>\n"])
def test_eos_that_the_user_wrote_is_not_doubled(completion: str) -> None:
    tokenizer = word_tokenizer(words=WORDS)
    row = completion_row("Why:", completion, tokenizer)
    assert (shown(tokenizer, encode_row(tokenizer, row)), row.completion) == ("Why:«So</s>»", "So")


def test_tokenizer_without_eos_closes_nothing() -> None:
    tokenizer = word_tokenizer(words=WORDS, eos=None)
    assert shown(tokenizer, encode_row(tokenizer, completion_row("Why:", "So", tokenizer))) == "Why:«So»"


def test_plain_text_is_learned_whole() -> None:
    tokenizer = word_tokenizer(words=WORDS, adds_bos=True)
    row = completion_row(None, "Hi Why", tokenizer)
    assert shown(tokenizer, encode_row(tokenizer, row)) == "<s>«Hi Why</s>»"
    assert (row.prompt, row.completion, row.is_plain) == ("", "Hi Why", True)


GOLDEN_CHATML = """\
<|im_start|>user
Hi<|im_end|>
<|im_start|>assistant
«Yes<|im_end|>»
<|im_start|>user
Why<|im_end|>
<|im_start|>assistant
«So<|im_end|>»"""
GOLDEN_HEADERS = """\
<s><|head|>user<|/head|>

Hi</s><|head|>assistant<|/head|>

«Yes</s>»<|head|>user<|/head|>

Why</s><|head|>assistant<|/head|>

«So</s>»"""
GOLDEN_TURNS = """\
<s><turn>user
Hi<end_of_turn>
<turn>assistant
«Yes<end_of_turn>»
<turn>user
Why<end_of_turn>
<turn>assistant
«So<end_of_turn></s>»"""


@pytest.mark.parametrize(
    ("template", "eos", "golden"),
    [
        (CHATML, "<|im_end|>", GOLDEN_CHATML),
        (HEADERS_WITH_BOS, "</s>", GOLDEN_HEADERS),
        (TURNS_WITHOUT_EOS, "</s>", GOLDEN_TURNS),
        (INSTRUCTIONS, "</s>", "<s>[INST] Hi [/INST]« Yes </s>»[INST] Why [/INST]« So </s>»"),
        (UNMARKED, "</s>", "<s>user: Hi\nassistant:« Yes\n</s>»user: Why\nassistant:« So\n</s>»"),
    ],
)
def test_golden_chats(template: str, eos: str, golden: str) -> None:
    adds_bos = template is not CHATML
    tokenizer = word_tokenizer(words=WORDS, eos=eos, pad=eos, adds_bos=adds_bos, chat_template=template)
    assert shown(tokenizer, encode_row(tokenizer, chat_row(tokenizer))) == golden


def test_mask_is_that_of_the_generation_blocks_of_a_template_that_has_them() -> None:
    # transformers computes the mask of {% generation %} blocks by itself: an independent implementation.
    with_blocks = CHATML.replace(
        "{{ m.content }}<|im_end|>\n",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}",
    )
    tokenizer = byte_tokenizer(eos="<|im_end|>", pad="<|im_end|>", chat_template=with_blocks)
    theirs: Any = tokenizer.apply_chat_template(
        CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, add_special_tokens=False
    )
    ours = encode_row(tokenizer, chat_row(tokenizer))
    length = len(ours)  # Ours leaves out the line end after the last answer.
    assert ours.ids == theirs["input_ids"][:length]
    assert [int(mark) for mark in ours.supervised] == theirs["assistant_masks"][:length]
    assert (len(theirs["input_ids"]) - length, sum(theirs["assistant_masks"][length:])) == (1, 0)


@pytest.mark.parametrize("template", [CHATML, HEADERS_WITH_BOS, TURNS_WITHOUT_EOS, INSTRUCTIONS, UNMARKED])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_prompt_of_a_chat_is_the_beginning_of_its_sample(template: str, *, adds_bos: bool) -> None:
    tokenizer = byte_tokenizer(adds_bos=adds_bos, chat_template=template)
    row = chat_row(tokenizer)
    prompt, sample = encode_prompt(tokenizer, row), encode_row(tokenizer, row)
    assert sample.ids[: len(prompt)] == prompt
    assert all(sample.supervised[len(prompt) :])
    assert row.completion.strip() == "So"


@settings(max_examples=50)
@given(prompt=st.text(), completion=st.text(), adds_bos=st.booleans())
def test_prompt_is_the_beginning_of_its_sample_and_all_the_rest_is_learned(
    prompt: str, completion: str, *, adds_bos: bool
) -> None:
    tokenizer = byte_tokenizer(adds_bos=adds_bos)
    row = completion_row(prompt, completion, tokenizer)
    start, sample = encode_prompt(tokenizer, row), encode_row(tokenizer, row)
    assert sample.ids[: len(start)] == start
    assert sample.supervised == [False] * len(start) + [True] * (len(sample) - len(start))
    assert row.usable == bool(completion.strip()) == (sample.ids[-1:] == [tokenizer.eos_token_id] and row.usable)
    assert tokenizer.decode(sample.ids, skip_special_tokens=True) == (row.text if row.usable else prompt + completion)


def test_batch_gives_what_single_rows_give() -> None:
    tokenizer = byte_tokenizer(adds_bos=True, chat_template=CHATML)
    rows = [chat_row(tokenizer), completion_row("", "é漢🙂", tokenizer), completion_row(None, "x", tokenizer)]
    assert Encoder(tokenizer).encode(rows) == [encode_row(tokenizer, row) for row in rows]


# Length


def sample_of(length: int, *, prompt: int = 0) -> TokenizedSample:
    return TokenizedSample("id", list(range(length)), [place >= prompt for place in range(length)])


def test_truncated_sample_loses_its_end_and_gets_no_eos() -> None:
    tokenizer = byte_tokenizer()
    sample = encode_row(tokenizer, completion_row("prompt", "completion", tokenizer))
    short = truncated(sample, 9)
    assert (short.ids, short.supervised) == (sample.ids[:9], [False] * 6 + [True] * 3)


@given(length=st.integers(2, 200), max_length=st.integers(8, 64))
def test_pieces_predict_every_token_once_and_lose_none(length: int, max_length: int) -> None:
    found = pieces(sample_of(length), max_length)
    assert all(2 <= len(piece) <= max_length for piece in found)
    learned = [token for piece in found for token, marked in zip(piece.ids, piece.supervised, strict=True) if marked]
    assert learned == list(range(length))
    assert [piece.row_id for piece in found] == [f"id#{number}" for number in range(1, len(found) + 1)]
    assert all(before.ids[-1] == after.ids[0] for before, after in pairwise(found))


def test_closing_mark_and_white_space_after_it_are_told_apart() -> None:
    assert close_turn("So</s>\n", ("</s>",)) == (
        Segment("So", supervised=True, closing="</s>"),
        Segment("\n", supervised=False),
    )
    assert close_turn("So\n", ("</s>",)) == (Segment("So\n", supervised=True),)
    assert close_turn(" \n", ("</s>",)) == (Segment(" \n", supervised=False),)
    assert close_turn("", ("</s>",)) == ()
