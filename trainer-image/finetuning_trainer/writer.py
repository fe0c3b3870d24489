"""Writes checkpoints beside the training: one at a time, each of them whole before the next begins."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

_LOG = logging.getLogger(__name__)


class CheckpointWriter:
    """Runs what writes a checkpoint, in a thread of its own where it is given one."""

    def __init__(self, thread: ThreadPoolExecutor | None) -> None:
        self._thread = thread
        self._pending: Future[None] | None = None

    @property
    def in_background(self) -> bool:
        """Whether the training goes on while a checkpoint is written, which is to have tensors of its own then."""
        return self._thread is not None

    def begin(self, write: Callable[[], None]) -> None:
        """Write when the last one is whole. Raises what that one, or without a thread this one, failed of."""
        self.finish()
        if self._thread is None:
            write()
        else:
            self._pending = self._thread.submit(write)

    def check(self) -> None:
        """Raise what a write failed of that has ended by now; wait for none."""
        if self._pending is not None and self._pending.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the last one is whole. Raises what it failed of."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def failure(self) -> BaseException | None:
        """Wait for the last one and return what it failed of."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.exception()


@contextmanager
def checkpoint_writer(*, in_background: bool) -> Iterator[CheckpointWriter]:
    """Yield a writer; whatever ends the training, what is under way is written to its end."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint") as thread:
        writer = CheckpointWriter(thread if in_background else None)
        try:
            yield writer
        except BaseException:
            # What ended the training is told by whoever catches it, and is the reason; this comes on top.
            if (failure := writer.failure()) is not None:
                _LOG.warning("the last checkpoint could not be written either: %s", failure)
            raise
        writer.finish()
