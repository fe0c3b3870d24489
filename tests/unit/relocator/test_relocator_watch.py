"""Every wait ends: with what is waited for, with a stop, or with a stall."""

import threading
from collections.abc import Generator, Iterator

import pytest

from finetuning_api.reasons import Reason
from finetuning_relocator.faults import not_found, unavailable, unreachable
from finetuning_relocator.fetch import ask
from finetuning_relocator.watch import Watch
from finetuning_workload.errors import EnvironmentFault, Interrupted, ProgramError, UserError
from finetuning_workload.program import StopFlag


def watch(*, stall_seconds: float = 30.0) -> Watch:
    return Watch(StopFlag(), stall_seconds)


def test_items_come_in_order() -> None:
    assert list(watch().stream(lambda: iter(range(100)), what="numbers")) == list(range(100))


def test_a_failure_of_the_producer_is_raised_after_its_items() -> None:
    def produce() -> Iterator[int]:
        yield 1
        message = "broken"
        raise ValueError(message)

    stream = watch().stream(produce, what="numbers")
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)


def test_nothing_for_too_long_is_a_stall() -> None:
    released = threading.Event()

    def hang() -> Iterator[int]:
        yield 1
        released.wait()

    with pytest.raises(EnvironmentFault) as fault:
        list(watch(stall_seconds=0.2).stream(hang, what="the model"))
    released.set()
    assert fault.value.reason is Reason.DOWNLOAD_STALLED
    assert "the model" in fault.value.message


def test_a_stop_ends_a_wait_for_a_producer_that_hangs() -> None:
    waiting, released = watch(), threading.Event()

    def hang() -> Iterator[int]:
        waiting.stop.set()
        released.wait()
        yield 1

    with pytest.raises(Interrupted):
        list(waiting.stream(hang, what="the model"))
    released.set()


def test_zero_bytes_are_a_sign_of_life_but_no_progress() -> None:
    def idle() -> Generator[int, None, None]:
        while True:
            yield 0

    with pytest.raises(EnvironmentFault) as fault:
        list(watch(stall_seconds=0.1).counts(idle(), what="the wheel"))
    assert fault.value.reason is Reason.DOWNLOAD_STALLED


@pytest.mark.parametrize(
    ("failure", "tries"),
    [
        (unreachable("host", "refused"), 2),
        (unavailable("source", "503"), 3),
        (not_found("source"), 1),
        (EnvironmentFault(Reason.DISK_FULL, "full"), 1),
    ],
)
def test_a_question_is_asked_again_only_where_that_can_help(
    failure: ProgramError, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetuning_relocator.fetch._BACKOFF_SECONDS", 0.0)
    asked = []

    def question() -> None:
        asked.append(1)
        raise failure

    with pytest.raises((UserError, EnvironmentFault)) as raised:
        ask(question, watch=watch(), what="source")
    assert (raised.value, len(asked)) == (failure, tries)
