"""The course of a training: one JSON line a step, beside the checkpoints."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning_trainer.events import EventFiles

if TYPE_CHECKING:
    from finetuning_trainer.loop import StepOutcome

HISTORY_NAME = "metrics.jsonl"


class History:
    """Appends to metrics.jsonl. A checkpoint keeps a copy: resuming takes the lines that belong to its step."""

    def __init__(self, folder: Path, *, content: bytes = b"", events: EventFiles | None = None) -> None:
        self._events = events or EventFiles(None)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / HISTORY_NAME
        self._path.write_bytes(content)

    def append(
        self, step: int, outcome: "StepOutcome", *, seconds: float, evaluation_loss: float | None = None
    ) -> None:
        """Add a step: losses in nats per supervised token, speed in tokens per second."""
        line: dict[str, float] = {
            "step": step,
            "loss": outcome.loss,
            "learning_rate": outcome.rate,
            "grad_norm": outcome.gradient_norm,
            "tokens": outcome.tokens,
            "tokens_per_second": round(outcome.tokens / max(seconds, 1e-9), 1),
        }
        if evaluation_loss is not None:
            line["eval_loss"] = evaluation_loss
        self._events.add(step, line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def read(self) -> bytes:
        """Return everything up to now."""
        return self._path.read_bytes()
