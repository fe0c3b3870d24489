"""A training script as anybody writes it with Hugging Face Transformers; it knows nothing of this project.

``python stock_trainer.py MODEL OUTPUT`` trains 20 steps, slowly enough that progress is reported on the way.
"""

import sys
import time

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

STEPS = 20
_SECONDS_OF_A_STEP = 0.4


class SlowNumbers(Dataset[dict[str, torch.Tensor]]):
    """Rows that take their time, as those of real training do."""

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(_SECONDS_OF_A_STEP)
        row = torch.arange(8) + index
        return {"input_ids": row, "labels": row}


def main(model: str, output: str) -> None:
    """Train."""
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=STEPS,
        per_device_train_batch_size=1,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(model=AutoModelForCausalLM.from_pretrained(model), args=arguments, train_dataset=SlowNumbers())
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
