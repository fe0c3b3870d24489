"""One run at a time on a state folder: a lock that steps inherit, so that it lasts as long as anything works there."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from finetuning_api.reasons import Reason
from finetuning_cli.local.layout import Layout
from finetuning_workload.errors import UserError
from finetuning_workload.files import explained_os_errors

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock."""

    pid: int
    job: str
    since: str

    @property
    def alive(self) -> bool:
        """Whether the run itself still exists; its steps may outlive it while they save."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def __str__(self) -> str:
        if self.alive:
            return f"the run of {self.job} (process {self.pid}, since {self.since})"
        return f"steps of an ended run of {self.job} (process {self.pid}, since {self.since}), which are still saving"


@contextmanager
def state_lock(layout: Layout, *, job: str, wait: bool, on_wait: Callable[[Holder | None], None]) -> Iterator[int]:
    """Hold the lock of a state folder and yield its descriptor, for steps to inherit.

    When somebody else holds it, ``on_wait`` is told once, and the lock is waited for. Raises UserError(STATE_LOCKED)
    instead of waiting when ``wait`` is false, and EnvironmentFault when the folder cannot be written.
    """
    descriptor = _open(layout)
    try:
        if not _try_lock(descriptor):
            holder = read_holder(descriptor)
            if not wait:
                hint = "Wait for it, leave out --no-wait, or choose another folder with --state."
                raise UserError(Reason.STATE_LOCKED, f"{layout.root} is in use by {holder or 'another run'}", hint)
            on_wait(holder)
            while not _try_lock(descriptor):
                time.sleep(_POLL_SECONDS)
        with explained_os_errors("write the state folder"):
            _write_holder(descriptor, job)
        yield descriptor
    finally:
        os.close(descriptor)


def _open(layout: Layout) -> int:
    try:
        with explained_os_errors("use the state folder"):
            layout.root.mkdir(parents=True, exist_ok=True)
            return os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        message = f"cannot use the state folder {layout.root}: {error.strerror}"
        hint = "Name a folder that this user may write to with --state."
        raise UserError(Reason.READ_ONLY_FILE_SYSTEM, message, hint) from error


def read_holder(descriptor: int) -> Holder | None:
    """Return who wrote the lock file last; None where it does not tell."""
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_holder(descriptor: int, job: str) -> None:
    holder = Holder(pid=os.getpid(), job=job, since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
