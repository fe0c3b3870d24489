"""Where the workers of one training find each other, and notice when one of them is gone.

It is torch's key-value store in the launcher of worker 0, the one that torch's own launcher and the ranks use as well.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch lists nothing as exported

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ContractModel
from finetuning_trainer.group import ranks_of
from finetuning_workload.errors import EnvironmentFault

_LOG = logging.getLogger(__name__)
_CONNECT_SECONDS = 5
_BEAT_SECONDS = 1.0
_SILENCE_SECONDS = 30.0
"""A worker that gives no sign for this long is gone: its machine, or the network between."""
_FAILURE_KEY = "failure"


class Failure(ContractModel):
    """What a worker tells the others when a process of it failed."""

    worker: int
    message: str
    """Names the rank."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What happened to another worker, in words; ``told`` where it said so itself."""

    message: str
    told: bool = False


@dataclass(frozen=True, slots=True)
class Seat:
    """Which of the workers this is, and where they meet."""

    worker: int
    workers: int
    processes: int
    """Of each worker."""
    address: str
    port: int
    """0 takes any that is free, which only a single worker can do."""

    def name_of(self, worker: int) -> str:
        """Return a worker with its ranks, in words."""
        ranks = ranks_of(worker, processes=self.processes)
        told = f"rank {ranks.start}" if len(ranks) == 1 else f"ranks {ranks.start} to {ranks.stop - 1}"
        return f"worker {worker} ({told})"


@dataclass(slots=True)
class Meeting:
    """All workers are there: what one of them tells the others, and what is heard of them."""

    seat: Seat
    store: TCPStore
    clock: Callable[[], float] = time.monotonic
    _heard: dict[int, tuple[str, float]] = field(init=False, default_factory=dict)
    """Last sign of each other worker, and when it was new."""

    @property
    def port(self) -> int:
        """The port of the store."""
        return int(self.store.port)

    def tell(self, failure: Failure) -> None:
        """Tell the others that a process of this worker failed; the first that tells is believed."""
        try:
            self.store.compare_set(_FAILURE_KEY, "", failure.to_json())
        except RuntimeError as error:
            _LOG.warning("the other workers were not told: %s", error)

    def loss(self) -> Loss | None:
        """Give a sign and return in words what happened to another worker; None while all is well."""
        others = [worker for worker in range(self.seat.workers) if worker != self.seat.worker]
        try:
            self.store.set(f"sign/{self.seat.worker}", uuid.uuid4().hex)
            if self.store.check([_FAILURE_KEY]):
                failure = Failure.model_validate_json(self.store.get(_FAILURE_KEY))
                return Loss(failure.message, told=True) if failure.worker != self.seat.worker else None
            signs = {worker: self.store.get(f"sign/{worker}").decode() for worker in others}
        except RuntimeError:
            return Loss(f"{self.seat.name_of(0)} ended or cannot be reached any more")
        return self._silence(signs)

    def _silence(self, signs: dict[int, str]) -> Loss | None:
        now = self.clock()
        for worker, sign in signs.items():
            if self._heard.get(worker, ("", 0.0))[0] != sign:
                self._heard[worker] = (sign, now)
            elif now - self._heard[worker][1] > _SILENCE_SECONDS:
                return Loss(f"{self.seat.name_of(worker)} gave no sign of life for {_SILENCE_SECONDS:.0f} s")
        return None

    @contextmanager
    def watched(self, on_loss: Callable[[], bool]) -> Iterator[None]:
        """Call ``on_loss`` from another thread when another worker is gone, until it returns that it did something."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_BEAT_SECONDS):
                if self.loss() is not None and not over.is_set() and on_loss():
                    return

        if self.seat.workers == 1:
            yield
            return
        thread = threading.Thread(target=watch, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def told_loss(self) -> Loss | None:
        """Return what happened to another worker, waiting as long as it may take to be noticed."""
        if self.seat.workers == 1:
            return None
        end = self.clock() + _SILENCE_SECONDS + 2 * _BEAT_SECONDS
        while (told := self.loss()) is None and self.clock() < end:
            time.sleep(_BEAT_SECONDS)
        return told


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a worker comes to the meeting. ``check`` raises when the program is asked to stop."""

    seat: Seat
    check: Callable[[], None]
    patience: float
    """Seconds that the workers wait for each other."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def meet(self) -> Meeting:
        """Return the meeting when every worker is there. Raises EnvironmentFault(WORKER_LOST) when they do not come.

        A store in which somebody has this worker's place is that of an attempt that is about to end: the next one's is
        waited for.
        """
        deadline = self.clock() + self.patience
        missing = 0
        while self.clock() < deadline:
            self.check()
            try:
                meeting = self._entered()
                while meeting is not None and self.clock() < deadline:
                    missing = self._missing(meeting)
                    if missing == self.seat.workers:
                        return meeting
                    self._pause()
            except RuntimeError as error:
                _LOG.info("not at %s yet: %s", self.seat.address, str(error).splitlines()[0])
            self._pause()
        message = f"{self.seat.name_of(missing)} did not come within {self.patience:.0f} s"
        hint = "See why its pod does not run; a queue (spec.queueName) starts workers together or not at all."
        raise EnvironmentFault(Reason.WORKER_LOST, message, hint)

    def _entered(self) -> Meeting | None:
        """Return the meeting with this worker's name on its place; None where another has it."""
        seat, name = self.seat, uuid.uuid4().hex
        store = TCPStore(
            seat.address,
            seat.port,
            is_master=seat.worker == 0,
            timeout=timedelta(seconds=_CONNECT_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
        store.set(f"sign/{seat.worker}", name)
        taken = store.compare_set(f"place/{seat.worker}", "", name).decode() != name
        return None if taken else Meeting(seat, store, self.clock)

    def _missing(self, meeting: Meeting) -> int:
        """Return the first worker that is not there; the number of workers when all are."""
        workers = range(self.seat.workers)
        return next((each for each in workers if not meeting.store.check([f"place/{each}"])), self.seat.workers)

    def _pause(self) -> None:
        self.check()
        self.sleep(min(_BEAT_SECONDS, 0.2))
