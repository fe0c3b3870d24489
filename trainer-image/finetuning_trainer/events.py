"""TensorBoard's event files: the course of a training for whoever watches it. They are no part of its result."""

import logging
import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_LOG = logging.getLogger(__name__)
_FORMAT = "brain.Event:2"
"""What readers know the format of the file by."""
_SHOWN = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")


class EventFiles:
    """Writes the numbers of every step. A disk that does not take them ends the writing, not the training.

    A context manager that opens the file, and closes it at the end.
    """

    def __init__(self, folder: Path | None, *, resumed_from: int | None = None) -> None:
        """Go on after the step ``resumed_from``; None begins anew. Without a folder nothing is written."""
        self._folder = folder
        self._resumed_from = resumed_from
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        if self._folder is not None:
            try:
                self._begin(self._folder)
            except OSError as error:
                self._give_up(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step that are worth a curve."""
        values = [Summary.Value(tag=tag, simple_value=numbers[tag]) for tag in _SHOWN if tag in numbers]
        try:
            self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        except OSError as error:
            self._give_up(error)

    def _begin(self, folder: Path) -> None:
        if self._resumed_from is None:
            # What is there is of another training.
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        # Unbuffered: whoever watches sees a step when it is done, and nothing is left to be written at the end.
        self._file = (folder / name).open("wb", buffering=0)
        self._write(Event(wall_time=time.time(), file_version=_FORMAT))
        if self._resumed_from is not None:
            # Steps that came after the checkpoint are done once more: readers drop what they had of them.
            restart = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=self._resumed_from + 1, session_log=restart))

    def _write(self, event: Event) -> None:
        if self._file is not None:
            RecordWriter(self._file).write(event.SerializeToString())

    def _give_up(self, error: OSError) -> None:
        _LOG.warning("TensorBoard is told nothing more: %s", error)
        self._file = None
