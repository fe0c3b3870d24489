"""Segments: the pieces of a sample that are tokenised one by one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a sample's text, with or without loss.

    A segment is tokenised by itself, so that the tokens of a prompt are the same whatever follows it: in training a
    completion, in generation nothing.
    """

    text: str
    supervised: bool
    closing: str = ""
    """The mark that ends a supervised segment where the text has one of its own, for example ``<|im_end|>``; it carries
    loss. Where the text has none, encoding appends the tokenizer's EOS."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The texts that are tokenised: the segment's own and its closing mark, where they are not empty."""
        return tuple(part for part in (self.text, self.closing) if part)


def close_turn(text: str, marks: tuple[str, ...]) -> tuple[Segment, ...]:
    """Return the segments of text that is to be learned, its closing mark (one of ``marks``) told apart.

    White space after the mark, as chat templates write it, carries no loss. Blank text has nothing to learn.
    """
    body = text.rstrip()
    mark = next((mark for mark in marks if body.endswith(mark)), "")
    learned = body.removesuffix(mark) if mark else text
    if not learned.strip():
        return (Segment(text, supervised=False),) if text else ()
    tail = text[len(body) :] if mark else ""
    segment = Segment(learned, supervised=True, closing=mark)
    return (segment, Segment(tail, supervised=False)) if tail else (segment,)


def closing_marks(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Return the special tokens that may end a turn, longest first: <eos>, but also <end_of_turn> and its like."""
    marks = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if tokenizer.eos_token is not None:
        marks.add(str(tokenizer.eos_token))
    return tuple(sorted(marks - {""}, key=lambda mark: (-len(mark), mark)))
