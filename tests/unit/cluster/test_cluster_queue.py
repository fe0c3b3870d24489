"""The work queue: one key in one hand, delays, backoff."""

import asyncio
from collections.abc import Callable

import pytest

from finetuning_operator.cluster.queue import WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def queue(clock: Callable[[], float], *, jitter: float = 0.0) -> WorkQueue[str]:
    return WorkQueue(clock=clock, jitter=lambda: jitter)


def drained(waiting: WorkQueue[str]) -> list[str]:
    taken = []
    while (key := waiting.pop()) is not None:
        taken.append(key)
        waiting.done(key)
    return taken


def test_keys_are_handed_out_in_order_and_once() -> None:
    waiting = queue(Clock())
    for key in ("a", "b", "a", "c", "b"):
        waiting.add(key)
    assert waiting.depth == 3
    assert drained(waiting) == ["a", "b", "c"]


def test_a_key_added_during_its_work_is_handed_out_once_more_and_never_to_two_workers() -> None:
    waiting = queue(Clock())
    waiting.add("a")
    assert waiting.pop() == "a"
    waiting.add("a")
    waiting.add("a")
    assert waiting.pop() is None
    waiting.done("a")
    assert waiting.pop() == "a"
    waiting.done("a")
    assert waiting.pop() is None


def test_a_delayed_key_is_due_at_the_earliest_time_that_was_asked_for() -> None:
    clock = Clock()
    waiting = queue(clock)
    waiting.add_after("a", 10.0)
    waiting.add_after("a", 5.0)
    waiting.add_after("a", 7.0)
    assert waiting.next_due_seconds == 5.0
    clock.now += 4.9
    assert waiting.pop() is None
    clock.now += 0.1
    assert drained(waiting) == ["a"]
    clock.now += 100.0
    assert drained(waiting) == []


def test_a_key_that_is_added_at_once_takes_its_delay_back() -> None:
    clock = Clock()
    waiting = queue(clock)
    waiting.add_after("a", 5.0)
    waiting.add("a")
    assert drained(waiting) == ["a"]
    clock.now += 5.0
    assert drained(waiting) == []
    assert waiting.next_due_seconds is None


def test_a_delay_asked_for_during_work_is_kept() -> None:
    clock = Clock()
    waiting = queue(clock)
    waiting.add("a")
    assert waiting.pop() == "a"
    waiting.add_after("a", 1.0)
    waiting.done("a")
    assert waiting.pop() is None
    clock.now += 1.0
    assert waiting.pop() == "a"


def test_backoff_doubles_to_a_minute_and_starts_over_after_success() -> None:
    waiting = queue(Clock())
    seconds = [waiting.add_failed("a") for _ in range(16)]
    assert seconds[:4] == [0.01, 0.02, 0.04, 0.08]
    assert seconds[-2:] == [60.0, 60.0]
    assert waiting.failures("a") == 16
    waiting.forget("a")
    assert waiting.add_failed("a") == 0.01


def test_jitter_shortens_a_backoff_by_at_most_half() -> None:
    assert queue(Clock(), jitter=1.0).add_failed("a") == 0.005


def test_the_longest_running_work_is_told() -> None:
    clock = Clock()
    waiting = queue(clock)
    waiting.add("a")
    waiting.add("b")
    waiting.pop()
    clock.now += 3.0
    waiting.pop()
    clock.now += 2.0
    assert (waiting.longest_running_seconds, waiting.working, waiting.depth) == (5.0, 2, 0)
    waiting.done("a")
    assert waiting.longest_running_seconds == 2.0


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_that_wait_get_every_key_and_end_when_the_queue_closes(workers: int) -> None:
    async def work() -> list[str]:
        waiting: WorkQueue[str] = WorkQueue()
        taken: list[str] = []

        async def worker() -> None:
            while (key := await waiting.get()) is not None:
                taken.append(key)
                waiting.done(key)
                if len(taken) == 4:
                    waiting.close()

        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(worker())
            await asyncio.sleep(0)
            waiting.add_after("late", 0.001)
            for key in ("a", "b", "c"):
                waiting.add(key)
        return sorted(taken)

    assert asyncio.run(work()) == ["a", "b", "c", "late"]


def test_a_closed_queue_takes_and_gives_nothing() -> None:
    waiting = queue(Clock())
    waiting.add("a")
    waiting.close()
    waiting.add("b")
    assert waiting.pop() is None
    assert asyncio.run(waiting.get()) is None
