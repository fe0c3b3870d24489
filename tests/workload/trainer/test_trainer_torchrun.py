"""Trainings of several processes as they are run: launched, stopped, bereft of a rank, and told as one."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from tests.support.processes import wait_until
from tests.support.served import free_port
from tests.support.trained import break_base_model
from tests.support.training import Running, Workshop, quiet_context, start_trainer
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch lists nothing as exported

from finetuning_api.deepspeed import DeepSpeedSpec
from finetuning_api.finetuningjob import ParallelismSpec, ParallelStrategy
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import LastWords, TrainResult
from finetuning_trainer.meeting import Arrival, Failure, Loss, Meeting, Seat
from finetuning_trainer.torchrun import Course, End, result_of, run_training, seat_of
from finetuning_trainer.train import train_model
from finetuning_workload.errors import EnvironmentFault, Interrupted, ProgramError, UserError

ENDLESS: dict[str, Any] = {"epochs": 1000, "batch_size": 2}
TWO_PROCESSES = ParallelismSpec(processes_per_worker=2)
TWO_PROCESSES_OF_DEEPSPEED = ParallelismSpec(processes_per_worker=2, strategy=ParallelStrategy.DEEPSPEED)
TWO_WORKERS = ParallelismSpec(workers=2)
SHARED: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"strategy": ParallelStrategy.FSDP},
    "deepspeed stage 2": {"strategy": ParallelStrategy.DEEPSPEED, "deepspeed": DeepSpeedSpec(stage=2)},
    "deepspeed stage 3": {
        "strategy": ParallelStrategy.DEEPSPEED,
        "deepspeed": DeepSpeedSpec(stage=3, config={"zero_optimization": {"stage3_param_persistence_threshold": 0}}),
    },
}
"""How ranks share a training. Without a threshold no weight is too small to be divided."""
END_SECONDS = 60
"""An attempt that lost a rank is over within this time."""


@contextmanager
def killed_at_last(*trainers: Running) -> Iterator[None]:
    try:
        yield
    finally:
        for trainer in trainers:
            trainer.process.kill()
            trainer.process.wait()


def wait_for_steps(workshop: Workshop, *trainers: Running) -> None:
    course = workshop.checkpoints / "metrics.jsonl"

    def has_begun() -> bool:
        assert [trainer.process.poll() for trainer in trainers] == [None] * len(trainers)
        return course.exists() and len(course.read_text().splitlines()) > 3

    wait_until(has_begun, what="the first steps", seconds=120)


def rank_of(trainer: Running, local_rank: int) -> int:
    found = trainer.rank(local_rank)
    assert found is not None
    return found


def start_workers(
    workshop: Workshop,
    parallelism: ParallelismSpec = TWO_WORKERS,
    **training: Any,  # noqa: ANN401  (fields of TrainingSpec)
) -> tuple[Running, Running]:
    """Start two workers of one rank each, which meet on this machine."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    config = workshop.train_config(parallelism=parallelism, **training)
    one, two = (
        start_trainer(
            config, workshop.folder / f"worker-{worker}", environment={**meeting, "FINETUNING_WORKER": worker}
        )
        for worker in ("0", "1")
    )
    return one, two


@pytest.mark.parametrize(
    ("parallelism", "environment"),
    [
        (TWO_PROCESSES, {}),
        # Whatever DeepSpeed would have to compile fails here.
        (TWO_PROCESSES_OF_DEEPSPEED, {"PATH": "/no-programs", "CXX": "", "CC": ""}),
    ],
    ids=["ddp", "deepspeed-without-compiler"],
)
def test_processes_of_one_worker_train_together_and_stop_with_a_checkpoint(
    workshop: Workshop, parallelism: ParallelismSpec, environment: dict[str, str]
) -> None:
    config = workshop.train_config(parallelism=parallelism, **ENDLESS)
    trainer = start_trainer(config, workshop.folder, environment=environment)
    with killed_at_last(trainer):
        wait_for_steps(workshop, trainer)
        trainer.process.send_signal(signal.SIGTERM)
        ended = trainer.ended()

    assert (ended.code, ended.words.reason) == (ExitCode.INTERRUPTED, Reason.INTERRUPTED)
    (checkpoint,) = workshop.checkpoints.glob("step-*")
    assert ended.words.message.startswith(f"stopped at step {int(checkpoint.name.removeprefix('step-'))} of")
    assert "Traceback" not in ended.log


