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
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import web
from bench.progress.reporters import Job, Load, Tally
from tests.support.progress import authenticated, made_token

from finetuning_operator.cluster.progress.address import Owner, ProgressKey
from finetuning_operator.cluster.progress.certificates import self_signed
from finetuning_operator.cluster.progress.limits import RateLimit
from finetuning_operator.cluster.progress.server import ProgressEndpoint, ProgressServer
from finetuning_operator.cluster.progress.store import ProgressStore
from finetuning_operator.cluster.progress.tokens import TokenVerifier
from finetuning_operator.cluster.statuses import ProgressBudget, StatusClock

_NAMESPACE = "bench"


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
    seen = await _run_jobs(replace(load, port=port), folder)
    cpu = time.process_time() - cpu
    grown = _resident_mib() - resident
    await server.close()
    _tell(load, seen, cpu=cpu, answers=answers, grown=grown)
    within = sorted(endpoint.milliseconds)
    _say(f"  answer, within the endpoint  p50 {_part(within, 0.5):.2f} ms, p99 {_part(within, 0.99):.2f} ms")
    _say(f"  token reviews                {reviews.asked}")
    _tell_writes(woken, seconds=woken[-1][0] - woken[0][0])


async def _run_jobs(load: Load, folder: Path) -> Tally:
    told = folder / "load.json"
    load.write(told)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.progress.reporters", str(told), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return Tally(**json.loads(output.splitlines()[-1]))


def _jobs(count: int) -> tuple[Job, ...]:
    paths = (ProgressKey(_NAMESPACE, "FineTuningJob", f"job-{number}", "train").path for number in range(count))
    return tuple(Job(path, made_token(_owner(number), filler="x" * 700)) for number, path in enumerate(paths))


def _tell(load: Load, seen: Tally, *, cpu: float, answers: Counter[HTTPStatus], grown: float) -> None:
    posts, jobs = sum(answers.values()), len(load.jobs)
    manner = "kept where the endpoint allows it" if load.keep_alive else "new for every report"
    share = cpu / posts * len(seen.milliseconds) / seen.seconds
    _say(f"{jobs} jobs, each every {load.interval:g} s, connections {manner}:")
    _say(f"  reports answered             {posts} ({len(seen.milliseconds) / seen.seconds:.0f}/s)")
    _say(f"  refused or lost              {seen.failures}")
    _say(f"  answer, as a job sees it     p50 {seen.part(0.5):.1f} ms, p99 {seen.part(0.99):.1f} ms")
    _say(f"  endpoint's processor time    {cpu / posts * 1000:.2f} ms a report, {share:.0%} of one core")
    _say(f"  endpoint's memory            {grown:+.0f} MiB, {grown * 1024 / jobs:.0f} KiB a job")


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
    """Run both rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two reports of a job")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each round")
    told = parser.parse_args()
    for keep_alive in (True, False):
        with TemporaryDirectory() as folder:
            ca = str(Path(folder, "ca.crt"))
            jobs = _jobs(told.jobs)
            load = Load(0, ca, told.interval, told.seconds, keep_alive=keep_alive, jobs=jobs)
            asyncio.run(_round(load, Path(folder)))


if __name__ == "__main__":
    main()
