"""Trainings in this process, interrupted where a test says, and what they left: courses and weights, to be compared."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.training import Workshop, quiet_context

from finetuning_api.runconfig import TrainConfig, TrainResult
from finetuning_trainer import loop
from finetuning_trainer.train import train_model
from finetuning_workload.errors import Interrupted
from finetuning_workload.models import load_adapter, load_base_model
from finetuning_workload.program import StopFlag

ROUNDING = 1e-5
"""What sums in another order may differ by, in losses and weights of a tiny model in fp32."""
_LOGITS_OF_STOCK_PEFT = """
import sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
with torch.no_grad():
    save_file({"logits": model(torch.arange(3, 40)[None]).logits.contiguous()}, sys.argv[3])
"""


def trained(config: TrainConfig, stop: StopFlag | None = None) -> TrainResult:
    return train_model(config, quiet_context(stop))


@contextmanager
def threads_as_before() -> Iterator[None]:
    """A training chooses its threads; here it shares a process with other tests."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def before_each_step(patch: pytest.MonkeyPatch, act: Callable[[loop.Session, int], object]) -> None:
    """Do something when a step, counted from 1, begins."""
    compute = loop.compute_step

    def watched(session: loop.Session, step: int, *, saved_step: int | None) -> loop.StepOutcome:
        act(session, step + 1)
        return compute(session, step, saved_step=saved_step)

    patch.setattr(loop, "compute_step", watched)


def before_step(patch: pytest.MonkeyPatch, number: int, act: Callable[[loop.Session], object]) -> None:
    """Do something when one step, counted from 1, begins."""
    before_each_step(patch, lambda session, step: act(session) if step == number else None)


def interrupt(workshop: Workshop, *, after: int, **training: Any) -> None:  # noqa: ANN401  (fields of TrainingSpec)
    """Train up to a checkpoint of this step: asked to stop in the next one, which is given up."""
    flag = StopFlag()
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, after + 1, lambda _: flag.set())
        with pytest.raises(Interrupted, match=f"step {after} of"):
            trained(workshop.train_config(**training), flag)


def break_base_model(workshop: Workshop) -> None:
    """Let the base model have a weight that is no finite number."""
    file = workshop.model / "model.safetensors"
    content = load_file(file)
    content["model.norm.weight"][0] = float("inf")
    save_file(content, file, metadata={"format": "pt"})


def weights(workshop: Workshop) -> dict[str, torch.Tensor]:
    """Return the tensors of the result, an adapter or a whole model."""
    (path,) = workshop.output.glob("*model.safetensors")
    return load_file(path)


def losses(workshop: Workshop) -> list[tuple[float, float | None]]:
    """Return the loss of each step, and the held-out loss where it was taken."""
    return [(step["loss"], step.get("eval_loss")) for step in workshop.history()]


def assert_same_training(one: Workshop, other: Workshop) -> None:
    """Bit for bit."""
    assert losses(one) == losses(other)
    assert_same_weights(one, other)


def assert_same_weights(one: Workshop, other: Workshop) -> None:
    """Bit for bit."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert [name for name, weight in mine.items() if not torch.equal(weight, theirs[name])] == []


def assert_alike(one: Workshop, other: Workshop) -> None:
    """But for rounding."""
    assert_alike_losses(one, other, tolerance=ROUNDING)
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(weight, theirs[name], atol=ROUNDING, rtol=0, msg=name)


def assert_alike_losses(one: Workshop, other: Workshop, *, tolerance: float) -> None:
    assert [step["step"] for step in one.history()] == [step["step"] for step in other.history()]
    for (loss, held_out), (other_loss, other_held_out) in zip(losses(one), losses(other), strict=True):
        assert loss == pytest.approx(other_loss, abs=tolerance)
        assert held_out == (None if other_held_out is None else pytest.approx(other_held_out, abs=tolerance))


def assert_stock_peft_agrees(workshop: Workshop) -> None:
    """The adapter does something, all of it, and a fresh process with nothing but PEFT computes the same with it."""
    ours = load_adapter(
        load_base_model(workshop.model, dtype=torch.float32, device=torch.device("cpu")), workshop.output
    )
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        tuned = ours(ids).logits
        with ours.disable_adapter():
            base = ours(ids).logits
    assert not torch.allclose(tuned, base, atol=1e-3)
    assert [name for name, weight in weights(workshop).items() if "lora_B" in name and not weight.any()] == []
    theirs = workshop.folder / "logits-of-stock-peft"
    script = [sys.executable, "-c", _LOGITS_OF_STOCK_PEFT, str(workshop.model), str(workshop.output), str(theirs)]
    subprocess.run(script, check=True, timeout=120)
    torch.testing.assert_close(load_file(theirs)["logits"], tuned, atol=1e-6, rtol=0)
