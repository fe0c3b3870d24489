"""How much has come, how fast, and how long the rest takes."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from finetuning_api.runconfig import ProgressMetric
from finetuning_workload.files import format_bytes
from finetuning_workload.progress import Reporter

_WINDOW_SECONDS = 10.0
_SAMPLE_SECONDS = 0.2


@dataclass(slots=True)
class Meter:
    """Counts bytes and files and reports them; speed is that of the last seconds, so that the ETA follows it."""

    reporter: Reporter
    total_bytes: int | None = None
    """None where the source does not tell its size."""
    total_files: int | None = None
    clock: Callable[[], float] = time.monotonic
    transferred: int = field(init=False, default=0)
    """Bytes that came from the source in this run, those that had to be thrown away included."""
    _present: int = field(init=False, default=0)
    _files: int = field(init=False, default=0)
    _samples: deque[tuple[float, int]] = field(init=False, default_factory=deque)

    def expect(self, *, total_bytes: int | None, total_files: int) -> None:
        """Set what the whole will be, and count from zero what of it is there."""
        self.total_bytes, self.total_files = total_bytes, total_files
        self._present = self._files = 0

    def arrived(self, count: int) -> None:
        """Count bytes that came from the source."""
        self.transferred += count
        self._present += count
        self._report()

    def found(self, count: int) -> None:
        """Count bytes that were there already."""
        self._present += count

    def discarded(self, count: int) -> None:
        """Take back bytes that turned out to be useless."""
        self._present -= count

    def file_done(self) -> None:
        """Count a file that is complete and verified."""
        self._files += 1
        self._report(force=True)

    def _speed(self) -> float | None:
        """Bytes per second over the last seconds, None before there are any."""
        now = self.clock()
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, self.transferred))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW_SECONDS:  # noqa: PLR2004  (a difference)
            self._samples.popleft()
        since, before = self._samples[0]
        return (self.transferred - before) / (now - since) if now > since else None

    def _report(self, *, force: bool = False) -> None:
        now = self.clock()
        if not force and self._samples and now - self._samples[-1][0] < _SAMPLE_SECONDS:
            return
        speed = self._speed()
        rest = None if self.total_bytes is None else max(0, self.total_bytes - self._present)
        eta = rest / speed if rest is not None and speed else None
        self.reporter.update(self._fraction(), note=self._note(speed), eta_seconds=eta, metrics=self._metrics(speed))

    def _fraction(self) -> float:
        if self.total_bytes:
            # 100 % is said once, by the reporter's last update, when the artifact is complete.
            return min(self._present / self.total_bytes, 0.999)
        return self._files / self.total_files * 0.999 if self.total_files else 0.0

    def _note(self, speed: float | None) -> str:
        whole = "" if self.total_bytes is None else f" of {format_bytes(self.total_bytes)}"
        files = "" if not self.total_files else f", {self._files}/{self.total_files} files"
        rate = "" if speed is None else f", {format_bytes(speed)}/s"
        return f"{format_bytes(self._present)}{whole}{files}{rate}"

    def _metrics(self, speed: float | None) -> dict[str, float]:
        known = {
            ProgressMetric.BYTES: self._present,
            ProgressMetric.TOTAL_BYTES: self.total_bytes,
            ProgressMetric.FILES: self._files,
            ProgressMetric.TOTAL_FILES: self.total_files,
            ProgressMetric.BYTES_PER_SECOND: speed,
        }
        return {name.value: value for name, value in known.items() if value is not None}
