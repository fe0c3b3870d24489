"""Direct preference optimisation (Rafailov et al. 2023) with TRL's trainer: ``python -m finetuning_trainer.dpo``.

It is started as a user's program is, by ``finetuning_trainer.script``: told by the same variables, asked to stop in the
same way, its checkpoints in the same folder, and what it leaves is checked as what anybody leaves.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from datasets import Dataset
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, DPOTrainer

from finetuning_api.finetuningjob import MethodSpec, Schedule, TrainingSpec
from finetuning_api.script import (
    CHECKPOINT_PATH_ENV,
    MODEL_PATH_ENV,
    OUTPUT_PATH_ENV,
    SETTINGS_ENV,
    TEST_FILE_ENV,
    TOKENIZER_PATH_ENV,
    TRAIN_FILE_ENV,
)
from finetuning_trainer.adapters import lora_config
from finetuning_workload.hardware import choose_device, choose_dtype, set_threads
from finetuning_workload.models import load_base_model, load_tokenizer, quiet_libraries

if TYPE_CHECKING:
    from peft import PeftModel

TRAINER_STATE_NAME = "trainer_state.json"
_SCHEDULES = {
    Schedule.COSINE: "cosine",
    Schedule.LINEAR: "linear",
    Schedule.CONSTANT: "constant_with_warmup",
}


def main() -> None:
    """Train an adapter on pairs of outputs, from the last checkpoint where there is one."""
    quiet_libraries()
    set_threads(os.environ)
    settings = json.loads(os.environ[SETTINGS_ENV])
    method = MethodSpec.model_validate(settings["method"])
    training = TrainingSpec.model_validate(settings["training"])
    checkpoints = os.environ[CHECKPOINT_PATH_ENV]
    tokenizer = load_tokenizer(Path(os.environ[TOKENIZER_PATH_ENV]))
    device = choose_device()
    # Trained weights stay in 32 bits; the frozen ones are kept in the format that the plan of any training would take.
    dtype = choose_dtype(training.precision, device).dtype
    base = load_base_model(Path(os.environ[MODEL_PATH_ENV]), dtype=dtype, device=device)
    trainer = DPOTrainer(
        model=base,
        args=arguments(training, checkpoints, on_cpu=device.type == "cpu"),
        train_dataset=_rows(TRAIN_FILE_ENV),
        eval_dataset=_rows(TEST_FILE_ENV),
        processing_class=tokenizer,
        # Without the adapter the same weights are the reference: no second model is held.
        peft_config=lora_config(base, method),
    )
    last = get_last_checkpoint(checkpoints)
    done = None if last is None else TrainerState.load_from_json(str(Path(last) / TRAINER_STATE_NAME))
    if last is not None and done is not None and done.global_step >= done.max_steps:
        # Stopped between its last step and its end: resumed, the Trainer would take one more step.
        cast("PeftModel", trainer.model).load_adapter(last, "default")
        trainer.state = done
    else:
        trainer.train(resume_from_checkpoint=last)
    trainer.evaluate()
    trainer.save_state()
    trainer.save_model(os.environ[OUTPUT_PATH_ENV])


def _rows(variable: str) -> Dataset:
    with Path(os.environ[variable]).open(encoding="utf-8") as lines:
        return Dataset.from_list([json.loads(line) for line in lines])


def arguments(training: TrainingSpec, checkpoints: str, *, on_cpu: bool) -> DPOConfig:
    """Return a training in TRL's words. Pairs that do not fit into one forward pass are accumulated."""
    together = training.micro_batch_size or training.batch_size
    passes = max(1, training.batch_size // together)
    return DPOConfig(
        output_dir=checkpoints,
        beta=training.preference_beta,
        max_length=training.max_length,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=together,
        per_device_eval_batch_size=together,
        gradient_accumulation_steps=passes,
        learning_rate=training.learning_rate,
        lr_scheduler_type=_SCHEDULES[training.schedule],
        # Below 1 it is a share of the steps.
        warmup_steps=min(training.warmup_ratio, 0.999),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        eval_strategy="epoch" if training.evaluate_every_steps is None else "steps",
        eval_steps=training.evaluate_every_steps,
        save_steps=training.checkpoint_every_steps,
        save_total_limit=training.keep_checkpoints,
        # Asked to stop, it saves before it ends.
        enable_jit_checkpoint=True,
        gradient_checkpointing=not on_cpu,
        bf16=False,
        use_cpu=on_cpu,
        logging_steps=1,
        report_to="none",
    )


if __name__ == "__main__":
    main()
