"""Bytes, files, speed and ETA while a relocation runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from finetuning_relocator.meter import Meter
from finetuning_workload.progress import Reporter


@dataclass
class Recorder(Reporter):
    """A reporter that keeps the last update."""

    description: str = "relocate"
    fraction: float = 0.0
    note: str = ""
    eta: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def update(
        self,
        fraction: float,
        *,
        note: str = "",
        eta_seconds: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self.fraction, self.note, self.eta, self.metrics = fraction, note, eta_seconds, dict(metrics or {})


class Clock:
    """A clock that tests move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_speed_and_eta_follow_the_last_seconds() -> None:
    recorder, clock = Recorder(), Clock()
    meter = Meter(recorder, clock=clock)
    meter.expect(total_bytes=4_000_000, total_files=2)
    for rate in (10_000, 100_000):
        for _ in range(20):
            clock.now += 1
            meter.arrived(rate)
    assert recorder.metrics["bytes_per_second"] == pytest.approx(100_000)
    assert recorder.eta == pytest.approx(18.0)
    assert recorder.note == "2.2 MB of 4.0 MB, 0/2 files, 100.0 kB/s"
    assert recorder.fraction == pytest.approx(0.55)


def test_bytes_that_were_there_count_as_present_but_not_as_transferred() -> None:
    recorder = Recorder()
    meter = Meter(recorder, clock=Clock())
    meter.expect(total_bytes=100, total_files=1)
    meter.found(60)
    meter.arrived(40)
    meter.file_done()
    assert meter.transferred == 40
    assert recorder.metrics["bytes"] == 100


def test_bytes_that_were_thrown_away_stay_transferred() -> None:
    recorder = Recorder()
    meter = Meter(recorder, clock=Clock())
    meter.expect(total_bytes=100, total_files=1)
    meter.arrived(50)
    meter.discarded(50)
    meter.arrived(100)
    meter.file_done()
    assert (meter.transferred, recorder.metrics["bytes"]) == (150, 100)


def test_a_source_that_does_not_tell_its_size_has_no_eta() -> None:
    recorder, clock = Recorder(), Clock()
    meter = Meter(recorder, clock=clock)
    for _ in range(3):
        clock.now += 1
        meter.arrived(1000)
    assert (recorder.fraction, recorder.eta) == (0.0, None)
    assert "total_bytes" not in recorder.metrics
