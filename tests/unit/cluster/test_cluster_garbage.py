"""What a full collection of garbage searches, and when it searches all."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from finetuning_operator.cluster.garbage import SparingCollector


class Circle:
    """Holds itself, so that only the collector finds it when nobody else does."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collected_when_asked() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def collector() -> SparingCollector:
    return SparingCollector()


def circles(count: int) -> list[weakref.ref[Circle]]:
    """Make and leave so many objects that the next full collection finds alive, and return where each was."""
    made = [Circle() for _ in range(count)]
    gc.collect()
    return [weakref.ref(each) for each in made]


def test_what_survived_a_full_collection_is_searched_again_once_much_more_was_spared(
    collector: SparingCollector,
) -> None:
    with collector.sparing():
        gc.collect()
        few = circles(10)
        collector.search_if_grown()
        gc.collect()
        assert all(each() is not None for each in few)
        many = circles(gc.get_freeze_count())
        collector.search_if_grown()
        gc.collect()
        assert all(each() is None for each in (*few, *many))


def test_after_a_search_of_everything_growth_counts_from_what_it_left(collector: SparingCollector) -> None:
    with collector.sparing():
        gc.collect()
        circles(gc.get_freeze_count())
        collector.search_if_grown()
        gc.collect()
        few = circles(10)
        collector.search_if_grown()
        gc.collect()
        assert all(each() is not None for each in few)


def test_what_came_since_is_collected_as_ever(collector: SparingCollector) -> None:
    with collector.sparing():
        gc.collect()
        seen = weakref.ref(Circle())
        gc.collect()
        assert seen() is None


def test_it_collects_by_itself(collector: SparingCollector) -> None:
    async def run() -> bool:
        collecting = asyncio.create_task(collector.run(every=0.0))
        seen = weakref.ref(Circle())
        for _ in range(3):
            await asyncio.sleep(0)
        collecting.cancel()
        return seen() is None

    assert asyncio.run(run())


def test_nothing_is_spared_afterwards(collector: SparingCollector) -> None:
    with collector.sparing():
        gc.collect()
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gc.get_freeze_count() == 0
