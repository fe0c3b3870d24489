"""What a full collection of garbage searches, and when it searches all."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from finetuning_operator.cluster.garbage import search_all, survivors_spared


class Circle:
    """Holds itself, so that only the collector finds it when nobody else does."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collected_when_asked() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_what_survived_a_full_collection_is_searched_only_when_all_is_searched_again() -> None:
    circle = Circle()
    seen = weakref.ref(circle)
    with survivors_spared():
        gc.collect()
        del circle
        gc.collect()
        assert seen() is not None
        search_all()
        gc.collect()
        assert seen() is None


def test_what_came_since_is_collected_as_ever() -> None:
    with survivors_spared():
        gc.collect()
        seen = weakref.ref(Circle())
        gc.collect()
        assert seen() is None


def test_nothing_is_spared_afterwards() -> None:
    with survivors_spared():
        gc.collect()
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gc.get_freeze_count() == 0
