"""The course of a training: one JSON line a step, beside the checkpoints."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning_api.runconfig import HISTORY_NAME
from finetuning_trainer.events import EventFiles
from finetuning_trainer.spikes import Spike

if TYPE_CHECKING:
    from finetuning_trainer.loop import StepOutcome

_EVALUATION_LOSS = "eval_loss"


def evaluation_losses(content: bytes) -> list[float]:
    """Return the held-out losses of a history, in order; a last line that is not whole yet is not read."""
    whole = content[: content.rfind(b"\n") + 1]
    lines = map(json.loads, whole.splitlines())
    return [line[_EVALUATION_LOSS] for line in lines if _EVALUATION_LOSS in line]


class History:
    """Appends to metrics.jsonl. A checkpoint keeps a copy: resuming takes the lines that belong to its step.

    Of several processes one writes; what the others are told is not kept.
    """

    def __init__(
        self, folder: Path, *, content: bytes = b"", events: EventFiles | None = None, writes: bool = True
    ) -> None:
        self._events = events or EventFiles(None)
        self._before, self._writes = content, writes
        self.path = folder / HISTORY_NAME
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(content)

    def append(
        self,
        step: int,
        outcome: "StepOutcome",
        *,
        seconds: float,
        evaluation_loss: float | None = None,
        spike: Spike | None = None,
    ) -> None:
        """Add a step: losses in nats per supervised token, speed in tokens per second, time in seconds of the epoch."""
        if not self._writes:
            return
        line: dict[str, float] = {
            "step": step,
            "loss": outcome.loss,
            "learning_rate": outcome.rate,
            "grad_norm": outcome.gradient_norm,
            "tokens": outcome.tokens,
            "tokens_per_second": round(outcome.tokens / max(seconds, 1e-9), 1),
        }
        if evaluation_loss is not None:
            line[_EVALUATION_LOSS] = evaluation_loss
        self._events.add(step, line)
        extra = {"time": round(time.time(), 3)} | ({"spike": asdict(spike)} if spike else {})
        with self.path.open("a") as file:
            file.write(json.dumps(line | extra) + "\n")

    def losses(self) -> list[float]:
        """Return the loss of every step up to now."""
        return [line["loss"] for line in self._lines()]

    def spikes(self) -> tuple[int, ...]:
        """Return the steps whose loss stood out."""
        return tuple(line["step"] for line in self._lines() if "spike" in line)

    def read(self) -> bytes:
        """Return everything up to now."""
        return self.path.read_bytes() if self._writes else self._before

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.read().splitlines()]
