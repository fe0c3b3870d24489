"""Damage to what a run left behind, and losses that are no numbers: found by digest, repaired or refused, never used.

What other tests show of the same damage, and is not repeated here:

=====================================================  ===============================================================
each kind of damage to a checkpoint and to the cache   tests/workload/trainer/test_trainer_programs.py,
                                                       tests/unit/data/test_data_preparing.py
damaged data and adapters, a damaged status            tests/workload/local_run/test_local_run_faults.py
each damaged line of a state file                      tests/unit/cli/test_cli_store.py
a loss that is no number at the first step             tests/workload/trainer/test_trainer_programs.py
=====================================================  ===============================================================
"""

import os
import signal
from pathlib import Path

import pytest
from tests.support.bad_input import Desk, poison, poisoned_rows, require_told
from tests.support.models import tiny_llama
from tests.support.processes import wait_until

from finetuning_api.reasons import Reason
from finetuning_workload.artifact import require_intact

COLUMN = {"dataset.prompt": "{mesage}"}
"""A mistake that ends a job before training."""


def flip_last_byte(file: Path) -> None:
    """Change one byte: size, names and header stay."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk with one job that failed before its training."""
    made = Desk(tmp_path_factory.mktemp("desk"))
    made.run("before", COLUMN)
    return made


def test_one_changed_byte_of_relocated_weights_is_found_and_repaired_before_use(desk: Desk) -> None:
    weights = desk.artifact("before", "model") / "model.safetensors"
    flip_last_byte(weights)

    ended = desk.run("after", COLUMN)

    assert "is damaged (changed or missing: model.safetensors) and is brought again" in ended.errors
    assert weights.read_bytes() == (desk.folder / "model" / "model.safetensors").read_bytes()
    require_told(desk, "after", ended, reason=Reason.COLUMN_NOT_FOUND, told=("{mesage}",))


@pytest.mark.parametrize(
    ("name", "old", "new", "advice"),
    [
        ("objects/FineTuningJob/before.yaml", "rank: 4", "rank: 8", "finetune delete before"),
        (
            "steps/FineTuningJob/before/state.json",
            '"attempts"',
            '"attempt"',
            "are checked and, where needed, run again",
        ),
    ],
)
def test_damaged_state_file_is_refused_with_a_way_out(
    desk: Desk, *, name: str, old: str, new: str, advice: str
) -> None:
    path = desk.state / name
    whole = path.read_text()
    assert old in whole
    path.write_text(whole.replace(old, new))

    ended = desk.run("before", COLUMN)
    path.write_text(whole)

    assert ended.code == 1
    assert ended.output == ""
    assert "Traceback" not in ended.errors
    assert ended.errors.startswith(f"error: the state file {path} is damaged")
    assert advice in ended.errors


def test_damaged_checkpoint_and_adapter_are_never_used(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    changes = {"training.maxSteps": 60, "training.keepCheckpoints": 2}
    process = desk.start("hurt", changes)
    checkpoints = desk.state / "volumes" / "hurt-adapter" / "checkpoints"
    wait_until(lambda: len(list(checkpoints.glob("step-*/manifest.json"))) > 1, what="training has two checkpoints")
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    older, newest = sorted(checkpoints.glob("step-*"))
    flip_last_byte(newest / "weights.safetensors")

    resumed = desk.run("hurt", changes)
    adapter = desk.state / "volumes" / "hurt-adapter" / "adapter"
    require_intact(adapter)
    flip_last_byte(adapter / "adapter_model.safetensors")
    refused = desk.run("hurt", changes)

    assert resumed.code == 0, resumed.terminal
    log = desk.log("hurt", "train")
    assert f"checkpoint of step {_step(newest)} is not used" in log
    assert f"step {_step(older)}" in log
    assert refused.code == 1
    assert "Traceback" not in refused.terminal
    assert refused.errors.startswith("error: the adapter of hurt cannot be trusted: ")
    assert "is damaged: adapter_model.safetensors" in refused.errors
    assert "Train it again: finetune delete hurt" in refused.errors


def test_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    poison(tiny_llama(tmp_path / "poisoned", tied=False), word="漢")
    desk.write_rows("poisoned.jsonl", poisoned_rows(word="漢"))

    ended = desk.run("diverged", {"model.source": "poisoned", "dataset.source": "poisoned.jsonl"})

    told = (
        "train: the training loss is nan at step 3; the checkpoint of step 2 is kept",
        "Try a lower spec.training.learningRate (it is 0.01)",
        "broken rows",
    )
    require_told(desk, "diverged", ended, reason=Reason.LOSS_DIVERGED, told=told)
    volume = desk.state / "volumes" / "diverged-adapter"
    require_intact(volume / "checkpoints" / "step-00000002")
    assert not (volume / "adapter").exists()
    assert desk.steps("diverged")["train"].attempts == 1


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))
