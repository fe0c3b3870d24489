"""Python's garbage collector, so that it never stops the operator for long."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_OLDEST = 2
"""The generation whose collection searches everything."""


@contextmanager
def survivors_spared() -> Iterator[None]:
    """Leave what survived a full collection out of those that follow, until ``search_all`` asks for all once more.

    A cache of 1,000 jobs has half a million objects, next to none of them garbage. To search them all takes a third of
    a second in which nobody is answered, and that every few seconds while objects come and change.
    """
    gc.callbacks.append(_spare)
    try:
        yield
    finally:
        gc.callbacks.remove(_spare)
        gc.unfreeze()


def search_all() -> None:
    """Have the next full collection search everything: what was spared may have become garbage."""
    gc.unfreeze()


def _spare(phase: str, info: Mapping[str, Any]) -> None:
    if phase == "stop" and info["generation"] == _OLDEST:
        gc.freeze()
