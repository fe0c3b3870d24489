"""Whether the thread that computes still gets on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pulse:
    """Sees how long the thread is at one piece of work, and remembers what it cannot recover from.

    Written by the thread and by the event loop, read by the event loop; every write is one assignment.
    """

    def __init__(self, *, patience_seconds: float) -> None:
        self._patience = patience_seconds
        self._began: float | None = None
        self._failure = ""

    @contextmanager
    def beat(self) -> Iterator[None]:
        """Do one piece of work."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._began = None

    def give_up(self, why: str) -> None:
        """Remember that nothing will be computed any more; the first reason counts."""
        self._failure = self._failure or why

    @property
    def fault(self) -> str:
        """Why nothing is to be expected any more; empty while there is no reason."""
        if self._failure:
            return self._failure
        began = self._began
        seconds = 0.0 if began is None else time.monotonic() - began
        return f"the engine is at one step for {seconds:.0f} s" if seconds > self._patience else ""
