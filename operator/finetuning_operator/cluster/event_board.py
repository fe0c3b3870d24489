"""What Events tell of things that do not start, read for a whole namespace at a time.

The server searches all Events of a namespace for each question about one object: with thousands of slow pods the
questions would cost it more than everything else. So all of them are read at once, and rarely where there are many.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from finetuning_operator.cluster.api import ListResult, TokenBucket
from finetuning_operator.cluster.errors import ApiError
from finetuning_operator.cluster.facts import moment, part, text
from finetuning_operator.cluster.jobview import seconds
from finetuning_operator.cluster.kinds import EVENT, KindRef

_LOGGER = logging.getLogger(__name__)
_SHORTEST_SECONDS = 1.0
"""What is read is used for this long at least."""
_PAUSE = 20.0
"""How many times as long as the reading took it is used: so reading takes a twentieth of the time at most."""
_EACH_SECONDS = 0.02
"""Who waits comes back one after the other, not all at once."""
_KEPT = 5
"""Events of one subject, the newest ones."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom Events are about: an object by its uid, or, where only that is known, by its kind and name."""

    uid: str = ""
    kind: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What is kept of an Event."""

    at: float
    reason: str
    message: str
    warning: bool

    @classmethod
    def read(cls, event: Mapping[str, object]) -> "Told":
        """Return what an Event tells, whatever it looks like."""
        series = moment(part(event, "series"), "lastObservedTime")
        single = moment(event, "lastTimestamp") or moment(event, "eventTime")
        return cls(
            at=seconds(series or single or moment(part(event, "metadata"), "creationTimestamp")),
            reason=sys.intern(text(event, "reason")),
            # A thousand pods wait for the same reason.
            message=sys.intern(text(event, "message")),
            warning=text(event, "type") != "Normal",
        )


class ListsEvents(Protocol):
    """The part of the API that is used here."""

    async def list(
        self,
        kind: KindRef,
        namespace: str | None = None,
        *,
        each: Callable[[dict[str, Any]], Any] | None = None,
    ) -> ListResult: ...


@dataclass(slots=True)
class _Board:
    """The Events of a namespace as they were at one moment."""

    until: float = 0.0
    """When it is too old."""
    took: float = 0.0
    told: dict[Subject, list[Told]] = field(default_factory=dict)
    waiting: int = 0
    """How many asked while it was being read."""
    reading: asyncio.Task[None] | None = None


class EventBoard:
    """Answers from what was read. ``ready`` is asked first, and has it read where it is too old."""

    def __init__(self, api: ListsEvents, turns: TokenBucket, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``turns`` are taken by each reading of a namespace."""
        self._api = api
        self._turns = turns
        self._clock = clock
        self._boards: dict[str, _Board] = {}

    def ready(self, namespace: str) -> float:
        """Return the seconds until the Events of a namespace can be looked at, 0 when they can."""
        board = self._boards.setdefault(namespace, _Board())
        if board.reading is None and self._clock() < board.until:
            return 0.0
        if board.reading is None:
            board.waiting = 0
            board.reading = asyncio.create_task(self._read(namespace, board), name=f"events of {namespace}")
        board.waiting += 1
        return max(_SHORTEST_SECONDS / 2, board.took) + board.waiting * _EACH_SECONDS

    def events(self, namespace: str, subject: Subject) -> Sequence[Told]:
        """Return the Events of an object as they were read last, newest first."""
        board = self._boards.get(namespace)
        return sorted(board.told.get(subject, ()), key=lambda told: told.at, reverse=True) if board else ()

    async def _read(self, namespace: str, board: _Board) -> None:
        await asyncio.sleep(self._turns.reserve())
        told: dict[Subject, list[Told]] = {}
        began = self._clock()
        try:
            await self._api.list(EVENT, namespace, each=lambda event: _note(told, event))
        except ApiError as error:
            # It is a courtesy: whoever asked learns nothing this time.
            _LOGGER.debug("the events of %s cannot be read: %s", namespace, error)
        ended = self._clock()
        board.told, board.took, board.reading = told, ended - began, None
        # Everybody who waited finds it, and what takes long is not done often.
        lasts = max(_SHORTEST_SECONDS + 2 * board.waiting * _EACH_SECONDS, _PAUSE * board.took)
        board.until = ended + lasts
        asyncio.get_running_loop().call_later(2 * lasts, self._drop, namespace, board)

    def _drop(self, namespace: str, board: _Board) -> None:
        """Forget what nobody asked for any more."""
        if board.reading is None and board.until <= self._clock() and self._boards.get(namespace) is board:
            del self._boards[namespace]


def _note(told: dict[Subject, list[Told]], event: Mapping[str, Any]) -> None:
    about, told_now = part(event, "involvedObject"), Told.read(event)
    for subject in (Subject(uid=text(about, "uid")), Subject(kind=text(about, "kind"), name=text(about, "name"))):
        kept = told.setdefault(subject, [])
        kept.append(told_now)
        if len(kept) > _KEPT:
            kept.remove(min(kept, key=lambda each: each.at))
