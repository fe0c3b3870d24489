"""Text from tokens as they come: nothing is told that a later token could still change."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"
"""What decoders put in place of bytes that are no character, or not yet one."""


class TextStream:
    """Turns the tokens of one completion into text, and cuts it before the first stop text.

    Held back are the bytes of a character that is not complete, and text that may be the beginning of a stop text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._tokens: list[int] = []
        # Only the last tokens are decoded each time, beginning with some that were told already: decoders treat the
        # first token of a text in their own way.
        self._window = 0
        self._told_tokens = 0
        self._told_characters = 0
        self._held = ""
        self.stopped = False
        """Whether a stop text was found; tokens after it are of no use."""

    def push(self, token: int) -> str:
        """Take the next token and return the text that is certain now."""
        self._tokens.append(token)
        whole = self._decode(self._window)
        certain = whole.rstrip(_UNFINISHED)
        new = certain[self._told_characters :]
        self._told_characters = max(self._told_characters, len(certain))
        if len(certain) == len(whole):
            self._move_window()
        return self._release(new)

    def finish(self) -> str:
        """Return what was held back; there are no more tokens."""
        if self.stopped:
            return ""
        rest = self._decode(self._window)[self._told_characters :]
        text = self._release(rest) + self._held
        self._held = ""
        return text

    def _move_window(self) -> None:
        """Begin the window with the tokens that were told last, which all are complete characters."""
        self._window, self._told_tokens = self._told_tokens, len(self._tokens)
        self._told_characters = len(self._decode(self._window))

    def _decode(self, start: int) -> str:
        return str(self._tokenizer.decode(self._tokens[start:], skip_special_tokens=True))

    def _release(self, text: str) -> str:
        pending = self._held + text
        cuts = [pending.index(stop) for stop in self._stop if stop in pending]
        if cuts:
            self.stopped, self._held = True, ""
            return pending[: min(cuts)]
        kept = max((_overlap(pending, stop) for stop in self._stop), default=0)
        self._held = pending[len(pending) - kept :]
        return pending[: len(pending) - kept]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of a stop text."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
