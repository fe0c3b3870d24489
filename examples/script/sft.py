"""A training of one's own: TRL's SFTTrainer, told by the environment where everything is.

Any program can stand here. It ends with 0 when its adapter is in FINETUNING_OUTPUT_PATH, with 1 when its input is
wrong, and with 203 to be tried again. What it keeps in FINETUNING_CHECKPOINT_PATH is there when it is started again.
"""

import json
import os
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

MODEL, CHECKPOINTS = os.environ["FINETUNING_MODEL_PATH"], os.environ["FINETUNING_CHECKPOINT_PATH"]


def main() -> None:
    """Train an adapter on the base model, from the last checkpoint where there is one."""
    settings = json.loads(os.environ["FINETUNING_SETTINGS"])
    training, method = settings["training"], settings["method"]
    rows = load_dataset(
        "json",
        data_files={"train": os.environ["FINETUNING_TRAIN_FILE"], "test": os.environ["FINETUNING_TEST_FILE"]},
    )
    trainer = SFTTrainer(
        model=MODEL,
        args=SFTConfig(
            output_dir=CHECKPOINTS,
            max_length=training["maxLength"],
            num_train_epochs=training["epochs"],
            max_steps=training["maxSteps"] or -1,
            per_device_train_batch_size=training["batchSize"],
            learning_rate=training["learningRate"],
            seed=training["seed"],
            save_steps=training["checkpointEverySteps"],
            save_total_limit=training["keepCheckpoints"],
            # Asked to stop (a drained node, a suspended job) it saves before it ends.
            enable_jit_checkpoint=True,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            report_to="none",
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        peft_config=LoraConfig(
            r=method["rank"], lora_alpha=method["alpha"], lora_dropout=method["dropout"], target_modules="all-linear"
        ),
    )
    last = get_last_checkpoint(CHECKPOINTS)
    if last and is_finished(last) and isinstance(trainer.model, PeftModel):
        # Stopped between its last step and its end: resumed, the Trainer would take one more step.
        trainer.model.load_adapter(last, "default")
    else:
        trainer.train(resume_from_checkpoint=last)
    trainer.save_model(os.environ["FINETUNING_OUTPUT_PATH"])


def is_finished(checkpoint: str) -> bool:
    """Tell whether a checkpoint is that of the last step."""
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    return bool(state.global_step >= state.max_steps)


if __name__ == "__main__":
    main()
