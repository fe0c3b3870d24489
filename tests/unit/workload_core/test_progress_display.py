"""The reporter on a log: few lines, honest numbers."""

from io import StringIO

import pytest

from finetuning_workload.progress import Reporter, remaining_seconds


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_every_few_seconds_and_at_the_end() -> None:
    stream, clock = StringIO(), Clock()
    reporter = Reporter("train", stream=stream, clock=clock)
    for step in range(101):
        reporter.update(step / 100, note=f"step {step}")
        clock.now += 0.125
    reporter.close()
    lines = stream.getvalue().splitlines()
    assert lines == ["train: 0% step 0", "train: 40% step 40", "train: 80% step 80", "train: 100% step 100"]


def test_a_fraction_stays_between_nothing_and_all() -> None:
    stream = StringIO()
    reporter = Reporter("train", stream=stream, clock=Clock())
    reporter.update(-1.0)
    reporter.update(7.0)
    reporter.close()
    assert stream.getvalue().splitlines() == ["train: 0%", "train: 100%"]


def test_resumed_work_is_timed_from_where_it_went_on() -> None:
    assert remaining_seconds((100.0, 0.5), 110.0, 0.6) == pytest.approx(40.0)
    assert remaining_seconds((100.0, 0.5), 100.0, 0.5) is None
