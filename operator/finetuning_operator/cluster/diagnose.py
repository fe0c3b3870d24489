"""What only a further read can tell: the end of a log, the Events of what does not start, the word of a queue.

Nothing here is read unless an inquiry asks for it, and an inquiry comes up again ever more rarely. A caller keeps the
last diagnosis of a Job with the inquiry that it answers, and asks again when the inquiry is another one.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords
from finetuning_operator.cluster.api import ListResult
from finetuning_operator.cluster.errors import ApiError, NotServed
from finetuning_operator.cluster.event_board import Subject, Told
from finetuning_operator.cluster.facts import JobFacts, PodFacts, find_condition, part, parts, read_pod, text
from finetuning_operator.cluster.failures import explain_event, explain_pod, explain_queue, own_words
from finetuning_operator.cluster.jobview import JobView, seconds
from finetuning_operator.cluster.kinds import CLAIM, KindRef
from finetuning_operator.cluster.texts import LOG_READ_BYTES, TAIL_LINES, log_tail

WORKLOADS = tuple(KindRef("kueue.x-k8s.io", version, "workloads", "Workload") for version in ("v1beta2", "v1beta1"))
"""What Kueue makes of a Job with a queue's name, newest version first: releases before 0.15 serve the older alone."""
_JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"

_FIRST_SECONDS = 5.0
"""How long something waits before anybody asks why."""
_SLOWEST_SECONDS = 300.0
_PATIENCE_SECONDS = 5.0
"""A node that does not answer must not keep a failure from being told."""
_MOST_CLAIMS = 4
"""Claims of one pod whose Events are read."""

_T = TypeVar("_T")


class Topic(StrEnum):
    """What the inquiry into something that does not start is about."""

    POD = "pod"
    JOB = "job"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What is to be found out. Equal inquiries have equal answers, so an answer is kept until the inquiry changes."""

    log_of: str = ""
    """uid of the failed pod whose log ends with what its program did not say."""
    topic: Topic | None = None
    uid: str = ""
    """Of the pod or the Job that does not start."""
    turn: int = 0
    """How often this came up before; the time between two turns doubles."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found out."""

    log_of: str = ""
    log_tail: tuple[str, ...] = ()
    uid: str = ""
    """Of the pod or the Job that the hindrance is about."""
    hindrance: LastWords | None = None


