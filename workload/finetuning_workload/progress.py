"""Progress: the same numbers to the operator, to a terminal and to a log."""

import json
import logging
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import TextIO

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from finetuning_api.runconfig import (
    PROGRESS_CA_ENV,
    PROGRESS_TOKEN_ENV,
    PROGRESS_URL_ENV,
    ProgressReport,
    TrainerMetric,
    TrainerStatus,
)

_LOG = logging.getLogger(__name__)
_LOCAL_SECONDS, _CLUSTER_SECONDS = 2.0, 5.0
_LINE_SECONDS = 5.0
_HTTP_SECONDS = 5.0

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class ProgressTarget:
    """Where reports go, as the KubeflowCallback of Hugging Face Transformers reads it from the environment."""

    url: str
    token_path: Path
    ca_path: Path | None = None

    @property
    def interval(self) -> float:
        """Seconds between two reports: the endpoint of a cluster, which speaks TLS, hears from many programs."""
        return _CLUSTER_SECONDS if self.url.startswith("https://") else _LOCAL_SECONDS

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "ProgressTarget | None":
        """Return the target, or None where nobody listens."""
        url, token = environment.get(PROGRESS_URL_ENV), environment.get(PROGRESS_TOKEN_ENV)
        if not url or not token:
            return None
        ca_path = environment.get(PROGRESS_CA_ENV)
        return cls(url=url, token_path=Path(token), ca_path=Path(ca_path) if ca_path else None)


class _Sender(threading.Thread):
    """Posts the latest report in the background: a slow or absent listener never slows the work."""

    def __init__(self, target: ProgressTarget) -> None:
        super().__init__(name="progress", daemon=True)
        self._target = target
        self._latest: ProgressReport | None = None
        self._wake = threading.Condition()
        self._closed = False

    def offer(self, report: ProgressReport) -> None:
        """Replace the report that is sent next."""
        with self._wake:
            self._latest = report
            self._wake.notify()

    def close(self) -> None:
        """Send what is left and stop."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self.join(timeout=_HTTP_SECONDS)

    def run(self) -> None:
        try:
            context = ssl.create_default_context(cafile=self._target.ca_path)
        except OSError as error:
            _LOG.warning("progress is not reported: cannot read %s: %s", self._target.ca_path, error)
            return
        with httpx.Client(timeout=_HTTP_SECONDS, verify=context, trust_env=False) as client:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._latest is not None or self._closed)
                    report, self._latest = self._latest, None
                    closed = self._closed
                if report is not None:
                    self._post(client, report)
                elif closed:
                    return

    def _post(self, client: httpx.Client, report: ProgressReport) -> None:
        try:
            token = self._target.token_path.read_text().strip()
            client.post(
                self._target.url,
                content=report.model_dump_json(by_alias=True, exclude_none=True),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            ).raise_for_status()
        except httpx.HTTPStatusError as error:
            _LOG.debug("progress was not taken: HTTP %d", error.response.status_code)
        # ValueError: a token or an address that no header and no request can hold.
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            # Not the error's own words: they may quote the token.
            _LOG.debug("progress was not delivered: %s", type(error).__name__)


class _Display:
    """A bar on a terminal, else a line every few seconds."""

    def __init__(self, description: str, stream: TextIO, clock: Clock) -> None:
        self._description = description
        self._stream = stream
        self._clock = clock
        self._last_line = float("-inf")
        self._bar: Progress | None = None
        if stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(file=stream))
            self._task = self._bar.add_task(description, total=1.0, note="")
            self._bar.start()

    def show(self, fraction: float, note: str, *, force: bool) -> None:
        """Show where the work stands; ``force`` prints a line even when the last one is recent."""
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction, note=note)
            return
        now = self._clock()
        if force or now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            self._stream.write(f"{self._description}: {fraction:.0%} {note}".rstrip() + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()


@dataclass(slots=True)
class Reporter:
    """Reports the progress of one program.

    ``update`` may be called as often as one likes: what is sent, drawn and printed is limited here.
    """

    description: str
    target: ProgressTarget | None = None
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Clock = time.monotonic
    _first: tuple[float, float] | None = field(init=False, default=None)
    """When the first number came, and how much was done by then: work that was resumed does not start at nothing."""
    _last_report: float = field(init=False, default=float("-inf"))
    _sender: _Sender | None = field(init=False, default=None)
    _display: _Display = field(init=False)
    _last: tuple[float, dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        self._last = (0.0, {})
        self._display = _Display(self.description, self.stream, self.clock)
        if self.target is not None:
            self._sender = _Sender(self.target)
            self._sender.start()

    def update(
        self,
        fraction: float,
        *,
        note: str = "",
        eta_seconds: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Tell how much is done (0 to 1). Without ``eta_seconds`` it goes on at the speed since the first call."""
        fraction = min(max(fraction, 0.0), 1.0)
        finished = fraction >= 1.0
        self._last = (fraction, dict(metrics or {}))
        now = self.clock()
        self._first = self._first or (now, fraction)
        self._display.show(fraction, note, force=finished)
        if self.target is None or self._sender is None:
            return
        if now - self._last_report < self.target.interval and not finished:
            return
        self._last_report = now
        if eta_seconds is None:
            eta_seconds = remaining_seconds(self._first, now, fraction)
        self._sender.offer(_report(fraction, eta_seconds, self._last[1]))

    def close(self) -> None:
        """Send the last numbers and take the bar down."""
        self._display.close()
        if self._sender is not None:
            self._sender.offer(_report(self._last[0], 0 if self._last[0] >= 1 else None, self._last[1]))
            self._sender.close()


def silent_reporter(description: str) -> Reporter:
    """Return a reporter that nobody hears: of several processes that do one piece of work, one tells of it."""
    return Reporter(description, stream=_Nowhere())


class _Nowhere(StringIO):
    """Keeps nothing."""

    def write(self, text: str) -> int:
        """Return how much was thrown away."""
        return len(text)


def remaining_seconds(first: tuple[float, float], now: float, fraction: float) -> float | None:
    """Return the seconds to the end at the speed since ``first`` (a moment and the fraction done by then).

    None while nothing was done since.
    """
    began_at, began_with = first
    done = fraction - began_with
    return (now - began_at) * (1 - fraction) / done if done > 0 else None


def _report(fraction: float, eta_seconds: float | None, metrics: Mapping[str, float]) -> ProgressReport:
    return ProgressReport(
        trainer_status=TrainerStatus(
            last_updated_time=datetime.now(UTC),
            progress_percentage=int(fraction * 100),
            estimated_remaining_seconds=None if eta_seconds is None else max(0, round(eta_seconds)),
            metrics=tuple(TrainerMetric(name=name, value=json.dumps(value)) for name, value in metrics.items()),
        )
    )
