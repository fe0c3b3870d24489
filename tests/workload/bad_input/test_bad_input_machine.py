"""Full disks, folders that cannot be written, a second run, and memory that runs out, as `finetune run` tells them.

Everything is real here: file systems of a few megabytes, limits on the address space, a signal that cannot be caught.
What other tests show of the same faults, and is not repeated here:

======================================================  ==============================================================
a second run waits for steps of a first, with a         tests/workload/local_run/test_local_run_faults.py
stand-in program; a program that is killed repeatedly
free space is checked before the first byte, sources    tests/workload/relocation/test_relocator_local.py
each allocator's words; Python's MemoryError            tests/unit/evaluator/test_workload_memory.py,
                                                        tests/unit/workload_core/test_program_frame.py
a state folder below a file or without rights           tests/unit/cli/test_cli_commands.py
======================================================  ==============================================================
"""

import json
import os
import re
import signal
from pathlib import Path

import torch
from tests.support.bad_input import Desk, require_told
from tests.support.models import tiny_llama, tiny_tokenizer
from tests.support.needs import require_program, small_disk
from tests.support.processes import processes_of, wait_until
from transformers import LlamaConfig, LlamaForCausalLM

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import PROVENANCE_NAME
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.lock import state_lock
from finetuning_workload.artifact import require_intact

ADDRESS_SPACE = 5 << 30
"""Bytes that are enough to import torch and load the model, and too few for one step."""


