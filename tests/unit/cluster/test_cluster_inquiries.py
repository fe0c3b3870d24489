"""Questions of many objects at once: Events are read for all of them together, queues are asked in turn."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.support.batch import Object, after, batch_job, condition, ended_pod, stamp, waiting_pod

from finetuning_api.reasons import Reason
from finetuning_operator.cluster.api import ListResult, TokenBucket
from finetuning_operator.cluster.errors import ApiError, Forbidden
from finetuning_operator.cluster.event_board import EventBoard, Subject
from finetuning_operator.cluster.inquiries import Answers, Inquirer
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import KindRef
from finetuning_operator.cluster.view import StepJob

FAILED = condition("Failed", reason="BackoffLimitExceeded", at=60)


def event(reason: str, message: str = "", *, uid: str = "demo-train-1-uid", at: float = 0) -> Object:
    about = {"kind": "Pod", "name": "demo-train-1", "uid": uid}
    return {
        "reason": reason,
        "message": message,
        "type": "Warning",
        "lastTimestamp": stamp(at),
        "involvedObject": about,
    }


@dataclass
class Archive:
    """An API that has some Events, takes its time to list them, and remembers what it was asked."""

    events: Sequence[Object] = ()
    error: ApiError | None = None
    asked: list[str] = field(default_factory=list)
    takes: Callable[[], None] = lambda: None

    async def list(
        self,
        kind: KindRef,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,  # noqa: ARG002  (the signature of the API)
        field_selector: str | None = None,  # noqa: ARG002
        each: Callable[[dict[str, Any]], Any] | None = None,
    ) -> ListResult:
        self.asked.append(f"{kind.plural} {namespace}")
        self.takes()
        if self.error is not None:
            raise self.error
        kept = [each(found) if each else found for found in (self.events if kind.plural == "events" else ())]
        return ListResult(items=kept, resource_version="1")

    async def logs(self, namespace: str, pod: str, *, container: str, tail_lines: int, limit_bytes: int) -> str:  # noqa: ARG002
        self.asked.append("log")
        return ""


@dataclass
class Desk:
    """Asks for some objects; two readings may be made at once, and one a second after them."""

    objects: Sequence[Answers]
    api: Archive = field(default_factory=Archive)
    seconds: float = 0

    def __post_init__(self) -> None:
        turns = TokenBucket(rate=1.0, burst=2, clock=lambda: self.seconds)
        self.inquirer = Inquirer(self.api, EventBoard(self.api, turns, clock=lambda: self.seconds), turns)

    async def look(self, job: StepJob, *, at: float) -> list[float | None]:
        """Look at the same job of each object; return when each is to be looked at again."""
        self.seconds = at
        found = [await self.inquirer.ask_about_jobs(answers, [job], now=after(at)) for answers in self.objects]
        # What was begun meanwhile ends.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others)
        return found


def step(job: Object, *pods: Object) -> StepJob:
    return StepJob(ObjectKey("Job", "team", job["metadata"]["name"]), "train", job, pods)


SLOW = step(batch_job(), waiting_pod("ContainerCreating"))
QUEUED = step(batch_job(labels={"kueue.x-k8s.io/queue-name": "gpus"}, suspend=True, started=None))


def test_the_events_of_a_namespace_are_read_once_for_all_who_ask() -> None:
    desk = Desk([Answers() for _ in range(50)], Archive([event("FailedMount", "Multi-Attach error")]))

    async def ask() -> None:
        first = await desk.look(SLOW, at=5)
        assert desk.api.asked == ["events team"]
        # They come back one after the other.
        assert first == sorted(first, key=lambda seconds: seconds or 0)
        assert len(set(first)) == len(first)
        await desk.look(SLOW, at=6)
        assert desk.api.asked == ["events team"]

    asyncio.run(ask())
    for answers in desk.objects:
        (diagnosis,) = answers.diagnoses.values()
        assert diagnosis is not None
        assert diagnosis.hindrance is not None
        assert diagnosis.hindrance.reason is Reason.VOLUME_CONFLICT


def test_events_that_take_long_to_read_are_read_rarely() -> None:
    desk = Desk([Answers()])
    desk.api.takes = lambda: setattr(desk, "seconds", desk.seconds + 3)

    async def ask() -> None:
        for at in (5, 10, 20, 40):
            await desk.look(SLOW, at=at)
        # From second 8 on, twenty times as long as it took: until second 68.
        assert desk.api.asked == ["events team"]
        await desk.look(SLOW, at=80)
        assert desk.api.asked == ["events team"] * 2

    asyncio.run(ask())


def test_events_that_cannot_be_read_are_done_without() -> None:
    desk = Desk([Answers()], Archive(error=Forbidden("no")))

    async def ask() -> None:
        await desk.look(SLOW, at=5)
        assert await desk.look(SLOW, at=6) == [pytest.approx(4)]

    asyncio.run(ask())
    (diagnosis,) = desk.objects[0].diagnoses.values()
    assert diagnosis is not None
    assert diagnosis.hindrance is None


def test_the_newest_events_of_a_subject_are_kept() -> None:
    desk = Desk([], Archive([event(f"Reason{at}", at=at) for at in (3, 1, 9, 2, 8, 7, 4)]))
    board = EventBoard(desk.api, TokenBucket(rate=1.0, burst=2), clock=lambda: 0.0)

    async def read() -> list[str]:
        board.ready("team")
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        assert board.ready("team") == 0
        return [told.reason for told in board.events("team", Subject(kind="Pod", name="demo-train-1"))]

    assert asyncio.run(read()) == ["Reason9", "Reason8", "Reason7", "Reason4", "Reason3"]


def test_queues_are_asked_in_turn() -> None:
    desk = Desk([Answers() for _ in range(4)])

    async def ask() -> None:
        assert await desk.look(QUEUED, at=5) == [5, 5, 1, 2]
        assert len(desk.api.asked) == 2
        # A turn that was given is kept for the next question.
        assert await desk.look(QUEUED, at=7) == [3, 3, 3, 3]
        assert len(desk.api.asked) == 4

    asyncio.run(ask())
    assert set(desk.api.asked) == {"workloads team"}


def test_the_log_of_a_failure_is_read_at_once() -> None:
    desk = Desk([Answers() for _ in range(4)])
    asyncio.run(desk.look(step(batch_job(FAILED), ended_pod(exit_code=1)), at=60))
    assert desk.api.asked == ["log"] * 4
