"""How the progress endpoint answers when many jobs report: ``python -m bench.progress.bench_progress [--jobs 1000]``.

The endpoint runs in this process, the jobs in another one, with TLS between them. Each job reports at a regular
interval and all begin at different moments. Two rounds: jobs that keep their connection where the endpoint lets them,
as our programs do, and jobs that make a new one for every report, as the KubeflowCallback of Hugging Face Transformers
does. Tokens are reviewed by a fake that believes all.
"""

import argparse
import asyncio
import json
import os
import ssl
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import web
from tests.support.progress import authenticated, made_token

from finetuning_operator.cluster.progress.address import Owner, ProgressKey
from finetuning_operator.cluster.progress.certificates import self_signed
from finetuning_operator.cluster.progress.limits import RateLimit
from finetuning_operator.cluster.progress.server import ProgressEndpoint, ProgressServer
from finetuning_operator.cluster.progress.store import ProgressStore
from finetuning_operator.cluster.progress.tokens import TokenVerifier
from finetuning_operator.cluster.statuses import ProgressBudget, StatusClock

_NAMESPACE = "bench"
_STEPS_OF_A_JOB = 5000
_WARMING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the endpoint."""

    port: int
    ca: str
    jobs: int
    interval: float
    seconds: float
    keep_alive: bool


@dataclass(slots=True)
class Tally:
    """What the jobs saw after they had all begun."""

    milliseconds: list[float] = field(default_factory=list)
    failures: int = 0


class BelievingReviews:
    """A fake of the API server: every token is genuine."""

    def __init__(self) -> None:
        self.asked = 0

    async def create_raw(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        self.asked += 1
        return {"status": authenticated(_owner(0)) | {"audiences": body["spec"]["audiences"]}}


class TimedEndpoint(ProgressEndpoint):
    """Measures its own answers, without the network and without the jobs' own waiting for a processor."""

    milliseconds: list[float]

    async def handle(self, request: web.Request) -> web.Response:
        began = time.perf_counter()
        response = await super().handle(request)
        self.milliseconds.append((time.perf_counter() - began) * 1000)
        return response


def _owner(job: int) -> Owner:
    return Owner(_NAMESPACE, "FineTuningJob", f"job-{job}", f"uid-{job}")


def _request(job: int, report: int, *, keep_alive: bool) -> bytes:
    metrics = {"loss": 2.0 - report / _STEPS_OF_A_JOB, "learning_rate": 2e-4, "epoch": 0.5, "tokens_per_second": 1234.5}
    metrics |= {"step": report, "total_steps": _STEPS_OF_A_JOB}
    status = {
        "lastUpdatedTime": datetime.now(UTC).isoformat(),
        "progressPercentage": report * 100 // _STEPS_OF_A_JOB,
        "estimatedRemainingSeconds": 3600,
        "metrics": [{"name": name, "value": str(value)} for name, value in metrics.items()],
    }
    body = json.dumps({"trainerStatus": status}).encode()
    path = ProgressKey(_NAMESPACE, "FineTuningJob", f"job-{job}", "train").path
    head = (
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {made_token(_owner(job), filler='x' * 700)}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
    )
    return "\r\n".join((*head, "", "")).encode() + body


@dataclass(slots=True)
class _Wire:
    """The connection of one job."""

    load: Load
    context: ssl.SSLContext
    stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> bool:
        """Return whether a report was taken."""
        try:
            if self.stream is None:
                self.stream = await asyncio.open_connection("localhost", self.load.port, ssl=self.context, limit=4096)
            reader, writer = self.stream
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError):
            self._hang_up()
            return False
        if not self.load.keep_alive or b"Connection: close" in answer:
            self._hang_up()
        return answer.startswith(b"HTTP/1.1 202 ")

    def _hang_up(self) -> None:
        if self.stream is not None:
            self.stream[1].transport.abort()
            self.stream = None


async def _one_job(job: int, load: Load, tally: Tally, context: ssl.SSLContext) -> None:
    began = time.monotonic()
    due = began + load.interval * job / load.jobs
    wire = _Wire(load, context)
    report = 0
    while due < began + load.seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        request = _request(job, report, keep_alive=load.keep_alive)
        sent = time.perf_counter()
        taken = await wire.send(request)
        if due > began + _WARMING_SECONDS:
            tally.milliseconds.append((time.perf_counter() - sent) * 1000)
            tally.failures += not taken
        report += 1
        due += load.interval


async def _all_jobs(load: Load) -> Tally:
    tally = Tally()
    context = ssl.create_default_context(cafile=load.ca)
    await asyncio.gather(*(_one_job(job, load, tally, context) for job in range(load.jobs)))
    return tally


