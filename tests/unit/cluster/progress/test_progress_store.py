from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.support.progress import OWNER, TRAIN

from finetuning_api.base import ProgressStatus
from finetuning_api.runconfig import TrainerMetric, TrainerStatus
from finetuning_operator.cluster.progress.address import Owner, ProgressKey
from finetuning_operator.cluster.progress.limits import RateLimit
from finetuning_operator.cluster.progress.store import ProgressStore, worth_writing

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def _at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def _status(percent: int, *, at: float = 0, **metrics: float) -> TrainerStatus:
    told = tuple(TrainerMetric(name=name, value=str(value)) for name, value in metrics.items())
    return TrainerStatus(last_updated_time=_at(at), progress_percentage=percent, metrics=told)


class Listener:
    def __init__(self, *, capacity: int = 100) -> None:
        self.heard: list[ProgressKey] = []
        self.store = ProgressStore(self.heard.append, capacity=capacity)

    def count_of(self, *statuses: TrainerStatus) -> int:
        """Return how often a change was told for these reports."""
        before = len(self.heard)
        for status in statuses:
            self.store.put(TRAIN, status, uid=OWNER.uid)
        return len(self.heard) - before


def _written(percent: int = 10, *, at: float = 0, step: int | None = None, loss: float | None = None) -> ProgressStatus:
    return ProgressStatus(percent=percent, step=step, loss=loss, updated_at=_at(at))


@pytest.mark.parametrize(
    ("last", "new", "now", "worth"),
    [
        pytest.param(None, _written(0), 0, True, id="never written"),
        pytest.param(ProgressStatus(), _written(0), 0, True, id="written without a time"),
        pytest.param(_written(10), _written(11, at=1), 1, True, id="one percent more"),
        pytest.param(_written(10), _written(3, at=1), 1, True, id="fewer percent, after a restart"),
        pytest.param(_written(10), _written(10, at=14.9), 14.9, False, id="too soon"),
        pytest.param(_written(10), _written(10, at=1), 15, True, id="late enough"),
        pytest.param(_written(10), _written(10, at=1, step=4), 1, True, id="first step"),
        pytest.param(_written(10, step=4), _written(10, at=1, step=5), 1, False, id="next step, too soon"),
        pytest.param(_written(10), _written(10, at=1, loss=2.5), 1, True, id="first loss"),
        pytest.param(_written(10, loss=2.5), _written(10, at=1, loss=2.4), 1, False, id="next loss, too soon"),
        pytest.param(_written(10), _written(10), 100, False, id="nothing new"),
        pytest.param(_written(10, at=3600), _written(10), 0, True, id="clock set back"),
    ],
)
def test_pure_progress_is_written_when_it_tells_enough(
    last: ProgressStatus | None, new: ProgressStatus, now: float, *, worth: bool
) -> None:
    assert worth_writing(last, new, now=_at(now)) is worth


def test_the_newest_report_is_kept() -> None:
    store = ProgressStore()
    store.put(TRAIN, _status(1), uid=OWNER.uid)
    store.put(TRAIN, _status(2, at=1), uid=OWNER.uid)

    assert store.get(TRAIN, uid=OWNER.uid) == _status(2, at=1)
    assert store.get(replace(TRAIN, step="evaluate"), uid=OWNER.uid) is None


def test_an_object_made_again_under_its_name_starts_anew() -> None:
    listener = Listener()
    listener.count_of(_status(90))

    assert listener.store.get(TRAIN, uid="uid-2") is None
    listener.store.put(TRAIN, _status(90, at=1), uid="uid-2")
    assert listener.heard == [TRAIN, TRAIN]
    assert listener.store.get(TRAIN, uid=OWNER.uid) is None


def test_many_reports_within_a_percent_are_told_once_in_fifteen_seconds() -> None:
    listener = Listener()

    assert listener.count_of(*(_status(10, at=second) for second in range(60))) == 4


def test_a_thousand_reports_from_nothing_to_the_end_are_told_once_a_percent() -> None:
    listener = Listener()

    assert listener.count_of(*(_status(index // 10, at=index / 100) for index in range(1001))) == 101


def test_what_was_written_before_a_restart_is_taken_over_quietly_and_never_over_a_report() -> None:
    listener = Listener()
    listener.store.seed(TRAIN, _status(40), uid=OWNER.uid)

    assert listener.heard == []
    assert listener.store.get(TRAIN, uid=OWNER.uid) == _status(40)
    assert listener.count_of(_status(40, at=2)) == 0
    assert listener.count_of(_status(41, at=4)) == 1
    listener.store.seed(TRAIN, _status(0), uid=OWNER.uid)
    assert listener.store.get(TRAIN, uid=OWNER.uid) == _status(41, at=4)


def test_a_forgotten_object_leaves_nothing_and_its_successor_stays() -> None:
    store = ProgressStore()
    other = replace(TRAIN, name="other")
    for key, uid in ((TRAIN, OWNER.uid), (replace(TRAIN, step="evaluate"), "uid-2"), (other, "uid-3")):
        store.put(key, _status(1), uid=uid)

    store.forget(OWNER)
    store.forget(OWNER)

    assert len(store) == 2
    assert store.get(TRAIN, uid=OWNER.uid) is None
    store.forget(Owner("team-a", "FineTuningJob", "triage", "uid-2"))
    store.forget(Owner("team-a", "FineTuningJob", "other", "uid-3"))
    assert len(store) == 0
    assert store._steps == {}


def test_the_store_is_bounded_and_who_was_silent_longest_goes_first() -> None:
    store = ProgressStore(capacity=2)
    keys = [replace(TRAIN, name=name) for name in ("a", "b", "c")]
    for key in (keys[0], keys[1], keys[0], keys[2]):
        store.put(key, _status(1), uid=OWNER.uid)

    assert [store.get(key, uid=OWNER.uid) is not None for key in keys] == [True, False, True]
    assert len(store) == 2


def test_one_object_with_many_step_names_pushes_out_nobody_else() -> None:
    store = ProgressStore(capacity=40)
    other = replace(TRAIN, name="other")
    store.put(other, _status(1), uid="uid-2")
    for index in range(100):
        store.put(replace(TRAIN, step=f"step-{index}"), _status(1), uid=OWNER.uid)

    assert store.get(other, uid="uid-2") is not None
    assert len(store) == 33


def test_a_limit_allows_its_burst_at_once_and_its_rate_at_length() -> None:
    now = [0.0]
    limit = RateLimit(rate=10, burst=5, clock=lambda: now[0])

    assert [limit.allows() for _ in range(6)] == [True] * 5 + [False]
    now[0] = 0.1
    assert [limit.allows() for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert sum(limit.allows() for _ in range(10)) == 5


def test_a_clock_that_goes_back_allows_nothing_more() -> None:
    now = [10.0]
    limit = RateLimit(rate=1, burst=1, clock=lambda: now[0])
    limit.allows()
    now[0] = 0.0

    assert limit.allows() is False
