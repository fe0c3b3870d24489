"""Checkpoints that are written while the training goes on: whole at every end, and failing as they would in a step."""

import errno
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.support.trained import before_step, trained
from tests.support.training import Workshop, run_trainer

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import PROVENANCE_NAME
from finetuning_trainer import checkpoint, loop, plan
from finetuning_trainer.writer import CheckpointWriter
from finetuning_workload.artifact import require_intact
from finetuning_workload.errors import EnvironmentFault, Interrupted, UserError
from finetuning_workload.program import StopFlag

EVERY_THIRD: dict[str, Any] = {"checkpoint_every_steps": 3, "keep_checkpoints": 9}
PATIENCE_SECONDS = 60
"""Only a failing test waits for so long."""


class SlowDisk:
    """A disk that does not answer for the checkpoint of one step until it is told to; with ``full`` it has no room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, step: int, full: bool = False) -> None:
        self.asked, self.answers = threading.Event(), threading.Event()
        self.writers: set[str] = set()
        mark, write = f".step-{step:08d}.partial", save_file

        def slow(tensors: dict[str, torch.Tensor], path: Path) -> None:
            if path.parent.name == mark:
                self.writers.add(threading.current_thread().name)
                self.asked.set()
                assert self.answers.wait(PATIENCE_SECONDS), "nothing went on meanwhile"
                if full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(tensors, path)

        monkeypatch.setattr(checkpoint, "save_file", slow)


def saved(workshop: Workshop, step: int) -> Path:
    return workshop.checkpoints / f"step-{step:08d}"


def tensors(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("method", [{}, {"type": "full"}], ids=["adapter", "full"])
def test_steps_go_on_while_a_checkpoint_is_written_and_it_holds_what_was_when_it_was_begun(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    straight = workshop.again()
    expected = trained(straight.train_config(method=method, **EVERY_THIRD))
    disk = SlowDisk(monkeypatch, step=3)
    seen: list[bool] = []

    def look(_session: loop.Session) -> None:
        assert disk.asked.wait(PATIENCE_SECONDS)
        seen.append(saved(workshop, 3).exists())
        disk.answers.set()

    # Steps 4 and 5 are done by then; before the next checkpoint is begun, this one is waited for.
    before_step(monkeypatch, 6, look)
    result = trained(workshop.train_config(method=method, **EVERY_THIRD))

    assert seen == [False]
    assert disk.writers != {threading.main_thread().name}
    assert result.steps == expected.steps
    assert tensors(workshop.output) == tensors(straight.output)
    assert workshop.history()[-1]["loss"] == straight.history()[-1]["loss"]
    for step in (3, 6, 9):
        require_intact(saved(workshop, step))
        assert tensors(saved(workshop, step)) == tensors(saved(straight, step)), step


def test_whoever_is_asked_to_stop_leaves_both_checkpoints_whole(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, disk, finish = StopFlag(), SlowDisk(monkeypatch, step=3), CheckpointWriter.finish

    def waited_for(writer: CheckpointWriter) -> None:
        if disk.asked.is_set():
            disk.answers.set()
        finish(writer)

    def ask(_session: loop.Session) -> None:
        assert disk.asked.wait(PATIENCE_SECONDS)
        stop.set()

    monkeypatch.setattr(CheckpointWriter, "finish", waited_for)
    before_step(monkeypatch, 5, ask)
    with pytest.raises(Interrupted, match="stopped at step 4 of"):
        trained(workshop.train_config(**EVERY_THIRD), stop)

    assert sorted(path.name for path in workshop.checkpoints.glob("*step*")) == ["step-00000003", "step-00000004"]
    for step in (3, 4):
        require_intact(saved(workshop, step))


@pytest.mark.parametrize("step", [3, 8], ids=["in the middle", "the last"])
def test_a_full_disk_ends_the_training_and_the_next_attempt_goes_on_from_the_one_before(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    options: dict[str, Any] = {"checkpoint_every_steps": 1, "keep_checkpoints": 2, "max_steps": 8}
    with monkeypatch.context() as patch:
        SlowDisk(patch, step=step, full=True).answers.set()
        with pytest.raises(EnvironmentFault, match=f"cannot write step-{step:08d}: no space left on the disk") as full:
            trained(workshop.train_config(**options))
    assert full.value.reason is Reason.DISK_FULL
    assert not workshop.output.exists()
    kept = sorted(path.name for path in workshop.checkpoints.glob("*step*"))
    assert kept == [saved(workshop, step - 2).name, saved(workshop, step - 1).name]

    straight = workshop.again()
    expected = trained(straight.train_config(**options))
    resumed = trained(workshop.train_config(**options))
    assert (resumed.resumed_from_step, resumed.steps) == (step - 1, expected.steps)
    assert [line["loss"] for line in workshop.history()] == [line["loss"] for line in straight.history()]
    assert tensors(workshop.output) == tensors(straight.output)


def test_what_ended_the_training_is_the_reason_where_its_checkpoint_fails_as_well(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = SlowDisk(monkeypatch, step=3, full=True)

    def diverge(_session: loop.Session) -> None:
        assert disk.asked.wait(PATIENCE_SECONDS)
        disk.answers.set()
        raise UserError(Reason.LOSS_DIVERGED, "the training loss is nan", "")

    before_step(monkeypatch, 4, diverge)
    with pytest.raises(UserError, match="the training loss is nan"):
        trained(workshop.train_config(**EVERY_THIRD))
    assert "the last checkpoint could not be written either" in caplog.text
    assert not list(workshop.checkpoints.glob("*step*"))


def test_a_killed_training_goes_on_from_the_checkpoint_before_the_one_it_was_writing(workshop: Workshop) -> None:
    config = workshop.train_config(epochs=30, checkpoint_every_steps=4)

    def writes_another() -> bool:
        return saved(workshop, 4).exists() and any(workshop.checkpoints.glob(".step-*.partial"))

    ended = run_trainer(config, workshop.folder, when=writes_another, send=signal.SIGKILL)
    assert ended.code == -signal.SIGKILL
    done = len(workshop.history())

    result = trained(config)

    assert result.resumed_from_step is not None
    # One interval, and what was computed while the next checkpoint was written: it is waited for by the one after it.
    assert done - result.resumed_from_step <= 2 * 4
    straight = workshop.again()
    trained(straight.train_config(epochs=30, checkpoint_every_steps=4))
    assert tensors(workshop.output) == tensors(straight.output)


def test_without_memory_for_a_copy_checkpoints_are_written_in_the_step(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where there is no memory rows are computed one by one: here they are in both.
    straight, alone = workshop.again(), EVERY_THIRD | {"micro_batch_size": 1}
    trained(straight.train_config(**alone))
    disk = SlowDisk(monkeypatch, step=3)
    disk.answers.set()
    monkeypatch.setattr(plan, "memory_limit", lambda: 1)

    trained(workshop.train_config(**alone))

    assert disk.writers == {threading.main_thread().name}
    assert tensors(workshop.output) == tensors(straight.output)
    plans = [json.loads((each.output / PROVENANCE_NAME).read_text())["plan"] for each in (straight, workshop)]
    assert [each["gives_memory_back"] for each in plans] == [False, True]
