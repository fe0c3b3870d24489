"""A training of several processes: torch's own launcher starts them, and what became of them is told as one."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import (
    MASTER_ADDRESS_ENV,
    MASTER_PORT_ENV,
    WORKER_ENV,
    LastWords,
    TrainConfig,
    TrainResult,
)
from finetuning_trainer.group import ranks_of
from finetuning_trainer.meeting import Arrival, Failure, Meeting, Seat
from finetuning_trainer.preferences import with_objective
from finetuning_trainer.rank import words_path
from finetuning_trainer.train import already_trained, prepare_data, train_model
from finetuning_workload.errors import EnvironmentFault, Interrupted, ProgramError, UserError
from finetuning_workload.program import Context

_LOG = logging.getLogger(__name__)
_MEETING_SECONDS = 1800.0
"""How long workers wait for each other: images are pulled and nodes are started meanwhile."""
_GRACE_SECONDS = 110
"""How long ranks may take to save after SIGTERM; the pod has 120 s."""
_GIVE_UP = signal.SIGUSR1
"""Ends ranks at once, without a checkpoint: they wait for a worker that is gone."""


def run_training(config: TrainConfig, context: Context) -> TrainResult | None:
    """Train with as many processes as the RunConfig says.

    Worker 0 returns the result. Raises what one process would raise, with the rank named where not all say the same.
    """
    parallelism = config.parallelism
    if parallelism.workers * parallelism.processes_per_worker == 1:
        return train_model(with_objective(config), context)
    finished = already_trained(config)
    if finished is not None:
        return finished
    seat = seat_of(config, context.environment)
    if seat.worker == 0:
        # Once, and before anybody waits for anybody.
        prepare_data(config)
    arrival = Arrival(
        seat, lambda: context.stop.raise_if_set("stopped before all workers were there"), _MEETING_SECONDS
    )
    meeting = arrival.meet()
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        return _launched(meeting, Path(folder), context)


def seat_of(config: TrainConfig, environment: Mapping[str, str]) -> Seat:
    """Return which worker this is. Raises EnvironmentFault where one of several is not told."""
    parallelism = config.parallelism
    workers, processes = parallelism.workers, parallelism.processes_per_worker
    if workers == 1:
        return Seat(worker=0, workers=1, processes=processes, address="127.0.0.1", port=0)
    names = (WORKER_ENV, MASTER_ADDRESS_ENV, MASTER_PORT_ENV)
    lacking = [name for name in names if not environment.get(name)]
    if lacking:
        message = f"spec.parallelism.workers is {workers}, and {', '.join(lacking)} is not set"
        raise EnvironmentFault(Reason.INTERNAL, message, "Workers are started by the operator.")
    worker, address, port = (environment[name] for name in names)
    # The first is the place itself: its name is known only when the cluster's DNS has learnt of its pod.
    place = "127.0.0.1" if worker == "0" else address
    return Seat(worker=int(worker), workers=workers, processes=processes, address=place, port=int(port))


@dataclass(frozen=True, slots=True)
class End:
    """How a rank ended."""

    rank: int
    words: LastWords | None
    code: int | None
    """Negative for a signal; None where it was not told."""

    @property
    def reason(self) -> Reason | None:
        """What the rank said."""
        return self.words.reason if self.words else None

    @property
    def is_to_blame(self) -> bool:
        """Whether it failed by itself, and neither because it was asked to end nor because another rank did."""
        if self.words is not None:
            return self.words.reason not in {Reason.SUCCEEDED, Reason.INTERRUPTED, Reason.WORKER_LOST}
        return self.code is not None and self.code not in {0, -signal.SIGTERM, -_GIVE_UP}


@dataclass(frozen=True, slots=True)
class Course:
    """How the ranks of a worker ended, those first that ended first."""

    ends: tuple[End, ...]
    signalled: signal.Signals | None
    """What this launcher was sent."""


def _launched(meeting: Meeting, folder: Path, context: Context) -> TrainResult | None:
    """Run the ranks of this worker to their end."""
    codes: dict[int, int] = {}
    signalled: signal.Signals | None = None
    # Until the launcher takes it, it must not end this process.
    signal.signal(_GIVE_UP, signal.SIG_IGN)
    try:
        with meeting.watched(_give_up):
            rank = elastic_launch(_launch_config(meeting, folder), sys.executable)
            rank("-P", "-m", "finetuning_trainer.rank", str(folder))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    except SignalException as error:
        signalled = error.sigval
    finally:
        context.stop.install()
    seat = meeting.seat
    ranks = ranks_of(seat.worker, processes=seat.processes)
    in_order = [*codes, *(rank for rank in ranks if rank not in codes)]
    ends = (End(rank, _read_words(words_path(folder, rank - ranks.start)), codes.get(rank)) for rank in in_order)
    return result_of(Course(tuple(ends), signalled), meeting)


def _give_up() -> bool:
    """End the ranks at once; return whether they were there to be ended."""
    if signal.getsignal(_GIVE_UP) is signal.SIG_IGN:
        return False
    os.kill(os.getpid(), _GIVE_UP)
    return True


def _launch_config(meeting: Meeting, folder: Path) -> LaunchConfig:
    seat = meeting.seat
    return LaunchConfig(
        min_nodes=seat.workers,
        max_nodes=seat.workers,
        nproc_per_node=seat.processes,
        run_id="training",
        role="rank",
        # Ranks follow from the worker's number, so that a rank is always in the same pod.
        rdzv_backend="static",
        rdzv_endpoint=f"{seat.address}:{meeting.port}",
        rdzv_configs={"rank": seat.worker, "timeout": int(_MEETING_SECONDS)},
        # An attempt is over when a rank is: the next one begins with new processes, from the last checkpoint.
        max_restarts=0,
        signals_to_handle=f"SIGTERM,SIGINT,{_GIVE_UP.name}",
        shutdown_timeout=_GRACE_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "torch")),
    )


def _read_words(path: Path) -> LastWords | None:
    try:
        return LastWords.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def result_of(course: Course, meeting: Meeting) -> TrainResult | None:
    """Return the result of the first rank, where it is one of these; raise what the ranks ended of."""
    ends, worker = course.ends, meeting.seat.worker
    if all(end.reason is Reason.SUCCEEDED for end in ends):
        results = (end.words.result for end in ends if end.words)
        return next((result for result in results if isinstance(result, TrainResult)), None)
    culprit = next((end for end in ends if end.is_to_blame), None)
    if culprit is not None:
        error = _own_failure(culprit, alike=len({end.words for end in ends}) == 1)
        meeting.tell(Failure(worker=worker, message=f"rank {culprit.rank} failed: {error.message}"))
        raise error
    stopped = [end.words.message for end in ends if end.words and end.reason is Reason.INTERRUPTED]
    if stopped or course.signalled in {signal.SIGTERM, signal.SIGINT}:
        # Ranks know it of each other; those that lost these instead need not wait for signs of life.
        meeting.tell(Failure(worker=worker, message=f"worker {worker} was asked to stop"))
        raise Interrupted(stopped[0] if stopped else "stopped before a checkpoint was written")
    lost = next((end.words for end in ends if end.reason is Reason.WORKER_LOST), None)
    if lost is not None or course.signalled is _GIVE_UP:
        raise _others_failure(meeting, lost)
    message = "the ranks were ended before they could save"
    raise Interrupted(message)


def _own_failure(end: End, *, alike: bool) -> ProgramError:
    """Return what a rank failed of; it is named unless all of them say the same."""
    name = "" if alike else f"rank {end.rank}: "
    if end.words is not None:
        kind = UserError if end.code == ExitCode.USER_ERROR else EnvironmentFault
        return kind(end.words.reason, f"{name}{end.words.message}", end.words.hint)
    if end.code == -signal.SIGKILL:
        message = f"rank {end.rank} was killed (SIGKILL), most likely because the worker ran out of memory"
        hint = "Raise spec.resources.limits.memory, or lower spec.parallelism.processesPerWorker or batchSize."
        return EnvironmentFault(Reason.OUT_OF_MEMORY, message, hint)
    code = end.code or 0
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} without a word"
    return EnvironmentFault(Reason.CRASHED, f"rank {end.rank} {how}", "The log of its worker has the details.")


def _others_failure(meeting: Meeting, lost: LastWords | None) -> ProgramError:
    """Return why this worker ends although nothing failed here.

    One worker counts the attempt: the one that failed or, where none could tell, the first.
    """
    loss = meeting.told_loss()
    message = loss.message if loss else (lost.message if lost else "another rank is gone")
    if meeting.seat.worker > 0 or (loss and loss.told):
        return Interrupted(message)
    hint = "Look at the pod of that worker and at its node; the training goes on from its last checkpoint."
    return EnvironmentFault(Reason.WORKER_LOST, message, hint)
