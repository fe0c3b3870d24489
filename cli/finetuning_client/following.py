"""Follows one object through a watch that may end, go silent or break at any time."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finetuning_client.api import Api, Kind, Object
from finetuning_client.errors import ClusterError, NotFoundError, UnavailableError, UnreachableError, WaitTimeoutError

_WATCH_SECONDS = 55
"""A watch is renewed this often: a connection that has gone silent is noticed."""
_PATIENCE_SECONDS = 120.0
"""How long a cluster that answered before may be away, for example while its API server restarts."""
_PAUSE_SECONDS = 1.0


@dataclass(slots=True)
class Deadline:
    """A point in time, or none."""

    seconds: float | None
    clock: Callable[[], float] = time.monotonic
    _start: float = 0.0

    def __post_init__(self) -> None:
        self._start = self.clock()

    def left(self) -> float:
        """Return the seconds that are left; infinity without a limit."""
        return math.inf if self.seconds is None else self.seconds - (self.clock() - self._start)


def follow(api: Api, kind: Kind, name: str, *, deadline: Deadline) -> Iterator[Object]:
    """Yield an object now and after every change.

    Raises NotFoundError when it is not there or is deleted, WaitTimeoutError at the deadline, and what stands in the
    way of the cluster when that lasts.
    """
    away = Deadline(_PATIENCE_SECONDS)
    answered = False
    told = ""
    while True:
        try:
            current = api.get(kind, name)
            answered, away = True, Deadline(_PATIENCE_SECONDS)
            if current["metadata"]["resourceVersion"] != told:
                told = current["metadata"]["resourceVersion"]
                yield current
            for item in _changes(api, kind, name, version=told, deadline=deadline):
                told = item["metadata"]["resourceVersion"]
                yield item
        except (UnreachableError, UnavailableError):
            if not answered or away.left() <= 0:
                raise
            time.sleep(max(0.0, min(_PAUSE_SECONDS, deadline.left())))
        if deadline.left() <= 0:
            raise WaitTimeoutError(f"{kind.name} {name} did not get there within {deadline.seconds:g} s")


def _changes(api: Api, kind: Kind, name: str, *, version: str, deadline: Deadline) -> Iterator[Object]:
    """Yield the changes that one watch tells; it ends when the server ends it or cannot go on from the version."""
    seconds = max(1, math.ceil(min(deadline.left(), _WATCH_SECONDS)))
    for event, item in api.watch(kind, name, version=version, seconds=seconds):
        if event == "ERROR":
            return
        if event == "DELETED":
            raise NotFoundError(f"{kind.name} {name} was deleted")
        yield item
        if deadline.left() <= 0:
            return


def first(items: Iterator[Object], wanted: Callable[[Object], bool]) -> Object:
    """Return the first object that is wanted."""
    for item in items:
        if wanted(item):
            return item
    raise ClusterError("the object is no longer told of")
