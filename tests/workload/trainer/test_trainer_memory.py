"""The memory that the plan expects, beside what the process then takes."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.models import tiny_llama
from tests.support.training import Workshop, run_trainer, write_rows

from finetuning_api.runconfig import PROVENANCE_NAME
from finetuning_trainer.memory import NOTHING, Footprint, Linear, Memory, Pass
from finetuning_trainer.plan import kept_tokens, micro_batch_tokens

_TOLERATED = 0.2
_LORA, _FULL = {"rank": 8, "alpha": 16}, {"type": "full"}


def _rows(words: int) -> list[dict[str, str]]:
    """Return rows of about so many words, no two of one length."""
    return [{"message": f"number {number}", "answer": "red green " * (words // 2 - number)} for number in range(40)]


@pytest.fixture(autouse=True)
def memory_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory is scarce: what the C library keeps is not in the plan, and differs from run to run."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "262144")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "33554432")


def _trained(workshop: Workshop, method: dict[str, Any], **training: Any) -> tuple[dict[str, Any], str]:  # noqa: ANN401
    """Train in a process of its own, whose memory is of this training alone; return its provenance and log."""
    config = workshop.train_config(method=method, max_length=512, **training)
    ended = run_trainer(config, workshop.folder / "run")
    assert ended.code == 0, ended.log
    return json.loads((workshop.output / PROVENANCE_NAME).read_text()), ended.log


@pytest.mark.parametrize(
    ("model", "method", "training"),
    [
        ({"hidden": 256, "layers": 6}, _LORA, {"precision": "fp32", "batch_size": 16, "max_steps": 1}),
        # Few rows: cores without bf16 take seconds for each.
        ({"hidden": 256, "layers": 6}, _LORA, {"precision": "bf16", "batch_size": 8, "max_steps": 1}),
        # So large a share of it is weights, moments and a checkpoint's copy that each of them is seen.
        (
            {"hidden": 768, "layers": 4},
            _FULL,
            {"precision": "fp32", "batch_size": 1, "max_steps": 3, "checkpoint_every_steps": 2},
        ),
    ],
    ids=["activations-fp32", "activations-bf16", "full-with-checkpoints"],
)
def test_expected_memory_is_near_what_a_training_takes(
    tmp_path: Path, model: dict[str, Any], method: dict[str, Any], training: dict[str, Any]
) -> None:
    rows = write_rows(tmp_path / "data", _rows(120))

    record, log = _trained(Workshop(tmp_path, tiny_llama(tmp_path / "model", **model), rows), method, **training)

    expected, measured = record["plan"]["memory_bytes"], record["peakMemoryBytes"]
    assert abs(expected / measured - 1) <= _TOLERATED, record["plan"]["memory_reason"]
    assert "peak memory " in log
    assert ", expected " in log


def _memory(**changed: Any) -> Memory:  # noqa: ANN401
    """Return a process of 1000 bytes; a micro-batch keeps 10 a token, and takes one more while it is computed."""
    none = Linear(0, 0, 0)
    footprint = Footprint(kept=Linear(0, 10, 0), forward=Linear(0, 1, 0), backward=none, evaluated=none, block=1)
    fields: dict[str, Any] = {
        "base": 700,
        "weights": 200,
        "gradients": 50,
        "moments": 100,
        "footprint": footprint,
    } | changed
    return Memory(**fields)


def test_peak_is_that_of_the_moment_with_most() -> None:
    memory = _memory()

    assert memory.peak(NOTHING, NOTHING) == 1000 + 50
    # Gradients come while activations go, unless an earlier micro-batch of the step left some.
    assert memory.peak(Pass(100, 0), NOTHING) == 1000 + 10 * 100 + 100
    assert _memory(accumulated=True).peak(Pass(100, 0), NOTHING) == 1000 + 50 + 10 * 100 + 100
    assert memory.with_copy(50, beside=True).peak(Pass(100, 0), NOTHING) == 1000 + 10 * 100 + 100 + 3 * 50
    # What is saved at the end alone is not there while anything is computed.
    assert memory.with_copy(50, beside=False).peak(Pass(100, 0), NOTHING) == 1000 + 10 * 100 + 100
    assert memory.with_copy(50, beside=False).peak(NOTHING, NOTHING) == 1000 + 50 + 3 * 50


@pytest.mark.parametrize(
    ("limit", "longest", "tokens"),
    [
        (1_000_000, 64, 8192),
        # Half of what is free, as long as that is enough to be fast.
        (1000 + 2 * 11 * 2000, 64, 1920),
        # Below that, all of it.
        (1000 + 11 * 500, 64, 480),
        (1000 + 11 * 100, 64, 96),
        # A whole row always passes.
        (1000 + 11 * 100, 300, 300),
        (900, 64, 64),
    ],
)
def test_micro_batches_are_as_large_as_memory_allows(limit: int, longest: int, tokens: int) -> None:
    assert micro_batch_tokens(_memory(), limit=limit, longest=longest) == tokens


@pytest.mark.parametrize(
    ("affordable", "begun_with", "tokens"),
    [
        (1920, None, 1920),
        # Some memory more or less changes no sums.
        (1792, 1920, 1920),
        (2048, 1920, 1920),
        # Memory ran out once: what was learned stays.
        (8192, 480, 480),
        # Less than three quarters of it is another machine.
        (1280, 1920, 1280),
    ],
)
def test_a_training_that_goes_on_keeps_its_micro_batches(affordable: int, begun_with: int | None, tokens: int) -> None:
    assert kept_tokens(affordable, begun_with) == tokens
