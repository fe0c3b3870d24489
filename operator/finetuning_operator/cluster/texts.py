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


def clean(text: str, length: int = LONGEST_TEXT) -> str:
    """Return a text from outside as one line that a terminal and a status can take."""
    return shorten(" ".join(_printable(text[: 4 * length]).split()), length)


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
    """Return a text without what is invisible, moves a cursor or turns the reading direction; space is blanks.

    What str.isprintable refuses: control and format characters, lone surrogates, and what Unicode does not know.
    """
    kept = (" " if char.isspace() else char for char in _ESCAPE.sub("", text) if char.isprintable() or char.isspace())
    return "".join(kept)
