"""Text comes in pieces that no later token changes, and ends before a stop text."""

import pytest
from tests.support.models import tiny_tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

from finetuning_server.engine.texts import TextStream

BROKEN = "\ufffd"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def bytes_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text byte by byte, as a model may write it."""
    letters = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]
    return [tokenizer.get_vocab()[letter] for letter in letters]


@pytest.mark.parametrize(
    "text", ["the invoice was charged", "ä 漢字 🙂 ß", " leading", "naïve café 🙂🙂", "zażółć gęślą"]
)
def test_pieces_joined_are_the_whole_text_and_none_is_broken(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokens_of(tokenizer, text)]
    assert "".join(pieces) + stream.finish() == text
    assert not any(BROKEN in piece for piece in pieces)


def test_a_character_comes_when_its_last_byte_does(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in bytes_of(tokenizer, "🙂")] == ["", "", "", "🙂"]


def test_bytes_that_never_become_a_character_are_told_at_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer)
    tokens = [*tokens_of(tokenizer, "one"), *bytes_of(tokenizer, "🙂")[:2]]
    assert "".join(stream.push(token) for token in tokens) == "one"
    assert stream.finish() == tokenizer.decode(tokens)[3:]


def test_text_that_may_begin_a_stop_text_is_held_back(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer, ["##end"])
    pieces = [stream.push(token) for token in bytes_of(tokenizer, "a#b##e!##endless") if not stream.stopped]
    assert pieces == ["a", "", "#b", "", "", "", "##e!", "", "", "", "", ""]
    assert stream.stopped


def test_text_held_back_is_told_when_there_is_no_more(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer, ["##end"])
    pieces = [stream.push(token) for token in bytes_of(tokenizer, "a##en")]
    assert (pieces, stream.finish(), stream.stopped) == (["a", "", "", "", ""], "##en", False)


def test_the_first_of_several_stop_texts_cuts(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer, ["five", "three", "two three"])
    pieces = [stream.push(token) for token in tokens_of(tokenizer, "one two three four five") if not stream.stopped]
    assert "".join(pieces) == "one "
