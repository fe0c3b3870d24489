"""Learning from preferences: the better output gains on the worse one, under the contract of every training."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.models import tiny_llama
from tests.support.training import COLOURS, Workshop, quiet_context, run_trainer, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetuning_api.dataset import DatasetSplit, RowFormat
from finetuning_api.finetuningjob import Objective, Schedule, TrainingSpec
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import DatasetInput, PreflightConfig, TrainConfig, TrainResult
from finetuning_trainer.dpo import arguments
from finetuning_trainer.preflight import preflight
from finetuning_trainer.provenance import TrainingProvenance
from finetuning_trainer.torchrun import run_training
from finetuning_workload.errors import UserError

PAIRS = RowFormat(prompt="Say {message}\n", completion="{better}", rejected="{worse}", split=DatasetSplit(test=0.2))


def pairs(count: int = 40) -> list[dict[str, str]]:
    """Return rows whose better output names the colour of their prompt, and whose worse one names the next."""
    return [
        {
            "message": f"{COLOURS[number % 4]} {number}",
            "better": f"it is {COLOURS[number % 4]}",
            "worse": f"it is {COLOURS[(number + 1) % 4]}",
        }
        for number in range(count)
    ]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, tiny_llama(tmp_path / "model"), write_rows(tmp_path / "data", pairs()))


def data_of(workshop: Workshop, rows: RowFormat) -> DatasetInput:
    return workshop.train_config().dataset.model_copy(update={"rows": rows})


def train_config(workshop: Workshop, **training: Any) -> TrainConfig:  # noqa: ANN401  (fields of TrainingSpec)
    settings: dict[str, Any] = {"objective": "dpo", "max_steps": 8}
    config = workshop.train_config(**(settings | training))
    return config.model_copy(update={"dataset": data_of(workshop, PAIRS)})


def preflight_config(workshop: Workshop, rows: RowFormat = PAIRS) -> PreflightConfig:
    return workshop.preflight_config(objective="dpo").model_copy(update={"dataset": data_of(workshop, rows)})


def margins(workshop: Workshop) -> tuple[float, float]:
    """Return by how much the better output is likelier than the worse (nats, mean): to base model and tuned one."""
    tokenizer = AutoTokenizer.from_pretrained(workshop.model)
    base = AutoModelForCausalLM.from_pretrained(workshop.model, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, str(workshop.output)).eval()

    def score(prompt: str, answer: str) -> float:
        ids = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        with torch.inference_mode():
            found = tuned(ids).logits[0, start - 1 : -1].log_softmax(-1)
        return float(found.gather(1, ids[0, start:, None]).sum())

    def margin() -> float:
        found = [
            score(f"Say {row['message']}\n", row["better"]) - score(f"Say {row['message']}\n", row["worse"])
            for row in pairs(8)
        ]
        return sum(found) / len(found)

    with tuned.disable_adapter():
        before = margin()
    return before, margin()


def test_the_better_output_gains_and_the_adapter_is_one_as_any_other(workshop: Workshop) -> None:
    told = run_training(train_config(workshop, learning_rate=1e-2), quiet_context())

    assert isinstance(told, TrainResult)
    before, after = margins(workshop)
    assert after > before + 0.5
    record = TrainingProvenance.model_validate_json((workshop.output / "provenance.json").read_bytes())
    assert (told.steps, record.steps, record.method.rank) == (8, 8, 4)
    assert record.script is not None
    assert record.script.source == "finetuning_trainer.dpo"
    assert record.training.objective == "dpo"
    assert record.evaluation_loss is not None
    assert record.evaluation_loss < 0.6931  # What is lost where nothing is preferred: ln 2.


def test_settings_of_the_job_are_those_of_trl(tmp_path: Path) -> None:
    training = TrainingSpec(
        objective=Objective.DPO,
        preference_beta=0.7,
        batch_size=12,
        micro_batch_size=4,
        max_length=77,
        schedule=Schedule.CONSTANT,
        warmup_ratio=0.25,
        checkpoint_every_steps=7,
        keep_checkpoints=3,
    )

    told = arguments(training, str(tmp_path), on_cpu=True)

    assert (told.beta, told.max_length, told.warmup_steps) == (0.7, 77, 0.25)
    assert (told.per_device_train_batch_size, told.gradient_accumulation_steps) == (4, 3)
    assert (told.lr_scheduler_type, told.save_steps, told.save_total_limit) == ("constant_with_warmup", 7, 3)


def test_a_stop_saves_and_the_next_attempt_goes_on(workshop: Workshop) -> None:
    config = train_config(workshop, max_steps=16, checkpoint_every_steps=1)
    stopped = run_trainer(
        config,
        workshop.folder / "run",
        when=lambda: any(workshop.checkpoints.glob("checkpoint-*/trainer_state.json")),
        send=signal.SIGTERM,
    )
    assert stopped.code == ExitCode.INTERRUPTED, stopped.log
    assert not workshop.output.exists()

    resumed = run_trainer(config, workshop.folder / "run")
    told = resumed.words.result
    assert isinstance(told, TrainResult), resumed.log
    assert (told.steps, told.resumptions) == (16, 1)
    assert told.resumed_from_step is not None
    assert 0 < told.resumed_from_step <= 16


def test_a_column_that_is_not_there_is_told_in_preflight(workshop: Workshop) -> None:
    with pytest.raises(UserError) as refused:
        preflight(preflight_config(workshop, PAIRS.model_copy(update={"rejected": "{worst}"})), quiet_context())
    assert refused.value.reason is Reason.COLUMN_NOT_FOUND
    assert "spec.dataset.rejected: the data has no column for {worst}" in refused.value.message
    assert "'worse'" in refused.value.hint


def test_data_without_one_pair_is_told_in_preflight(workshop: Workshop) -> None:
    with pytest.raises(UserError) as refused:
        preflight(preflight_config(workshop, PAIRS.model_copy(update={"rejected": "{better}"})), quiet_context())
    assert refused.value.reason is Reason.COMPLETIONS_EMPTY
    assert "spec.dataset.rejected" in refused.value.message


def test_rows_without_a_worse_output_are_left_out(workshop: Workshop) -> None:
    rows = pairs()
    for row in rows[::4]:
        row["worse"] = ""
    write_rows(workshop.data, rows)
    assert preflight(preflight_config(workshop), quiet_context()).dataset.rows == 40
    files = list((workshop.folder / "claim" / "cache").rglob("train.jsonl"))
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert all(line["rejected"] and line["rejected"] != line["chosen"] for line in lines)
    assert {tuple(line) for line in lines} == {("prompt", "chosen", "rejected")}