def test_settings_that_deepspeed_refuses_are_told_in_its_words(workshop: Workshop) -> None:
    spec = DeepSpeedSpec(stage=1, config={"zero_optimization": {"reduce_bucket_size": "large"}})
    divided = ParallelismSpec(processes_per_worker=2, strategy=ParallelStrategy.DEEPSPEED, deepspeed=spec)
    trainer = start_trainer(workshop.train_config(parallelism=divided), workshop.folder)
    with killed_at_last(trainer):
        ended = trainer.ended()

    assert (ended.code, ended.words.reason) == (ExitCode.USER_ERROR, Reason.INVALID_SPEC)
    assert "DeepSpeed refuses spec.parallelism.deepspeed.config" in ended.words.message
    assert "reduce_bucket_size" in ended.words.message


@pytest.mark.parametrize("strategy", SHARED)
def test_a_rank_that_is_killed_ends_the_attempt_by_its_name(workshop: Workshop, strategy: str) -> None:
    two_processes = ParallelismSpec(processes_per_worker=2, **SHARED[strategy])
    trainer = start_trainer(workshop.train_config(parallelism=two_processes, **ENDLESS), workshop.folder)
    with killed_at_last(trainer):
        wait_for_steps(workshop, trainer)
        os.kill(rank_of(trainer, 1), signal.SIGKILL)
        ended = trainer.ended(seconds=END_SECONDS)

    assert (ended.code, ended.words.reason) == (ExitCode.ENVIRONMENT, Reason.OUT_OF_MEMORY)
    assert ended.words.message.startswith("rank 1 was killed (SIGKILL)")


@pytest.mark.parametrize("strategy", ["deepspeed stage 2", "deepspeed stage 3"])
def test_a_base_model_with_broken_weights_is_told_of_as_by_one_process(workshop: Workshop, strategy: str) -> None:
    break_base_model(workshop)
    two_processes = ParallelismSpec(processes_per_worker=2, **SHARED[strategy])
    trainer = start_trainer(workshop.train_config(parallelism=two_processes), workshop.folder)
    with killed_at_last(trainer):
        ended = trainer.ended()

    assert (ended.code, ended.words.reason) == (ExitCode.USER_ERROR, Reason.LOSS_DIVERGED)
    assert "at step 1; no checkpoint was written yet" in ended.words.message
    assert "Traceback" not in ended.log


def never_stopped() -> None:
    """Nobody asks these to stop."""


def end(rank: int, code: int | None = None, **words: object) -> End:
    return End(rank, LastWords.model_validate(words) if words else None, code)


def one_worker() -> Meeting:
    return Arrival(Seat(0, 1, 2, address="127.0.0.1", port=0), never_stopped, patience=60).meet()


DIVERGED = {"reason": Reason.LOSS_DIVERGED, "message": "the training loss is nan", "hint": "lower it"}
LOST = {"reason": Reason.WORKER_LOST, "message": "rank 0 lost the other ranks: Connection closed by peer"}
STOPPED = {"reason": Reason.INTERRUPTED, "message": "stopped before the first step"}


