"""Where the work is done and in which precision. One process; sharing a step among several has its place here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.helpers import disable_input_dtype_casting

from finetuning_api.finetuningjob import ParallelismSpec
from finetuning_api.reasons import Reason
from finetuning_trainer.adapters import Trainee
from finetuning_workload.errors import UserError


@dataclass(frozen=True, slots=True)
class SingleProcess:
    """One process on one device. ``dtype`` is what matrices are multiplied in; trained weights are always fp32."""

    device: torch.device
    dtype: torch.dtype

    @contextmanager
    def prepared(self, trainee: Trainee) -> Iterator[None]:
        """Prepare the model for training or evaluation in this precision, as long as the context lasts."""
        # Autocast brings fp32 LoRA weights to bf16; PEFT's own cast would bring every input to fp32 and multiply there.
        with disable_input_dtype_casting(trainee.wrapped, active=self._mixed):
            yield

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute one forward pass in this precision."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self._mixed):
            yield

    def release(self) -> None:
        """Give memory back that nothing uses."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _mixed(self) -> bool:
        return self.dtype is not torch.float32


def require_single_process(parallelism: ParallelismSpec) -> None:
    """Raise UserError(UNSUPPORTED) for more than one process, naming the field."""
    fields = {"workers": parallelism.workers, "processesPerWorker": parallelism.processes_per_worker}
    for name, value in fields.items():
        if value > 1:
            message = f"parallelism.{name} is {value}; this release trains with one process"
            raise UserError(Reason.UNSUPPORTED, message, f"Set parallelism.{name} to 1.")