def test_disk_too_small_for_a_model_is_told_with_both_sizes_before_the_first_byte(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=3m") as disk:
        desk = Desk(tmp_path, state=disk / "state")
        tiny_llama(tmp_path / "large", hidden=256, layers=4)

        ended = desk.run("large", {"model.source": "large", "backoffLimit": 1})

        told = ("large needs 9.9 MB", "MB free", "Free space", "--state")
        require_told(desk, "large", ended, reason=Reason.DISK_FULL, told=told)
        assert not (desk.artifact("large", "model") / "manifest.json").exists()
        assert "train" not in desk.steps("large")


def test_disk_that_fills_up_while_checkpoints_are_written_keeps_the_last_whole_one(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=2600k") as disk:
        desk = Desk(tmp_path, state=disk / "state")

        ended = desk.run("checkpoints", {"method": {"type": "full"}, "backoffLimit": 0})

        told = ("train: cannot write step-00000002: no space left on the disk", "Free space", "--state")
        require_told(desk, "checkpoints", ended, reason=Reason.DISK_FULL, told=told)
        volume = desk.state / "volumes" / "checkpoints-adapter"
        assert not (volume / "adapter" / "manifest.json").exists()
        (kept,) = (volume / "checkpoints").glob("step-*")
        assert kept.name == "step-00000001"
        require_intact(kept)


def test_full_disk_of_the_state_folder_itself_is_told(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        desk = Desk(tmp_path, state=disk / "state")
        with (disk / "ballast").open("wb") as ballast:
            ballast.write(bytes(os.statvfs(disk).f_bfree * os.statvfs(disk).f_bsize))

        ended = desk.run("full")

    assert ended.code == 1
    assert "Traceback" not in ended.terminal
    assert "no space left on the disk" in ended.errors
    assert "--state" in ended.errors


def test_read_only_state_folder_is_told_at_once(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=64k", "ro") as disk:
        desk = Desk(tmp_path, state=disk / "state")

        ended = desk.run("readonly")

    assert ended.code == 1
    assert ended.output == ""
    assert ended.errors.splitlines() == [
        f"error: cannot use the state folder: {desk.state} is not writable (Read-only file system)",
        "  Choose a folder that this user may write to (finetune run: with --state).",
    ]


def test_second_run_is_told_who_holds_the_state_folder_and_waits_or_fails(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    column = {"dataset.prompt": "{mesage}"}
    held = f"{desk.state} is in use by the run of first (process {os.getpid()}, since 20"
    with state_lock(Layout.at(desk.state), job="first", wait=False, on_wait=lambda _: None):
        refused = desk.run("second", column, options=("--no-wait",))
        waiting = desk.start("second", column)
        assert waiting.stderr is not None
        line = waiting.stderr.readline()
        waited = waiting.poll() is None and not (desk.state / "objects").exists()
    output, _ = waiting.communicate(timeout=120)

    assert refused.code == 1
    assert refused.output == ""
    assert refused.errors.startswith(f"error: {held}")
    assert "leave out --no-wait, or choose another folder with --state" in refused.errors
    assert line.startswith(f"waits: {held}")
    assert waited
    # It had its turn, and did its own work then.
    assert "ColumnNotFound" in output


def test_memory_that_runs_out_in_a_step_divides_it_further(tmp_path: Path) -> None:
    desk, changes = _hungry(tmp_path, words=150)

    ended = desk.run("hungry", changes, limits=(f"--as={ADDRESS_SPACE}",))

    assert ended.code == 0, ended.errors
    record = json.loads((desk.state / "volumes" / "hungry-adapter" / "adapter" / PROVENANCE_NAME).read_text())
    assert (desk.steps("hungry")["train"].attempts, record["steps"]) == (1, 1)
    pattern = r"out of memory in .* over (\d+) tokens: from step 1 on at most (\d+) tokens at once"
    told = [(int(tried), int(left)) for tried, left in re.findall(pattern, desk.log("hungry", "train"))]
    assert told
    assert all(left < tried for tried, left in told)
    assert told[-1][1] == record["plan"]["micro_batch_tokens"]


def test_memory_that_a_single_row_exhausts_is_told_with_what_to_lower(tmp_path: Path) -> None:
    desk, changes = _hungry(tmp_path, words=2000)

    ended = desk.run("hungry", changes, limits=(f"--as={ADDRESS_SPACE}",))

    told = (
        "train: out of memory in a forward and backward pass over",
        "Lower spec.training.batchSize",
        "spec.training.maxLength",
    )
    require_told(desk, "hungry", ended, reason=Reason.OUT_OF_MEMORY, told=told)
    assert desk.steps("hungry")["train"].attempts == 1
    assert not (desk.state / "volumes" / "hungry-adapter" / "adapter").exists()


def test_trainer_that_the_kernel_kills_is_told_as_out_of_memory(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    process = desk.start("killed", {"training.maxSteps": 5000, "backoffLimit": 0})
    checkpoints = desk.state / "volumes" / "killed-adapter" / "checkpoints"
    wait_until(lambda: any(checkpoints.glob("step-*/manifest.json")), what="training has a checkpoint")
    (trainer,) = processes_of(desk.state)

    os.kill(trainer, signal.SIGKILL)
    output, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "Traceback" not in output + errors
    reason, message = desk.failure("killed")
    assert reason is Reason.OUT_OF_MEMORY
    assert "train: the program was killed (SIGKILL), most likely because the machine ran out of memory" in message
    assert "Lower spec.training.batchSize" in message
    assert (output + errors).count(message) == 1


def _hungry(folder: Path, *, words: int) -> tuple[Desk, dict[str, object]]:
    """Return a desk and what makes its job train one step of 14 rows with twice so many words on a wide model."""
    require_program("prlimit", install="apt-get install util-linux")
    desk = Desk(folder)
    _write_model_with_large_activations(folder / "wide")
    rows = [{"message": f"case {n} " + "red green " * words, "triage": "x"} for n in range(20)]
    desk.write_rows("long.jsonl", rows)
    return desk, {
        "model.source": "wide",
        "dataset.source": "long.jsonl",
        "training.maxLength": 8192,
        "training.maxSteps": 1,
        "training.batchSize": 14,
        "training.microBatchSize": 14,
        "evaluation.enabled": False,
    }


def _write_model_with_large_activations(folder: Path) -> None:
    """Write a model of 13 MB whose activations take 256 kB for each token and projection."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=65536,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
