"""Waiting for somebody else's bytes without hanging: every wait ends on a stop signal or when nothing comes."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from finetuning_relocator.faults import stalled
from finetuning_workload.errors import Interrupted
from finetuning_workload.program import StopFlag

T = TypeVar("T")

_POLL_SECONDS = 0.1
_QUEUED_ITEMS = 8


class _End(NamedTuple):
    """What a producer leaves behind at its end."""

    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Watch:
    """What ends a wait: a request to stop, or ``stall_seconds`` without anything new."""

    stop: StopFlag
    stall_seconds: float

    def stream(self, produce: Callable[[], Iterator[T]], *, what: str) -> Iterator[T]:
        """Yield what ``produce`` yields; it runs in a thread, so that a read that hangs does not hang the program.

        Raises Interrupted when asked to stop and EnvironmentFault(DOWNLOAD_STALLED) when nothing comes.
        """
        items: queue.Queue[T | _End] = queue.Queue(maxsize=_QUEUED_ITEMS)
        abandoned = threading.Event()
        threading.Thread(target=_pump, args=(produce, items, abandoned), name="read", daemon=True).start()
        deadline = time.monotonic() + self.stall_seconds
        try:
            while True:
                self.check_stop()
                try:
                    item = items.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    self.check_stall(deadline, what=what)
                    continue
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
                deadline = time.monotonic() + self.stall_seconds
        finally:
            abandoned.set()

    def call(self, ask: Callable[[], T], *, what: str) -> T:
        """Return the answer to one question under the same watch."""

        def answer() -> Iterator[T]:
            yield ask()

        return next(self.stream(answer, what=what))

    def counts(self, produced: Generator[int, None, None], *, what: str) -> Iterator[int]:
        """Yield the counts of bytes of a source that polls its own client; zero is a sign of life, but no progress.

        ``produced`` is closed at the end, whatever the end is, so that its client ends as well.
        """
        deadline = time.monotonic() + self.stall_seconds
        with closing(produced):
            for count in produced:
                self.check_stop()
                if count:
                    deadline = time.monotonic() + self.stall_seconds
                    yield count
                self.check_stall(deadline, what=what)

    def check_stop(self) -> None:
        """Raise Interrupted when the program was asked to stop."""
        if self.stop:
            raise Interrupted("stopped before everything was brought; what has arrived is kept")

    def check_stall(self, deadline: float, *, what: str) -> None:
        """Raise EnvironmentFault(DOWNLOAD_STALLED) past a deadline of the monotonic clock."""
        if time.monotonic() >= deadline:
            raise stalled(what, self.stall_seconds)

    def pause(self, seconds: float) -> None:
        """Sleep between two tries, but not past a request to stop."""
        self.stop.wait(seconds)
        self.check_stop()


def _pump(produce: Callable[[], Iterator[T]], items: "queue.Queue[T | _End]", abandoned: threading.Event) -> None:
    def offer(item: T | _End) -> bool:
        while not abandoned.is_set():
            try:
                items.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    try:
        for item in produce():
            if not offer(item):
                return
    except BaseException as error:  # noqa: BLE001  (raised again by the reader)
        offer(_End(error))
    else:
        offer(_End(None))
