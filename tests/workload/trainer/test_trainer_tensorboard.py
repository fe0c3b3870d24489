"""The real TensorBoard reads what the trainer writes: every step once, also where a training was interrupted."""

import sys

import pytest
import torch
from tests.support.processes import wait_until
from tests.support.tensorboard import Curve, tensorboard
from tests.support.trained import before_step
from tests.support.training import Workshop, quiet_context

from finetuning_trainer import loop
from finetuning_trainer.train import train_model
from finetuning_workload.artifact import require_intact


def curves_of(workshop: Workshop) -> dict[str, Curve]:
    """Return what TensorBoard shows once it has read every step."""
    last = workshop.history()[-1]["step"]
    command = (sys.executable, "-m", "tensorboard.main", "--logdir", str(workshop.tensorboard), "--port", "0")
    with tensorboard(*command) as board:
        wait_until(lambda: "." in board.tags() and board.curve("loss")[-1][0] == last, what="everything is read")
        return {tag: board.curve(tag) for tag in board.tags()["."]}


def written(workshop: Workshop) -> dict[str, list[tuple[int, object]]]:
    """Return the same from the history of the training; event files have 32 bits for a number."""
    tags = ("eval_loss", "grad_norm", "learning_rate", "loss", "tokens_per_second")
    lines = workshop.history()
    return {tag: [(int(line["step"]), pytest.approx(line[tag])) for line in lines if tag in line] for tag in tags}


def crash(_session: loop.Session) -> None:
    message = "the machine fails"
    raise RuntimeError(message)


def test_every_number_of_every_step_is_a_point_of_a_curve(workshop: Workshop) -> None:
    train_model(workshop.train_config(max_steps=6, evaluate_every_steps=3), quiet_context())

    assert curves_of(workshop) == written(workshop)


def test_steps_that_are_done_again_after_a_crash_are_shown_once(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = workshop.train_config(max_steps=8, checkpoint_every_steps=3, evaluate_every_steps=2)
    with monkeypatch.context() as patch:
        before_step(patch, 6, crash)
        with pytest.raises(RuntimeError):
            train_model(config, quiet_context())
    train_model(config, quiet_context())

    assert len(list(workshop.tensorboard.iterdir())) == 2
    assert curves_of(workshop) == written(workshop)


def test_a_training_of_another_configuration_begins_anew(workshop: Workshop) -> None:
    for rate in (1e-3, 2e-3):
        train_model(workshop.train_config(max_steps=2, learning_rate=rate), quiet_context())

    assert len(list(workshop.tensorboard.iterdir())) == 1


def test_event_files_are_no_part_of_the_result(workshop: Workshop) -> None:
    train_model(workshop.train_config(max_steps=2), quiet_context())

    assert workshop.tensorboard.is_dir()
    assert not workshop.output.is_relative_to(workshop.tensorboard)
    assert [path for path in require_intact(workshop.output).files if "events" in path.path] == []


def test_a_folder_that_cannot_be_written_stops_no_training(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    workshop.tensorboard.parent.mkdir(parents=True)
    workshop.tensorboard.write_text("a file where the folder should be")

    result = train_model(workshop.train_config(max_steps=2), quiet_context())

    assert result.steps == 2
    assert "TensorBoard is told nothing more" in caplog.text


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
