"""Asking further where the cache does not tell, and keeping the answers, so that nothing is asked twice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from finetuning_operator.cluster.api import TokenBucket
from finetuning_operator.cluster.diagnose import (
    Diagnosis,
    Inquiry,
    Reads,
    Topic,
    diagnose,
    diagnose_server,
    next_inquiry,
    wants_diagnosis,
)
from finetuning_operator.cluster.event_board import EventBoard
from finetuning_operator.cluster.view import StepJob
from finetuning_operator.reconcile.lifecycle import soonest

INQUIRY_SHARE = 1 / 32
"""Part of the request rate that asking why something does not start may use."""
INQUIRY_BURST = 20
_SERVER_SECONDS = 60
"""A server that does not start is asked about again after this time, or when its pods change."""


@dataclass(slots=True)
class Answers:
    """What was found out about one object, by the name of its Job or Deployment."""

    of_jobs: dict[str, tuple[str, Inquiry, Diagnosis | None]] = field(default_factory=dict)
    """With the uid of the Job and the inquiry that the diagnosis answers."""
    of_servers: dict[str, tuple[object, Diagnosis | None]] = field(default_factory=dict)
    turn: datetime | None = None
    """When the next question may be asked, where one waits for that."""

    @property
    def diagnoses(self) -> dict[str, Diagnosis | None]:
        """The newest diagnosis by the name of the Job or Deployment."""
        of_jobs = {name: diagnosis for name, (_, _, diagnosis) in self.of_jobs.items()}
        return of_jobs | {name: diagnosis for name, (_, diagnosis) in self.of_servers.items()}


class Inquirer:
    """Asks what the cache does not tell, for all objects in turn: a thousand pods may be slow to start at once."""

    def __init__(self, api: Reads, board: EventBoard, turns: TokenBucket) -> None:
        """``turns`` are taken by questions to Kueue; the log of a Job that failed is read at once."""
        self._api = api
        self._board = board
        self._turns = turns

    async def ask_about_jobs(self, answers: Answers, jobs: Sequence[StepJob], *, now: datetime) -> float | None:
        """Find out what is not known yet; return the seconds until there is more to ask."""
        names = {job.key.name for job in jobs}
        answers.of_jobs = {name: answer for name, answer in answers.of_jobs.items() if name in names}
        questions = list(_questions(answers, jobs, now=now))
        waits: list[float] = []
        for job, inquiry in questions:
            if wait := self._wait_for(inquiry, answers, namespace=job.key.namespace, now=now):
                waits.append(wait)
                continue
            found = await diagnose(self._api, self._board, job.job, job.pods, now)
            answers.of_jobs[job.key.name] = (job.uid, inquiry, found)
        return soonest(*waits, *(next_inquiry(job.job, job.pods, now=now) for job in jobs))

    async def ask_about_server(
        self, answers: Answers, deployment: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], *, now: datetime
    ) -> float | None:
        """Find out why a server does not start; return the seconds until it is asked again."""
        name, status = deployment["metadata"]["name"], deployment.get("status") or {}
        if status.get("readyReplicas", 0) >= deployment["spec"].get("replicas", 1):
            answers.of_servers.pop(name, None)
            return None
        versions = tuple(sorted(pod["metadata"]["resourceVersion"] for pod in pods))
        question = (versions, int(now.timestamp()) // _SERVER_SECONDS)
        known = answers.of_servers.get(name)
        if known is None or known[0] != question:
            if wait := self._board.ready(deployment["metadata"]["namespace"]):
                return wait
            answers.of_servers[name] = (question, await diagnose_server(self._api, self._board, pods))
        return float(_SERVER_SECONDS)

    def _wait_for(self, inquiry: Inquiry, answers: Answers, *, namespace: str, now: datetime) -> float:
        """Return the seconds until something can be found out, 0 when it can."""
        match inquiry.topic:
            case None:
                return 0.0
            case Topic.QUEUE:
                return self._wait(answers, now)
            case _:
                return self._board.ready(namespace)

    def _wait(self, answers: Answers, now: datetime) -> float:
        """Return the seconds until an object's turn to ask, 0 when it is there; what is not used then is kept."""
        if answers.turn is None:
            answers.turn = now + timedelta(seconds=self._turns.reserve())
        wait = max(0.0, (answers.turn - now).total_seconds())
        if not wait:
            answers.turn = None
        return wait


def _questions(answers: Answers, jobs: Sequence[StepJob], *, now: datetime) -> Iterator[tuple[StepJob, Inquiry]]:
    """Yield what is not known yet, and forget what nobody asks any more."""
    for job in jobs:
        inquiry = wants_diagnosis(job.job, job.pods, now=now)
        known = answers.of_jobs.get(job.key.name)
        if inquiry is None:
            answers.of_jobs.pop(job.key.name, None)
        elif known is None or known[:2] != (job.uid, inquiry):
            yield job, inquiry