async def _round(load: Load, folder: Path) -> None:
    signed = self_signed(["localhost"], now=datetime.now(UTC))
    certificate, key = signed.write(folder)
    Path(load.ca).write_text(signed.ca)  # noqa: ASYNC240  (before anything is measured)
    woken: list[tuple[float, ProgressKey]] = []
    answers: Counter[HTTPStatus] = Counter()
    reviews = BelievingReviews()
    endpoint = TimedEndpoint(
        ProgressStore(lambda key: woken.append((time.monotonic(), key))),
        TokenVerifier(reviews, limit=RateLimit(rate=1e6, burst=1e6)),
        knows=lambda _key, _uid: True,
        leading=lambda: True,
        answered=lambda status: answers.update([status]),
    )
    endpoint.milliseconds = []
    server = ProgressServer(endpoint, certificate=certificate, key=key)
    port = await server.start(port=load.port, host="localhost")
    cpu, resident = time.process_time(), _resident_mib()
    seen = await _run_jobs(port, load)
    cpu = time.process_time() - cpu
    grown = _resident_mib() - resident
    await server.close()
    _tell(load, seen, cpu=cpu, answers=answers, grown=grown)
    within = sorted(endpoint.milliseconds)
    _say(f"  answer, within the endpoint  p50 {_part(within, 0.5):.2f} ms, p99 {_part(within, 0.99):.2f} ms")
    _say(f"  token reviews                {reviews.asked}")
    _tell_writes(woken, seconds=load.seconds)


async def _run_jobs(port: int, load: Load) -> Tally:
    arguments = [f"--port={port}", f"--ca={load.ca}", f"--jobs={load.jobs}", f"--interval={load.interval}"]
    arguments += [f"--seconds={load.seconds}", *(["--keep-alive"] if load.keep_alive else [])]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.progress.bench_progress", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return Tally(**json.loads(output))


def _tell(load: Load, seen: Tally, *, cpu: float, answers: Counter[HTTPStatus], grown: float) -> None:
    posts = sum(answers.values())
    ordered = sorted(seen.milliseconds)
    manner = "kept where the endpoint allows it" if load.keep_alive else "new for every report"
    _say(f"{load.jobs} jobs, each every {load.interval:g} s, connections {manner}:")
    _say(f"  reports answered             {posts} ({posts / load.seconds:.0f}/s), refused or lost {seen.failures}")
    _say(f"  answer, as a job sees it     p50 {_part(ordered, 0.5):.1f} ms, p99 {_part(ordered, 0.99):.1f} ms")
    _say(f"  endpoint's processor time    {cpu / posts * 1000:.2f} ms a report, {cpu / load.seconds:.0%} of one core")
    _say(f"  endpoint's memory            {grown:+.0f} MiB, {grown * 1024 / load.jobs:.0f} KiB a job")


def _tell_writes(woken: Sequence[tuple[float, ProgressKey]], *, seconds: float) -> None:
    """Say how many status writes the reports are worth, and what comes of them with the operator's budget."""
    _say(f"  status writes worth making   {len(woken) / seconds:.1f}/s")
    for per_second in (12.5, 50.0):
        late, looks = _spread(woken, ProgressBudget(per_second=per_second))
        made, each = len(late) / seconds, looks / len(late)
        _say(f"    where {per_second:g}/s are allowed   {made:.1f}/s made, {each:.1f} looks at an object for each,")
        _say(f"                               late by p50 {_part(late, 0.5):.1f} s, p99 {_part(late, 0.99):.1f} s")


def _spread(woken: Sequence[tuple[float, ProgressKey]], budget: ProgressBudget) -> tuple[list[float], int]:
    """Do as the operator does: return how late each write was, the least late first, and how often it looked."""
    events = [(moment, number, key) for number, (moment, key) in enumerate(woken)]
    end, looks, late = woken[-1][0], 0, []
    held: dict[ProgressKey, StatusClock] = {}
    heapify(events)
    while events and events[0][0] <= end:
        moment, number, key = heappop(events)
        clock = held.setdefault(key, StatusClock())
        waits = clock.turn is not None
        looks += 1
        if clock.changed_at is None:
            clock.changed_at = moment
        wait = budget.wait(clock, moment)
        if wait <= 0:
            late.append(moment - clock.changed_at)
            clock.wrote(moment)
        elif not waits:
            heappush(events, (moment + wait, number, key))
    return sorted(late), looks


def _part(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run both rounds, or, as their child, the jobs of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two reports of a job")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each round")
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--ca", default="", help=argparse.SUPPRESS)
    parser.add_argument("--keep-alive", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.port:
        load = Load(**vars(told))
        tally = asyncio.run(_all_jobs(load))
        _say(json.dumps({"milliseconds": tally.milliseconds, "failures": tally.failures}))
        return
    for keep_alive in (True, False):
        with TemporaryDirectory() as folder:
            ca = str(Path(folder, "ca.crt"))
            load = Load(0, ca, told.jobs, told.interval, told.seconds, keep_alive=keep_alive)
            asyncio.run(_round(load, Path(folder)))


if __name__ == "__main__":
    main()
