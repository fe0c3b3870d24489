"""When a changed status is written: at once what is awaited, together what comes together, rarely what merely moves."""

from typing import Any

import pytest

from finetuning_operator.cluster.statuses import ProgressBudget, StatusClock, Urgency, urgency


def status(*, percent: int = 0, message: str = "", loss: float = 1.0, **held: str) -> dict[str, Any]:
    return {
        "conditions": [{"type": name, "status": value, "reason": "Any"} for name, value in held.items()],
        "stages": [{"name": "train", "state": "Running", "percent": percent, "message": message}],
        "progress": {"percent": percent, "loss": loss},
    }


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (status(), Urgency.NONE),
        (status(percent=1), Urgency.PROGRESS),
        (status(loss=0.5), Urgency.PROGRESS),
        (status(Trained="True"), Urgency.ORDINARY),
        (status(message="waits for node-b"), Urgency.ORDINARY),
        (status(Complete="True"), Urgency.AT_ONCE),
        (status(Failed="True"), Urgency.AT_ONCE),
        (status(Ready="True"), Urgency.AT_ONCE),
        (status(Ready="False"), Urgency.ORDINARY),
        (status() | {"artifacts": {"model": {"digest": "sha256:1"}}}, Urgency.ORDINARY),
        (status() | {"artifacts": {"adapter": {"digest": "sha256:1"}}}, Urgency.AT_ONCE),
        (status() | {"idle": {"since": "2026-03-01T12:00:00Z"}}, Urgency.AT_ONCE),
        ({}, Urgency.ORDINARY),
    ],
)
def test_how_soon_a_change_must_be_seen(new: dict[str, Any], expected: Urgency) -> None:
    assert urgency(status(), new) is expected


def test_a_message_in_which_only_numbers_move_is_progress() -> None:
    assert urgency(status(message="model (4 %)"), status(message="model (17.5 %)")) is Urgency.PROGRESS


def test_ordinary_changes_share_a_write_after_the_delay_of_the_first() -> None:
    clock = StatusClock()
    assert clock.wait(status(), status(Trained="True"), now=10.0, delay=1.0) == 1.0
    assert clock.wait(status(), status(Trained="True", Evaluated="True"), now=10.75, delay=1.0) == 0.25
    assert clock.wait(status(), status(Trained="True", Evaluated="True"), now=11.5, delay=1.0) == 0.0
    clock.wrote(11.5)
    assert clock.wait(status(), status(Trained="True"), now=20.0, delay=1.0) == 1.0


def test_a_change_that_is_taken_back_before_its_write_is_forgotten() -> None:
    clock = StatusClock()
    clock.wait(status(), status(Trained="True"), now=10.0, delay=1.0)
    assert clock.wait(status(), status(), now=10.5, delay=1.0) is None
    assert clock.wait(status(), status(Trained="True"), now=15.0, delay=1.0) == 1.0


def test_the_end_is_written_at_once_even_while_another_change_is_held() -> None:
    clock = StatusClock()
    clock.wait(status(), status(Trained="True"), now=10.0, delay=1.0)
    assert clock.wait(status(), status(Complete="True"), now=10.0, delay=1.0) == 0.0


def test_progress_of_less_than_a_percent_waits_for_a_quarter_of_a_minute() -> None:
    clock = StatusClock()
    clock.wrote(10.0)
    assert clock.wait(status(), status(loss=0.5), now=12.0, delay=1.0) == 13.0
    assert clock.wait(status(), status(percent=1), now=12.0, delay=1.0) == 1.0


def test_progress_is_due_at_the_turn_that_it_was_given_however_late_it_is_seen() -> None:
    clock = StatusClock()
    clock.wrote(10.0)
    clock.turn = 50.0
    assert clock.wait(status(), status(percent=1), now=40.0, delay=1.0) == 10.0
    assert clock.wait(status(), status(percent=1), now=50.0, delay=1.0) == 0.0


def test_progress_of_all_objects_shares_one_budget() -> None:
    budget = ProgressBudget(per_second=4.0)
    first, second, third = StatusClock(), StatusClock(), StatusClock()
    assert [budget.wait(held, 100.0) for held in (first, second, third)] == [0.0, 0.25, 0.5]
    # Each keeps its turn however often it asks, and gets another one only after its write.
    assert [budget.wait(held, 100.25) for held in (third, second)] == [0.25, 0.0]
    second.wrote(100.25)
    assert budget.wait(second, 100.25) == 0.5


def test_a_thousand_waiting_objects_are_looked_at_twice_for_a_write() -> None:
    budget = ProgressBudget(per_second=10.0)
    objects = [StatusClock() for _ in range(1000)]
    waits = [budget.wait(held, 0.0) for held in objects]
    assert waits[-1] == pytest.approx(99.9)
    assert [budget.wait(held, wait) for held, wait in zip(objects, waits, strict=True)] == [0.0] * 1000