@pytest.mark.parametrize(
    ("ends", "error", "reason", "message"),
    [
        ((end(0, 1, **DIVERGED), end(1, 1, **DIVERGED)), UserError, Reason.LOSS_DIVERGED, "the training loss is nan"),
        (
            (end(0, 203, **LOST), end(1, 1, **DIVERGED)),
            UserError,
            Reason.LOSS_DIVERGED,
            "rank 1: the training loss is nan",
        ),
        ((end(0, 203, **LOST), end(1, -11)), EnvironmentFault, Reason.CRASHED, "rank 1 was ended by SIGSEGV"),
        (
            (end(1, 7), end(0, 203, **LOST)),
            EnvironmentFault,
            Reason.CRASHED,
            "rank 1 ended with exit code 7 without a word",
        ),
        ((end(0, 203, **LOST), end(1, -15)), EnvironmentFault, Reason.WORKER_LOST, LOST["message"]),
        ((end(0, 203, **LOST), end(1, 143, **STOPPED)), Interrupted, Reason.INTERRUPTED, STOPPED["message"]),
        ((end(0), end(1)), Interrupted, Reason.INTERRUPTED, "the ranks were ended before they could save"),
    ],
)
def test_a_worker_tells_how_its_ranks_ended_and_names_the_one_to_blame(
    ends: tuple[End, ...], error: type[ProgramError], reason: Reason, message: str
) -> None:
    with pytest.raises(error) as raised:
        result_of(Course(ends, signalled=None), one_worker())
    assert (raised.value.reason, raised.value.message) == (reason, message)


def test_workers_meet_train_and_end_together(workshop: Workshop) -> None:
    one, two = start_workers(workshop)
    with killed_at_last(one, two):
        first, second = one.ended(), two.ended()

    assert (first.code, second.code) == (ExitCode.DONE, ExitCode.DONE)
    assert isinstance(first.words.result, TrainResult)
    assert second.words.result is None
    # A worker that comes back when all is done needs nobody.
    assert run_training(workshop.train_config(parallelism=TWO_WORKERS), quiet_context()) == first.words.result
    alone = Workshop(workshop.folder / "alone", workshop.model, workshop.data)
    train_model(alone.train_config(), quiet_context())
    theirs = [step["loss"] for step in workshop.history()]
    assert theirs == pytest.approx([step["loss"] for step in alone.history()], abs=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed stage 2", "deepspeed stage 3"])
def test_of_two_workers_the_one_whose_rank_died_is_to_blame_and_the_other_says_why_it_ends(
    workshop: Workshop, strategy: str
) -> None:
    one, two = start_workers(workshop, ParallelismSpec(workers=2, **SHARED[strategy]), **ENDLESS)
    with killed_at_last(one, two):
        wait_for_steps(workshop, one, two)
        os.kill(rank_of(two, 0), signal.SIGKILL)
        first, second = one.ended(seconds=END_SECONDS), two.ended(seconds=END_SECONDS)

    assert (second.code, second.words.reason) == (ExitCode.ENVIRONMENT, Reason.OUT_OF_MEMORY)
    assert second.words.message.startswith("rank 1 was killed (SIGKILL)")
    assert (first.code, first.words.reason) == (ExitCode.INTERRUPTED, Reason.INTERRUPTED)
    assert first.words.message.startswith("rank 1 failed: rank 1 was killed")


def test_one_worker_that_is_asked_to_stop_stops_both_after_a_checkpoint(workshop: Workshop) -> None:
    one, two = start_workers(workshop, **ENDLESS)
    with killed_at_last(one, two):
        wait_for_steps(workshop, one, two)
        two.process.send_signal(signal.SIGTERM)
        first, second = one.ended(), two.ended()

    assert (first.code, second.code) == (ExitCode.INTERRUPTED, ExitCode.INTERRUPTED)
    assert first.words.message == second.words.message
    assert "after a checkpoint" in first.words.message
    assert len(list(workshop.checkpoints.glob("step-*"))) == 1


def test_workers_that_lose_the_first_end_without_being_counted(workshop: Workshop) -> None:
    one, two = start_workers(workshop, **ENDLESS)
    with killed_at_last(one, two):
        wait_for_steps(workshop, one, two)
        rank = rank_of(one, 0)
        one.process.kill()
        os.kill(rank, signal.SIGKILL)
        ended = two.ended()

    assert (ended.code, ended.words.reason) == (ExitCode.INTERRUPTED, Reason.INTERRUPTED)
    assert ended.words.message == "worker 0 (rank 0) ended or cannot be reached any more"


def seats(processes: int = 2) -> tuple[Seat, Seat]:
    port = free_port()
    one, two = (Seat(worker, workers=2, processes=processes, address="127.0.0.1", port=port) for worker in range(2))
    return one, two


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self, on_sleep: Callable[[], None] = never_stopped) -> None:
        self.now = 0.0
        self._on_sleep = on_sleep

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._on_sleep()


