"""Texts from outside: pods, nodes and webhooks may say anything, of any length."""

import re

from finetuning_operator.reconcile.conditions import shorten

LONGEST_TEXT = 1024
"""Characters of one text from outside that are passed on."""
LONGEST_LINE = 512
TAIL_LINES = 20
TAIL_BYTES = 8192
LOG_READ_BYTES = 65_536
"""Bytes that are asked for: a server counts them from the beginning of the lines it was asked for."""

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
"""Colours, cursor movements and titles of terminals (ECMA-48)."""
_UNPRINTABLE = re.compile(
    # Control characters, halves of surrogate pairs, what is invisible, and what turns the direction of reading.
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff]"
)
_SPACE = re.compile(r"\s+")


def clean(text: str, length: int = LONGEST_TEXT) -> str:
    """Return a text from outside as one line that a terminal and a status can take."""
    return shorten(_SPACE.sub(" ", _printable(text[: 4 * length])).strip(), length)


def last_line(text: str) -> str:
    """Return the last line of a text that says anything."""
    lines = (clean(line) for line in reversed(text[-LONGEST_TEXT:].splitlines()))
    return next((line for line in lines if line), "")


def log_tail(log: str) -> tuple[str, ...]:
    """Return the last lines of a log that say anything, bounded in number, length and size (bytes of UTF-8)."""
    tail: list[str] = []
    room = TAIL_BYTES
    for line in reversed(log[-4 * TAIL_BYTES :].split("\n")):
        # A progress bar is many lines in one, each written over the one before.
        kept = shorten(_printable(line.rstrip("\r").rpartition("\r")[2]).rstrip(), LONGEST_LINE)
        room -= len(kept.encode()) + 1
        if room < 0 or len(tail) == TAIL_LINES:
            break
        if kept.strip():
            tail.append(kept)
    return tuple(reversed(tail))


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("", _ESCAPE.sub("", text))
