"""Our programs and Hugging Face's own callback tell their progress in one language."""

import json
import logging
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from io import StringIO
from itertools import count
from pathlib import Path

import pytest
from tests.support.loopback import Answer, Fault, LoopbackServer, Seen, Trouble
from tests.support.processes import wait_until
from tests.support.tls import Certificate
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import KubeflowCallback

from finetuning_api.runconfig import (
    PROGRESS_CA_ENV,
    PROGRESS_TOKEN_ENV,
    PROGRESS_URL_ENV,
    ProgressReport,
    TrainerMetric,
)
from finetuning_workload.progress import ProgressTarget, Reporter

TOKEN = "projected-token"


class ProgressServer(LoopbackServer):
    """Keeps the reports that it can parse, as the operator does."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(self._accept, tls=tls)
        self.reports: list[ProgressReport] = []

    def _accept(self, seen: Seen) -> Answer:
        if seen.headers.get("authorization") != f"Bearer {TOKEN}":
            return Answer(status=HTTPStatus.UNAUTHORIZED)
        self.reports.append(ProgressReport.model_validate(json.loads(seen.body)))
        return Answer(b"{}")


@pytest.fixture
def token_path(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate.make(tmp_path)


@pytest.fixture
def server(certificate: Certificate) -> Iterator[ProgressServer]:
    with ProgressServer(tls=certificate.server_context()) as running:
        yield running


@pytest.fixture
def environment(server: ProgressServer, token_path: Path, certificate: Certificate) -> dict[str, str]:
    return {
        PROGRESS_URL_ENV: f"{server.url}/progress/job",
        PROGRESS_TOKEN_ENV: str(token_path),
        PROGRESS_CA_ENV: str(certificate.path),
    }


def test_the_callback_of_transformers_is_understood(
    server: ProgressServer, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    callback = KubeflowCallback()
    arguments, control = TrainingArguments(output_dir=str(tmp_path)), TrainerControl()
    state = TrainerState(global_step=0, max_steps=10, is_world_process_zero=True)
    callback.on_train_begin(arguments, state, control)
    callback.on_log(arguments, state, control, logs={"loss": 1.5})
    callback.on_train_end(arguments, state, control)
    first, last = (report.trainer_status for report in server.reports)
    assert (first.progress_percentage, first.metrics) == (0, (TrainerMetric(name="total_steps", value="10"),))
    assert (last.progress_percentage, last.estimated_remaining_seconds) == (100, 0)
    assert last.metrics == (TrainerMetric(name="loss", value="1.5"),)


def test_our_reporter_sends_what_the_callback_sends(server: ProgressServer, environment: dict[str, str]) -> None:
    reporter = Reporter("train", target=ProgressTarget.from_environment(environment), stream=StringIO())
    reporter.update(0.25, eta_seconds=30.4, metrics={"loss": 1.5})
    reporter.update(1.0, metrics={"loss": 0.5})
    reporter.close()
    (path,) = {seen.path for seen in server.seen}
    (sent,) = {seen.headers["content-type"] for seen in server.seen}
    last = server.reports[-1].trainer_status
    assert (path, sent) == ("/progress/job", "application/json")
    assert {"trainerStatus"} == set(json.loads(server.seen[-1].body))
    assert (last.progress_percentage, last.estimated_remaining_seconds) == (100, 0)
    assert last.metrics == (TrainerMetric(name="loss", value="0.5"),)


def test_a_listener_that_refuses_or_hangs_never_stops_the_work(
    server: ProgressServer, environment: dict[str, str]
) -> None:
    server.fail("/progress/job", Fault(Trouble.STATUS, status=HTTPStatus.INTERNAL_SERVER_ERROR, times=99))
    reporter = Reporter("train", target=ProgressTarget.from_environment(environment), stream=StringIO())
    for step in range(100):
        reporter.update(step / 100)
    reporter.close()
    assert server.reports == []


@pytest.mark.parametrize("trouble", ["stalls", "cuts", "unknown authority", "nobody there", "bad address", "bad token"])
def test_no_trouble_with_the_listener_reaches_the_work(
    trouble: str,
    server: ProgressServer,
    environment: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    broken: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)
    if trouble in {"stalls", "cuts"}:
        kind = Trouble.STALL if trouble == "stalls" else Trouble.CUT
        server.fail("/progress/job", Fault(kind, times=99))
    elif trouble == "unknown authority":
        (tmp_path / "other").mkdir()
        environment[PROGRESS_CA_ENV] = str(Certificate.make(tmp_path / "other").path)
    elif trouble == "bad token":
        Path(environment[PROGRESS_TOKEN_ENV]).write_bytes(b"geheim-\xff\nsecond line")
    else:
        environment[PROGRESS_URL_ENV] = "https://127.0.0.1:1/" if trouble == "nobody there" else "https://[broken"
    ticks = count(step=10.0)
    reporter = Reporter(
        "train",
        target=ProgressTarget.from_environment(environment),
        stream=StringIO(),
        clock=lambda: next(ticks),
    )
    for step in range(100):
        reporter.update(step / 100)
    reporter.close()
    assert broken == []
    assert "geheim" not in caplog.text


def _has(server: ProgressServer, count_of_reports: int) -> bool:
    return len(server.reports) == count_of_reports


def test_reports_to_a_cluster_are_five_seconds_apart_whatever_the_work_does(
    server: ProgressServer, environment: dict[str, str]
) -> None:
    now = [0.0]
    target = ProgressTarget.from_environment(environment)
    reporter = Reporter("train", target=target, stream=StringIO(), clock=lambda: now[0])
    for second in range(11):
        now[0] = float(second)
        reporter.update(second / 100)
        due = second // 5 + 1
        wait_until(partial(_has, server, due), what="the reports that are due")
    reporter.close()
    sent = [report.trainer_status.progress_percentage for report in server.reports]
    assert sent == [0, 5, 10, 10]


def test_without_a_token_nothing_is_sent(environment: dict[str, str]) -> None:
    del environment[PROGRESS_TOKEN_ENV]
    assert ProgressTarget.from_environment(environment) is None


def test_a_token_that_is_renewed_is_read_again(
    server: ProgressServer, environment: dict[str, str], token_path: Path
) -> None:
    token_path.write_text("expired")
    ticks = count(step=10.0)
    reporter = Reporter(
        "train", target=ProgressTarget.from_environment(environment), stream=StringIO(), clock=lambda: next(ticks)
    )
    reporter.update(0.1)
    wait_until(lambda: len(server.seen) == 1, what="the first report")
    # As the kubelet does it: the name is moved to a new file.
    renewed = token_path.with_name("renewed")
    renewed.write_text(TOKEN)
    renewed.rename(token_path)
    reporter.update(0.2)
    wait_until(lambda: len(server.seen) == 2, what="the second report")
    reporter.close()
    assert server.reports[0].trainer_status.progress_percentage == 20
