"""Jobs that report: ``python -m bench.progress.reporters FILE`` says on its output how they were answered.

They are a process of their own, so that what they cost is not mistaken for what the endpoint costs.
"""

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_STEPS_OF_A_JOB = 5000
MEASURING = "measuring"
"""The line that says that every job was taken once, and that answers count from now on."""


@dataclass(frozen=True, slots=True)
class Job:
    """Where a job reports, and by which right."""

    path: str
    token: str


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of an endpoint."""

    port: int
    ca: str
    interval: float
    """Seconds between two reports of a job; all begin at different moments."""
    seconds: float
    """How long is measured, after every job was taken once."""
    keep_alive: bool
    """Whether jobs keep their connection where the endpoint lets them."""
    jobs: tuple[Job, ...]

    def write(self, path: Path) -> None:
        """Write what the process of the jobs is told."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Load":
        """Read what ``write`` wrote."""
        told: dict[str, Any] = json.loads(path.read_text())
        return cls(**told | {"jobs": tuple(Job(**job) for job in told["jobs"])})


@dataclass(slots=True)
class Tally:
    """What the jobs saw while it counted."""

    milliseconds: list[float] = field(default_factory=list)
    failures: int = 0
    seconds: float = 0.0

    def part(self, share: float) -> float:
        """Return the milliseconds within which a share of the reports was answered."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


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
                # By address: asyncio looks names up in threads, for which the other jobs of this process would wait.
                self.stream = await asyncio.open_connection(
                    "127.0.0.1", self.load.port, ssl=self.context, server_hostname="localhost", limit=4096
                )
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


@dataclass(slots=True)
class _Round:
    """All jobs of a load. Answers count once every job was taken: until then tokens are reviewed, at a bounded rate."""

    load: Load
    context: ssl.SSLContext
    tally: Tally = field(default_factory=Tally)
    taken: set[int] = field(default_factory=set)
    since: float | None = None

    async def run(self) -> Tally:
        await asyncio.gather(*(self._one(number, job) for number, job in enumerate(self.load.jobs)))
        self.tally.seconds = time.monotonic() - (self.since or 0.0)
        return self.tally

    async def _one(self, number: int, job: Job) -> None:
        due = time.monotonic() + self.load.interval * number / len(self.load.jobs)
        wire = _Wire(self.load, self.context)
        report = 0
        while self.since is None or due < self.since + self.load.seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            request = _request(job, report, keep_alive=self.load.keep_alive)
            counts, sent = self.since is not None, time.perf_counter()
            taken = await wire.send(request)
            if counts:
                self.tally.milliseconds.append((time.perf_counter() - sent) * 1000)
                self.tally.failures += not taken
            elif taken:
                self._took(number)
            report += 1
            due += self.load.interval

    def _took(self, number: int) -> None:
        self.taken.add(number)
        if self.since is None and len(self.taken) == len(self.load.jobs):
            self.since = time.monotonic()
            _say(MEASURING)


def _request(job: Job, report: int, *, keep_alive: bool) -> bytes:
    metrics = {"loss": 2.0 - report / _STEPS_OF_A_JOB, "learning_rate": 2e-4, "epoch": 0.5, "tokens_per_second": 1234.5}
    metrics |= {"step": report, "total_steps": _STEPS_OF_A_JOB}
    status = {
        "lastUpdatedTime": datetime.now(UTC).isoformat(),
        "progressPercentage": report * 100 // _STEPS_OF_A_JOB,
        "estimatedRemainingSeconds": 3600,
        "metrics": [{"name": name, "value": str(value)} for name, value in metrics.items()],
    }
    body = json.dumps({"trainerStatus": status}).encode()
    head = (
        f"POST {job.path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {job.token}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
    )
    return "\r\n".join((*head, "", "")).encode() + body


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """Let the jobs of a file report."""
    load = Load.read(Path(arguments[0]))
    context = ssl.create_default_context(cafile=load.ca)
    tally = asyncio.run(_Round(load, context).run())
    _say(json.dumps(asdict(tally)))


if __name__ == "__main__":
    main(sys.argv[1:])
