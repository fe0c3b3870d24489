"""The trainer as it is run: whole trainings, interruptions, damage, and what a user gets told."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.models import tiny_gpt2
from tests.support.trained import (
    assert_same_training,
    assert_same_weights,
    assert_stock_peft_agrees,
    before_step,
    break_base_model,
    interrupt,
    losses,
    trained,
    weights,
)
from tests.support.training import Workshop, colour_rows, run_trainer, write_rows
from transformers import AutoModelForCausalLM

from finetuning_api.reasons import ExitCode, Reason
from finetuning_trainer import loop
from finetuning_trainer.loss import Forward
from finetuning_trainer.provenance import TrainingProvenance
from finetuning_workload.artifact import require_intact
from finetuning_workload.errors import UserError
from finetuning_workload.models import load_adapter, load_base_model


def provenance(workshop: Workshop) -> TrainingProvenance:
    return TrainingProvenance.model_validate_json((workshop.output / "provenance.json").read_bytes())


def test_a_model_learns_what_its_data_says(workshop: Workshop) -> None:
    result = trained(workshop.train_config(method={"type": "full"}, epochs=12, learning_rate=3e-3))
    history = workshop.history()
    assert history[0]["loss"] > 5.0
    assert result.loss is not None
    assert result.loss < 1.0
    assert result.evaluation_loss is not None
    assert result.evaluation_loss < 1.5
    assert [step["step"] for step in history] == list(range(1, result.steps + 1))


@pytest.mark.parametrize("method", [{}, {"dora": True}, {"rslora": True}, {"target_modules": "q_proj,v_proj"}])
def test_an_adapter_gives_the_same_logits_to_stock_peft_in_a_fresh_process(
    workshop: Workshop, method: dict[str, Any]
) -> None:
    trained(workshop.train_config(method=method))
    assert_stock_peft_agrees(workshop)


def test_gpt2_is_trained_with_its_transposed_layers(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, tiny_gpt2(tmp_path / "model"), write_rows(tmp_path / "data", colour_rows()))
    result = trained(workshop.train_config(epochs=6, learning_rate=2e-2))
    config = json.loads((workshop.output / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True
    assert config["base_model_name_or_path"] == "pypi://tiny==1.0"
    assert result.loss is not None
    assert result.loss < workshop.history()[0]["loss"] - 0.5


def test_bf16_learns_with_fp32_adapters(workshop: Workshop) -> None:
    trained(workshop.train_config(precision="bf16", epochs=6, learning_rate=2e-2))
    history = workshop.history()
    assert history[-1]["loss"] < history[0]["loss"] - 0.3
    assert {weight.dtype for weight in weights(workshop).values()} == {torch.float32}


def test_full_fine_tuning_leaves_a_whole_model_with_its_tokenizer(workshop: Workshop) -> None:
    trained(workshop.train_config(method={"type": "full"}))
    names = {path.name for path in workshop.output.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "provenance.json"} <= names
    model = AutoModelForCausalLM.from_pretrained(workshop.output)
    assert model.config._attn_implementation == "sdpa"


def test_the_provenance_tells_what_the_adapter_was_made_of(workshop: Workshop) -> None:
    config = workshop.train_config(seed=11)
    result = trained(config)
    record = provenance(workshop)
    assert record.seed == 11
    assert (record.model, record.dataset) == (config.model.provenance, config.dataset.provenance)
    assert (record.steps, record.loss, record.counts) == (result.steps, result.loss, result.dataset)
    assert record.versions["torch"] == torch.__version__
    assert record.plan["packed"] is True
    assert require_intact(workshop.output).digest == result.digest
    assert "| Seed | 11 |" in (workshop.output / "README.md").read_text()


def test_a_finished_training_is_not_repeated(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained(workshop.train_config())
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_step", None)
        assert trained(workshop.train_config(keep_checkpoints=5)) == first
    assert trained(workshop.train_config(seed=9)).digest != first.digest


def test_a_training_resumed_at_any_step_equals_one_that_was_never_interrupted(workshop: Workshop) -> None:
    options: dict[str, Any] = {"epochs": 1.4, "evaluate_every_steps": 2, "method": {"dropout": 0.3, "rank": 2}}
    trained(workshop.train_config(**options))
    for step in (1, 4, 5, 6):
        shutil.rmtree(workshop.folder / "again", ignore_errors=True)
        resumed = workshop.again()
        interrupt(resumed, after=step, **options)
        assert trained(resumed.train_config(**options)).resumed_from_step == step
        assert_same_training(workshop, resumed)


def test_a_training_counts_how_often_it_went_on(workshop: Workshop) -> None:
    for step in (1, 4):
        interrupt(workshop, after=step, epochs=1.4)
    result = trained(workshop.train_config(epochs=1.4))
    assert (result.resumed_from_step, result.resumptions) == (4, 2)


def test_sigterm_saves_and_exits_143_and_the_next_run_goes_on(workshop: Workshop) -> None:
    config = workshop.train_config(epochs=400, checkpoint_every_steps=100_000)
    metrics = workshop.checkpoints / "metrics.jsonl"
    ended = run_trainer(config, workshop.folder, when=lambda: metrics.exists() and metrics.stat().st_size > 0)
    assert (ended.code, ended.words.reason) == (ExitCode.INTERRUPTED, Reason.INTERRUPTED)
    (saved,) = workshop.checkpoints.glob("step-*")
    assert int(saved.name.removeprefix("step-")) == len(workshop.history())
    assert not workshop.output.exists()


def test_sigkill_loses_at_most_what_came_after_the_last_checkpoint(workshop: Workshop) -> None:
    config = workshop.train_config(epochs=30, checkpoint_every_steps=5)
    second = workshop.checkpoints / "step-00000010"
    ended = run_trainer(config, workshop.folder, when=second.exists, send=signal.SIGKILL)
    assert ended.code == -signal.SIGKILL
    result = trained(config)
    assert result.resumed_from_step is not None
    assert result.resumed_from_step >= 10
    straight = workshop.again()
    trained(straight.train_config(epochs=30, checkpoint_every_steps=5))
    assert_same_training(straight, workshop)


@pytest.mark.parametrize("damage", ["cut", "changed", "no manifest", "half-written"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    workshop: Workshop, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"checkpoint_every_steps": 3, "epochs": 2}
    interrupt(workshop, after=6, **options)
    newest = workshop.checkpoints / "step-00000006"
    file = newest / "weights.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        newest.rename(workshop.checkpoints / ".step-00000006.partial")
    result = trained(workshop.train_config(**options))
    assert result.resumed_from_step == 3
    assert ("checkpoint of step 6 is not used" in caplog.text) is (damage != "half-written")
    assert result.damaged_checkpoints == (() if damage == "half-written" else (6,))
    straight = workshop.again()
    trained(straight.train_config(**options))
    assert_same_training(straight, workshop)


def test_a_checkpoint_of_another_configuration_is_not_used(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(workshop, after=6)
    result = trained(workshop.train_config(learning_rate=1e-3))
    assert (result.resumed_from_step, result.damaged_checkpoints) == (None, ())
    assert "another configuration" in caplog.text
    straight = workshop.again()
    trained(straight.train_config(learning_rate=1e-3))
    assert_same_training(straight, workshop)


OVERFITTED: dict[str, Any] = {
    "epochs": 12,
    "learning_rate": 0.05,
    "schedule": "constant",
    "warmup_ratio": 0,
    "evaluate_every_steps": 3,
    "checkpoint_every_steps": 1000,
    "early_stopping": {"patience": 2},
}
"""A training that forgets what it knew of rows that it never sees."""


def best_of(workshop: Workshop) -> tuple[int, float]:
    """Return step and value of the lowest held-out loss that was written down."""
    told = [(line["eval_loss"], int(line["step"])) for line in workshop.history() if "eval_loss" in line]
    loss, step = min(told)
    return step, loss


def test_a_training_stops_when_the_held_out_loss_falls_no_more_and_keeps_its_best_weights(workshop: Workshop) -> None:
    result = trained(workshop.train_config(**OVERFITTED))
    best, loss = best_of(workshop)
    assert (result.best_step, result.evaluation_loss) == (best, loss)
    assert (result.stopped_early, result.steps) == (True, best + 2 * 3)

    until_then = workshop.again()
    trained(until_then.train_config(**OVERFITTED | {"max_steps": best}))
    assert_same_weights(workshop, until_then)


def test_a_training_that_stops_early_can_be_interrupted_anywhere(workshop: Workshop) -> None:
    straight = trained(workshop.train_config(**OVERFITTED))
    assert straight.best_step is not None
    for step in (straight.best_step, straight.best_step + 1, straight.steps - 1):
        shutil.rmtree(workshop.folder / "again", ignore_errors=True)
        resumed = workshop.again()
        interrupt(resumed, after=step, **OVERFITTED)
        result = trained(resumed.train_config(**OVERFITTED))
        assert (result.best_step, result.steps) == (straight.best_step, straight.steps)
        assert_same_training(workshop, resumed)


def test_the_best_weights_are_kept_where_the_last_step_is_reached(workshop: Workshop) -> None:
    options = OVERFITTED | {"early_stopping": {"patience": 1000}, "keep_checkpoints": 1}
    result = trained(workshop.train_config(**options))
    assert (result.best_step, result.evaluation_loss) == best_of(workshop)
    assert not result.stopped_early
    assert result.best_step is not None
    assert result.best_step < result.steps
    kept = {int(path.name.removeprefix("step-")) for path in workshop.checkpoints.glob("step-*")}
    assert kept == {result.best_step, result.steps}


def test_best_weights_that_are_damaged_are_not_used(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    options = OVERFITTED | {"early_stopping": {"patience": 1000}}
    first = trained(workshop.train_config(**options))
    shutil.rmtree(workshop.output)
    (workshop.checkpoints / f"step-{first.best_step:08d}" / "weights.safetensors").write_bytes(b"cut")

    second = trained(workshop.train_config(**options))

    assert (second.best_step, second.steps) == (None, first.steps)
    assert f"the weights of step {first.steps} are the result: those of step {first.best_step} are gone" in caplog.text


def test_only_so_many_checkpoints_are_kept(workshop: Workshop) -> None:
    trained(workshop.train_config(checkpoint_every_steps=2, keep_checkpoints=2))
    assert sorted(path.name for path in workshop.checkpoints.glob("*step*")) == ["step-00000008", "step-00000010"]


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(session: loop.Session) -> None:
        next(iter(session.weights.values())).data[0] = float("nan")

    with monkeypatch.context() as patch:
        before_step(patch, 6, poison)
        with pytest.raises(UserError, match="nan at step 6; the checkpoint of step 4") as error:
            trained(workshop.train_config(checkpoint_every_steps=2))
    assert error.value.reason is Reason.LOSS_DIVERGED
    assert "spec.training.learningRate (it is 0.005)" in error.value.hint
    assert not workshop.output.exists()
    assert trained(workshop.train_config(checkpoint_every_steps=2)).resumed_from_step == 4


def test_a_base_model_with_broken_weights_is_told_of_at_the_first_step(workshop: Workshop) -> None:
    break_base_model(workshop)
    ended = run_trainer(workshop.train_config(), workshop.folder)
    assert (ended.code, ended.words.reason) == (ExitCode.USER_ERROR, Reason.LOSS_DIVERGED)
    assert "at step 1; no checkpoint was written yet" in ended.words.message
    assert "Traceback" not in ended.log


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes"),
    ],
)
def test_memory_that_runs_out_is_told_with_what_to_lower(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def too_large(*_args: object) -> torch.Tensor:
        raise failure

    monkeypatch.setattr(Forward, "summed_nll", too_large)
    with pytest.raises(UserError, match="out of memory in a forward and backward pass over") as error:
        trained(workshop.train_config())
    assert error.value.reason is Reason.OUT_OF_MEMORY
    assert "spec.training.microBatchSize" in error.value.hint


def test_qlora_is_refused_by_name(workshop: Workshop) -> None:
    with pytest.raises(UserError, match=r"method\.type is qlora") as qlora:
        trained(workshop.train_config(method={"type": "qlora"}))
    assert qlora.value.reason is Reason.UNSUPPORTED


def test_micro_batches_change_the_course_only_by_rounding(workshop: Workshop) -> None:
    other = workshop.again()
    trained(workshop.train_config())
    trained(other.train_config(micro_batch_size=1))
    assert [loss for loss, _ in losses(workshop)] == pytest.approx([loss for loss, _ in losses(other)], abs=1e-4)


def test_the_trained_model_is_peft_s_own(workshop: Workshop) -> None:
    trained(workshop.train_config())
    base = load_base_model(workshop.model, dtype=torch.float32, device=torch.device("cpu"))
    assert isinstance(load_adapter(base, workshop.output), PeftModel)


BROKEN = "\x00\x7f zq \x01" * 6


@pytest.fixture
def broken(workshop: Workshop) -> Workshop:
    rows = [{"message": f"say it {number}", "answer": "it is red"} for number in range(120)]
    rows[70]["answer"] = BROKEN
    write_rows(workshop.data, rows)
    return workshop


WITH_SPIKE: dict[str, Any] = {"epochs": 2, "batch_size": 2, "learning_rate": 0.02}


def test_a_step_with_a_broken_row_is_told_and_shown(broken: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    trained(broken.train_config(**WITH_SPIKE))

    (spike,) = [line for line in broken.history() if "spike" in line]
    assert any(BROKEN in text for text in spike["spike"]["rows"].values())
    assert len(spike["spike"]["rows"]) == 2
    assert provenance(broken).loss_spikes == (spike["step"],)
    assert f"the loss of step {spike['step']} is {spike['loss']:.3f}" in caplog.text


def test_a_resumed_training_knows_what_was_usual(broken: Workshop) -> None:
    trained(broken.train_config(**WITH_SPIKE))
    (step,) = provenance(broken).loss_spikes
    resumed = broken.again()
    interrupt(resumed, after=step - 1, **WITH_SPIKE)
    trained(resumed.train_config(**WITH_SPIKE))
    assert provenance(resumed).loss_spikes == (step,)
