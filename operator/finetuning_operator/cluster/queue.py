"""The work queue: which keys wait to be worked on, never the same key in two hands.

The semantics are those that controllers rely on: a key that is added while it is worked on is handed out once more
afterwards; a key that is added twice is handed out once; a delayed key has one due time, the earliest that was asked
for.
"""

import asyncio
import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

_FIRST_BACKOFF_SECONDS = 0.01
_LONGEST_BACKOFF_SECONDS = 60.0
_DOUBLINGS = 20
"""Beyond this many failures in a row the backoff has long reached its limit."""


class WorkQueue(Generic[Key]):
    """Hands out keys to workers of one event loop. Not safe for threads."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        """``jitter`` returns a number from 0 to 1, by which backoffs are shortened by up to a half."""
        self._clock = clock
        self._jitter = jitter
        self._ready: deque[Key] = deque()
        self._dirty: dict[Key, float] = {}
        """Keys that need work, with the time since when."""
        self._working: dict[Key, float] = {}
        self._due: dict[Key, float] = {}
        self._later: list[tuple[float, int, Key]] = []
        self._sequence = 0
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def add(self, key: Key) -> None:
        """Have a key worked on as soon as a worker is free."""
        self._drop_delay(key)
        if key in self._dirty or self._closed:
            return
        self._dirty[key] = self._clock()
        if key not in self._working:
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Have a key worked on after some time; an earlier time that was asked for stays."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock() + seconds
        if self._closed or key in self._dirty or self._due.get(key, due + 1.0) <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._later, (due, self._sequence, key))
        self._wake.set()

    def add_failed(self, key: Key) -> float:
        """Have a key worked on again after its backoff, which doubles until ``forget``; return the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        longest = min(_FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, _DOUBLINGS), _LONGEST_BACKOFF_SECONDS)
        seconds = longest * (1.0 - self._jitter() / 2)
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: Key) -> None:
        """Take the failures of a key back: its work succeeded, or is no longer there."""
        self._failures.pop(key, None)

    def failures(self, key: Key) -> int:
        """Return how often in a row the work on a key failed."""
        return self._failures.get(key, 0)

    def pop(self) -> Key | None:
        """Take the next key that is due, None where there is none. ``done`` must follow."""
        self._promote()
        if not self._ready or self._closed:
            return None
        key = self._ready.popleft()
        del self._dirty[key]
        self._working[key] = self._clock()
        return key

    def done(self, key: Key) -> None:
        """Give a key back after work; when it was added meanwhile, it is handed out once more."""
        self._working.pop(key, None)
        if key in self._dirty:
            self._ready.append(key)
            self._wake.set()

    async def get(self) -> Key | None:
        """Wait for the next key; None once the queue is closed."""
        while not self._closed:
            key = self.pop()
            if key is not None:
                if self._ready:
                    self._wake.set()
                return key
            self._wake.clear()
            await self._wait_until_due()
        return None

    def close(self) -> None:
        """Hand out nothing more; keys that are worked on may be finished."""
        self._closed = True
        self._wake.set()

    @property
    def closed(self) -> bool:
        """Whether nothing is handed out any more."""
        return self._closed

    @property
    def depth(self) -> int:
        """Keys that are due and wait for a worker."""
        return len(self._ready)

    @property
    def working(self) -> int:
        """Keys that are worked on."""
        return len(self._working)

    @property
    def longest_running_seconds(self) -> float:
        """For how long the oldest work that is not done has been going on."""
        return self._clock() - min(self._working.values()) if self._working else 0.0

    @property
    def next_due_seconds(self) -> float | None:
        """Seconds until the next delayed key is due, None without one."""
        while self._later and self._due.get(self._later[0][2]) != self._later[0][0]:
            heapq.heappop(self._later)
        return max(0.0, self._later[0][0] - self._clock()) if self._later else None

    async def _wait_until_due(self) -> None:
        seconds = self.next_due_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    def _promote(self) -> None:
        while self.next_due_seconds == 0.0:
            key = heapq.heappop(self._later)[2]
            self.add(key)

    def _drop_delay(self, key: Key) -> None:
        # The entry of the heap stays behind and is skipped when its turn comes.
        self._due.pop(key, None)
