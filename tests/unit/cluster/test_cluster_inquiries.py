"""Questions of many objects at once take turns; what is known of one is not asked again."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support.batch import Object, after, batch_job, condition, ended_pod, waiting_pod

from finetuning_operator.cluster.api import ListResult, TokenBucket
from finetuning_operator.cluster.inquiries import Answers, Inquirer
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import KindRef
from finetuning_operator.cluster.view import StepJob

FAILED = condition("Failed", reason="BackoffLimitExceeded", at=60)


@dataclass
class Quiet:
    """An API that knows nothing and remembers what it was asked."""

    asked: list[str] = field(default_factory=list)

    async def list(
        self,
        kind: KindRef,
        namespace: str | None = None,  # noqa: ARG002  (the signature of the API)
        *,
        label_selector: str | None = None,  # noqa: ARG002
        field_selector: str | None = None,  # noqa: ARG002
    ) -> ListResult:
        self.asked.append(kind.plural)
        return ListResult(items=[], resource_version="1")

    async def logs(self, namespace: str, pod: str, *, container: str, tail_lines: int, limit_bytes: int) -> str:  # noqa: ARG002
        self.asked.append("log")
        return ""


@dataclass
class Desk:
    """Asks for some objects; two questions may be asked at once, and one a second after them."""

    objects: Sequence[Answers]
    api: Quiet = field(default_factory=Quiet)
    seconds: float = 0

    def __post_init__(self) -> None:
        self.inquirer = Inquirer(self.api, TokenBucket(rate=1.0, burst=2, clock=lambda: self.seconds))

    def ask(self, job: StepJob, *, at: float) -> list[float | None]:
        """Look at the same job of each object; return when each is to be looked at again."""
        self.seconds = at

        async def look() -> list[float | None]:
            return [await self.inquirer.ask_about_jobs(answers, [job], now=after(at)) for answers in self.objects]

        return asyncio.run(look())


def step(job: Object, *pods: Object) -> StepJob:
    return StepJob(ObjectKey("Job", "team", job["metadata"]["name"]), "train", job, pods)


SLOW = step(batch_job(), waiting_pod("ContainerCreating"))


def test_what_many_pods_wait_for_at_once_is_asked_in_turn() -> None:
    desk = Desk([Answers() for _ in range(5)])
    assert desk.ask(SLOW, at=5) == [5, 5, 1, 2, 3]
    assert desk.api.asked == ["events"] * 2
    assert desk.ask(SLOW, at=7) == [3, 3, 3, 3, 1]
    assert desk.api.asked == ["events"] * 4


def test_a_turn_that_was_given_is_kept_for_the_next_question() -> None:
    desk = Desk([Answers(), Answers(), Answers()])
    assert desk.ask(SLOW, at=5) == [5, 5, 1]
    desk.ask(step(batch_job(), ended_pod()), at=6)
    assert len(desk.api.asked) == 2
    assert desk.ask(SLOW, at=6) == [1, 2, 4]
    assert len(desk.api.asked) == 3


def test_the_log_of_a_failure_is_read_at_once() -> None:
    desk = Desk([Answers() for _ in range(4)])
    desk.ask(step(batch_job(FAILED), ended_pod(exit_code=1)), at=60)
    assert desk.api.asked == ["log"] * 4