def arrival(seat: Seat, clock: Clock) -> Arrival:
    return Arrival(seat, never_stopped, patience=2, clock=clock, sleep=clock.sleep)


def both_there(clock: Clock) -> tuple[Meeting, Meeting]:
    one, two = seats()
    second: list[Meeting] = []

    def come() -> None:
        if not second:
            store = TCPStore(
                "127.0.0.1", two.port, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False
            )
            store.set("sign/1", "there")
            store.set("place/1", "there")
            second.append(Meeting(two, store, clock))

    first = Arrival(one, never_stopped, patience=60, clock=clock, sleep=Clock(come).sleep).meet()
    return first, second[0]


def test_a_worker_that_does_not_come_is_named() -> None:
    one, _ = seats()
    clock = Clock()
    with pytest.raises(EnvironmentFault, match=r"worker 1 \(ranks 2 to 3\) did not come within 2 s") as error:
        arrival(one, clock).meet()
    assert error.value.reason is Reason.WORKER_LOST
    assert clock.now >= 2


def test_a_worker_waits_no_longer_when_it_is_asked_to_stop() -> None:
    one, _ = seats()

    def stopped() -> None:
        message = "stopped"
        raise Interrupted(message)

    with pytest.raises(Interrupted):
        Arrival(one, stopped, patience=60).meet()


def test_a_worker_that_comes_back_does_not_join_the_attempt_that_its_last_pod_was_in() -> None:
    clock = Clock()
    _first, second = both_there(clock)
    with pytest.raises(EnvironmentFault, match="did not come"):
        arrival(second.seat, clock).meet()


def test_a_worker_that_falls_silent_is_noticed_within_half_a_minute() -> None:
    clock = Clock()
    first, second = both_there(clock)
    assert first.loss() is None
    clock.now += 29
    assert second.loss() is None
    assert first.loss() is None
    clock.now += 29
    assert first.loss() is None
    clock.now += 2
    assert first.loss() == Loss("worker 1 (ranks 2 to 3) gave no sign of life for 30 s")


def test_the_first_failure_that_is_told_is_believed() -> None:
    first, second = both_there(Clock())
    second.tell(Failure(worker=1, message="rank 2 failed: no disk"))
    first.tell(Failure(worker=0, message="rank 0 failed: lost the others"))
    assert first.loss() == Loss("rank 2 failed: no disk", told=True)
    assert second.loss() is None


@pytest.mark.parametrize("environment", [{}, {"FINETUNING_WORKER": "1", "MASTER_ADDR": "demo-0"}])
def test_a_worker_that_is_not_told_which_it_is_says_what_is_missing(
    workshop: Workshop, environment: Mapping[str, str]
) -> None:
    with pytest.raises(EnvironmentFault, match=r"workers is 2, and .*MASTER_PORT is not set"):
        seat_of(workshop.train_config(parallelism=TWO_WORKERS), environment)


def test_a_worker_is_told_its_place_by_its_pod(workshop: Workshop) -> None:
    told = {"MASTER_ADDR": "demo-0.demo", "MASTER_PORT": "29500"}
    config = workshop.train_config(parallelism=TWO_WORKERS)
    assert seat_of(config, {**told, "FINETUNING_WORKER": "1"}) == Seat(1, 2, 1, address="demo-0.demo", port=29500)
    # The name of the first may not be known yet when it starts, not even to itself.
    assert seat_of(config, {**told, "FINETUNING_WORKER": "0"}).address == "127.0.0.1"


def test_one_process_needs_no_launcher(workshop: Workshop) -> None:
    result = run_training(workshop.train_config(), quiet_context())
    assert isinstance(result, TrainResult)
