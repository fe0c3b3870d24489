"""`finetune tensorboard`: the real one, on what a job of a state folder has written."""

import signal
import sys
from pathlib import Path

import pytest
from tests.support.objects import job
from tests.support.processes import wait_until
from tests.support.tensorboard import tensorboard
from typer.testing import CliRunner

from finetuning_cli.local.layout import Layout
from finetuning_cli.local.store import Store
from finetuning_cli.main import app
from finetuning_trainer.events import EventFiles

COMMAND = (sys.executable, "-c", "from finetuning_cli.main import app; app()")
SHOW = (*COMMAND, "tensorboard", "demo", "--port", "0", "--state")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    Store(Layout.at(tmp_path)).save(job())
    return tmp_path


def test_it_shows_what_the_job_has_written_until_ctrl_c(state: Path) -> None:
    with EventFiles(state / "volumes/demo-adapter/tensorboard") as events:
        events.add(1, {"loss": 2.5})
        with tensorboard(*SHOW, str(state)) as board:
            events.add(2, {"loss": 1.25})
            wait_until(lambda: "." in board.tags() and len(board.curve("loss")) == 2, what="both steps are shown")
            assert board.curve("loss") == [(1, 2.5), (2, 1.25)]
            board.process.send_signal(signal.SIGINT)
            wait_until(lambda: board.process.poll() is not None, what="it ends")
    assert "Traceback" not in "".join(board.log)


def test_a_job_that_has_not_trained_is_told_so(state: Path) -> None:
    result = CliRunner().invoke(app, ["tensorboard", "demo", "--state", str(state)])

    assert (result.exit_code, result.stderr.splitlines()) == (
        1,
        [
            "error: demo has no course of a training to show",
            "  A FineTuningJob writes it from its first step on: finetune status demo tells where it stands.",
        ],
    )
