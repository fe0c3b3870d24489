"""Python's garbage collector, so that it never stops the operator for long."""

import asyncio
import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_OLDEST = 2
"""The generation whose collection searches everything."""
_GROWTH = 1.5
"""How much more must be spared than was left by the last search of everything until that is worth another one."""


class SparingCollector:
    """Leaves what survived a full collection out of those that follow.

    A cache of 1,000 jobs has half a million objects, next to none of them garbage. To search them all takes a third of
    a second in which nobody is answered, and that every few seconds while objects come and change.
    """

    def __init__(self) -> None:
        self._left: int | None = None
        """Objects that were left by the last search of everything; None while the next one is still to come."""

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """Spare what survives while the block runs."""
        gc.callbacks.append(self._collected)
        try:
            yield
        finally:
            gc.callbacks.remove(self._collected)
            gc.unfreeze()

    async def run(self, *, every: float = 1.0) -> None:
        """Collect every so many seconds: there is little to search then. By itself Python takes 30 ms at a time."""
        while True:
            await asyncio.sleep(every)
            gc.collect()

    def search_if_grown(self) -> None:
        """Have the next full collection search everything where much was spared since: it may have become garbage.

        What nobody refers to any more goes without being searched for; only what holds itself must be found.
        """
        if self._left is not None and gc.get_freeze_count() > _GROWTH * self._left:
            self._left = None
            gc.unfreeze()

    def _collected(self, phase: str, info: Mapping[str, Any]) -> None:
        if phase == "stop" and info["generation"] == _OLDEST:
            gc.freeze()
            if self._left is None:
                self._left = gc.get_freeze_count()