class Reads(Protocol):
    """The part of the API that is used here."""

    async def list(
        self,
        kind: KindRef,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> ListResult: ...

    async def logs(self, namespace: str, pod: str, *, container: str, tail_lines: int, limit_bytes: int) -> str: ...


class Board(Protocol):
    """What Events tell."""

    def events(self, namespace: str, subject: Subject) -> Sequence[Told]: ...


def wants_diagnosis(
    job: Mapping[str, object], pods: Sequence[Mapping[str, object]], *, now: datetime
) -> Inquiry | None:
    """Return what is to be found out about a Job, None where its own status tells everything."""
    view = JobView.read(job, pods, now=now)
    if view.job.deleted or view.job.condition("Complete", "SuccessCriteriaMet") or view.all_running:
        return None
    log_of = _log_of(view)
    if view.job.condition("Failed", "FailureTarget"):
        return Inquiry(log_of=log_of) if log_of else None
    topic, uid = _unclear(view)
    turn = _turn(_waited(view))
    if topic is None or turn is None:
        return Inquiry(log_of=log_of) if log_of else None
    return Inquiry(log_of=log_of, topic=topic, uid=uid, turn=turn)


def next_inquiry(job: Mapping[str, object], pods: Sequence[Mapping[str, object]], *, now: datetime) -> float | None:
    """Return the seconds until time alone brings up another inquiry, None where only a change can."""
    view = JobView.read(job, pods, now=now)
    settled = view.job.condition("Complete", "SuccessCriteriaMet", "Failed", "FailureTarget")
    if view.job.deleted or settled or view.all_running or _unclear(view)[0] is None:
        return None
    waited = _waited(view)
    turn = _turn(waited)
    return _turn_begins(0 if turn is None else turn + 1) - waited


async def diagnose(
    api: Reads, board: Board, job: Mapping[str, object], pods: Sequence[Mapping[str, object]], now: datetime
) -> Diagnosis | None:
    """Find out what is wanted of a Job. What cannot be read is left out, so this never raises ApiError."""
    inquiry = wants_diagnosis(job, pods, now=now)
    if inquiry is None:
        return None
    view = JobView.read(job, pods, now=now)
    failed = next((pod for pod in view.pods if pod.uid == inquiry.log_of), None) if inquiry.log_of else None
    return Diagnosis(
        log_of=inquiry.log_of,
        log_tail=await _read_log(api, failed) if failed else (),
        uid=inquiry.uid,
        hindrance=await _ask(api, board, view, inquiry),
    )


async def diagnose_server(api: Reads, board: Board, pods: Sequence[Mapping[str, object]]) -> Diagnosis | None:
    """Find out why the newest pod of a server does not start, where its status does not tell."""
    waiting = [pod for pod in map(read_pod, pods) if not pod.ready and not pod.started_at and not pod.deleted_at]
    if not waiting:
        return None
    pod = max(waiting, key=lambda each: seconds(each.created_at))
    return Diagnosis(uid=pod.uid, hindrance=await _ask_about_pod(api, board, pod)) if _is_vague(pod) else None


def _log_of(view: JobView) -> str:
    """Return the uid of the failed pod whose log is of use: it ran, and its words are missing or the last ones."""
    pod = view.culprit
    if pod is None or pod.end is None or pod.end.started_at is None:
        return ""
    final = view.job.condition("Failed", "FailureTarget")
    return pod.uid if final or own_words(pod) is None else ""


def _unclear(view: JobView) -> tuple[Topic | None, str]:
    """Return what does not start for a reason that neither Job nor pod tells.

    What no controller has looked at yet only waits for its turn: there are no Events of it.
    """
    if view.job.suspended:
        return (Topic.QUEUE, view.job.uid) if view.job.queue else (None, "")
    if not view.waiting:
        return (Topic.JOB, view.job.uid) if view.job.started_at else (None, "")
    vague = next((pod for pod in view.waiting if _is_vague(pod) and not view.is_lost(pod)), None)
    return (Topic.POD, vague.uid) if vague else (None, "")


def _is_vague(pod: PodFacts) -> bool:
    """Return whether a pod does not tell why it waits; of a claim without a volume only the claim knows why."""
    words = explain_pod(pod)
    return bool(pod.node) if words is None else words.reason is Reason.VOLUME_UNAVAILABLE


def _waited(view: JobView) -> float:
    since = view.pending_since
    return max(0.0, (view.now - since).total_seconds()) if since else 0.0


def _turn(waited: float) -> int | None:
    """Return which turn it is after so many seconds of waiting, None before the first."""
    turn = None
    while _turn_begins(0 if turn is None else turn + 1) <= waited:
        turn = 0 if turn is None else turn + 1
    return turn


def _turn_begins(turn: int) -> float:
    """Return the seconds of waiting at which a turn begins: 5, 10, 20, ... 320, and then every five minutes."""
    doubled = _FIRST_SECONDS * 2.0 ** min(turn, 6)
    return doubled + _SLOWEST_SECONDS * max(0, turn - 6)


async def _read_log(api: Reads, pod: PodFacts) -> tuple[str, ...]:
    log = await _patiently(
        api.logs(pod.namespace, pod.name, container=pod.container, tail_lines=TAIL_LINES, limit_bytes=LOG_READ_BYTES)
    )
    return log_tail(log or "")


async def _ask(api: Reads, board: Board, view: JobView, inquiry: Inquiry) -> LastWords | None:
    match inquiry.topic:
        case None:
            return None
        case Topic.QUEUE:
            return await _ask_queue(api, view)
        case Topic.JOB:
            return _read_events(board, view.job.namespace, Subject(uid=view.job.uid))
        case Topic.POD:
            pod = next(pod for pod in view.waiting if pod.uid == inquiry.uid)
            return await _ask_about_pod(api, board, pod)


async def _ask_about_pod(api: Reads, board: Board, pod: PodFacts) -> LastWords | None:
    told = _read_events(board, pod.namespace, Subject(uid=pod.uid))
    if told is not None:
        return told
    if pod.node:
        return None
    for claim in pod.claims[:_MOST_CLAIMS]:
        told = _read_events(board, pod.namespace, Subject(kind=CLAIM.kind, name=claim), about=claim)
        if told is not None and not await _is_bound(api, pod.namespace, claim):
            return told
    return None


async def _is_bound(api: Reads, namespace: str, claim: str) -> bool:
    """Return whether a claim has its volume: Events outlive what they tell, and not every provisioner tells its end."""
    found = await _patiently(api.list(CLAIM, namespace, field_selector=f"metadata.name={claim}"))
    return any(text(part(each, "status"), "phase") == "Bound" for each in (found.items if found else ()))


def _read_events(board: Board, namespace: str, subject: Subject, *, about: str = "") -> LastWords | None:
    """Return what the newest Event of an object means that tells of its state."""
    for event in board.events(namespace, subject):
        words = explain_event(event.reason, event.message, about=about)
        # An ordinary event after a warning tells that things went on.
        if words is not None or not event.warning:
            return words
    return None


async def _ask_queue(api: Reads, view: JobView) -> LastWords | None:
    found = await _patiently(_list_workloads(api, view.job))
    for workload in found or ():
        conditions = parts(part(workload, "status"), "conditions")
        waits = (find_condition(conditions, kind, status="False") for kind in ("QuotaReserved", "Admitted"))
        # That stays until the Job is let go again.
        evicted = find_condition(conditions, "Evicted", status="True")
        told = next((wait for wait in waits if wait is not None), evicted)
        if told is not None:
            return explain_queue(told, queue=view.job.queue, evicted=evicted)
    return None


async def _list_workloads(api: Reads, job: JobFacts) -> list[Any]:
    """Return what Kueue made of a Job, in the newest version that is served; nothing where none is."""
    for kind in WORKLOADS:
        with suppress(NotServed):
            return (await api.list(kind, job.namespace, label_selector=f"{_JOB_UID_LABEL}={job.uid}")).items
    return []


async def _patiently(reading: Awaitable[_T]) -> _T | None:
    """Return what is read, None where it cannot be read or takes too long."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await reading
    except (ApiError, TimeoutError):
        return None
