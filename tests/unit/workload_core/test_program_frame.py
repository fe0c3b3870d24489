"""The frame of every program: exit codes, last words, the stop flag, and the end with the parent."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import (
    RUN_CONFIG_ENV,
    TERMINATION_LOG_BYTES,
    TERMINATION_LOG_ENV,
    JobIdentity,
    LastWords,
    MeasureConfig,
    MeasureResult,
    RunConfig,
)
from finetuning_api.sources import SourceRef
from finetuning_workload.errors import EnvironmentFault, Interrupted, UserError
from finetuning_workload.parent import PARENT_ENV, follow_parent
from finetuning_workload.program import Context, StopFlag, encode_last_words, read_run_config, run_program

CONFIG = MeasureConfig(job=JobIdentity(kind="Relocation", name="r"), source=SourceRef(source="file:///rows"))
WAITING_PROGRAM = """
import sys
from finetuning_workload.program import run_program

def work(config, context):
    print("ready", flush=True)
    context.stop.wait(60)
    context.stop.raise_if_set("stopped while waiting")

sys.exit(run_program(work))
"""


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], LastWords]:
    (tmp_path / "run.json").write_text(CONFIG.to_json())
    monkeypatch.setenv(RUN_CONFIG_ENV, str(tmp_path / "run.json"))
    monkeypatch.setenv(TERMINATION_LOG_ENV, str(tmp_path / "words"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return lambda: LastWords.model_validate_json((tmp_path / "words").read_bytes())


def test_success_leaves_the_result(words: Callable[[], LastWords]) -> None:
    result = MeasureResult(size_bytes=3, files=1)
    assert run_program(lambda _config, _context: result) == ExitCode.DONE
    assert words() == LastWords(reason=Reason.SUCCEEDED, result=result)


@pytest.mark.parametrize(
    ("error", "exit_code", "reason"),
    [
        (UserError(Reason.SOURCE_NOT_FOUND, "x was not found", "Look again."), 1, Reason.SOURCE_NOT_FOUND),
        (EnvironmentFault(Reason.DISK_FULL, "no space"), 203, Reason.DISK_FULL),
        (Interrupted("stopped"), 143, Reason.INTERRUPTED),
        (MemoryError(), 1, Reason.OUT_OF_MEMORY),
        (OSError(28, "No space left on device"), 203, Reason.DISK_FULL),
        (ZeroDivisionError("division by zero"), 203, Reason.INTERNAL),
    ],
)
def test_a_failure_has_its_exit_code_and_reason(
    words: Callable[[], LastWords], error: BaseException, exit_code: int, reason: Reason
) -> None:
    def work(_config: RunConfig, _context: Context) -> None:
        raise error

    assert run_program(work) == exit_code
    assert words().reason is reason


def test_a_mistake_of_the_user_shows_no_traceback(
    words: Callable[[], LastWords], caplog: pytest.LogCaptureFixture
) -> None:
    def work(_config: RunConfig, _context: Context) -> None:
        raise UserError(Reason.SOURCE_NOT_FOUND, "x was not found", "Look again.")

    run_program(work)
    assert "x was not found Look again." in caplog.text
    assert "Traceback" not in caplog.text
    assert words().hint == "Look again."


@pytest.mark.parametrize("content", [None, "{", '{"kind": "bake"}'])
def test_a_run_config_that_cannot_be_read_is_a_fault_of_the_environment(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EnvironmentFault) as fault:
        read_run_config({RUN_CONFIG_ENV: str(path)})
    assert str(path) in fault.value.message


def test_a_program_that_was_not_given_a_run_config_says_who_starts_it() -> None:
    with pytest.raises(EnvironmentFault) as fault:
        read_run_config({})
    assert "finetune run" in fault.value.hint


@pytest.mark.parametrize("message", ["x" * 10_000, "ä" * 9_000, '"\n' * 5_000])
def test_last_words_fit_and_stay_json(message: str) -> None:
    words = LastWords(reason=Reason.INTERNAL, message=message, hint="Look at the log.")
    encoded = encode_last_words(words)
    decoded = json.loads(encoded)
    assert len(encoded) <= TERMINATION_LOG_BYTES
    assert (decoded["reason"], decoded["hint"]) == ("Internal", "Look at the log.")
    assert decoded["message"].startswith(message[:100])


def test_a_result_that_is_too_long_is_left_out_but_not_the_reason() -> None:
    result = MeasureResult(size_bytes=1, files=1, resolved_revision="r" * 5000)
    encoded = encode_last_words(LastWords(reason=Reason.SUCCEEDED, result=result))
    assert LastWords.model_validate_json(encoded) == LastWords(reason=Reason.SUCCEEDED)


def test_short_last_words_are_left_alone() -> None:
    words = LastWords(reason=Reason.INTERNAL, message="short")
    assert LastWords.model_validate_json(encode_last_words(words)) == words


def test_a_stop_flag_ends_a_wait() -> None:
    stop = StopFlag()
    assert not stop.wait(0)
    stop.set()
    assert stop.wait(60)
    with pytest.raises(Interrupted):
        stop.raise_if_set("stopped")


def start(tmp_path: Path, **environment: str) -> "subprocess.Popen[str]":
    (tmp_path / "run.json").write_text(CONFIG.to_json())
    return subprocess.Popen(
        [sys.executable, "-c", WAITING_PROGRAM],
        env={
            **os.environ,
            RUN_CONFIG_ENV: str(tmp_path / "run.json"),
            TERMINATION_LOG_ENV: str(tmp_path / "words"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_program_after_saving(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED
    assert json.loads((tmp_path / "words").read_text())["reason"] == "Interrupted"


def test_a_program_whose_parent_is_gone_stops(tmp_path: Path) -> None:
    process = start(tmp_path, **{PARENT_ENV: "1"})
    process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED


def test_without_a_parent_to_follow_nothing_happens() -> None:
    follow_parent({})
