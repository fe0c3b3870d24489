"""What wakes the loop: a signal, the end of a step, a report. It is a pipe, which signals and threads can write to."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Wake:
    """Waits for anything to happen, and counts the requests to stop."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self.stop_signal: signal.Signals | None = None
        self.requests = 0

    def notify(self) -> None:
        """Wake the loop; may be called from any thread."""
        with suppress(BlockingIOError, OSError):
            os.write(self._write, b".")

    def wait(self, seconds: float) -> None:
        """Return when something happened, or after this long."""
        select.select([self._read], [], [], max(0.0, seconds))
        with suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Listen to signals from now on; only in the main thread."""
        before = {number: signal.signal(number, self._on_stop) for number in _SIGNALS}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        descriptor = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read)
        os.close(self._write)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self.stop_signal = self.stop_signal or signal.Signals(number)
        self.requests += 1
