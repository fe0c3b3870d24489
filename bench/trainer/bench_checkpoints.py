"""What checkpoints cost a training: ``python -m bench.trainer.bench_checkpoints``.

Trains the same steps without checkpoints, with checkpoints that are written in the step, and with ones that are
written beside the steps, in turn. Told are medians: how long the training stood still for a checkpoint, and which share
of its time that is. ``--sync-ms`` adds to every sync of a file what a volume behind a network takes for it.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from bench.trainer.material import BATCH_SIZE, MODELS, Course, Data, write_model, write_rows
from transformers import AutoConfig

from finetuning_api.finetuningjob import MethodSpec, MethodType, Precision
from finetuning_trainer import loop
from finetuning_trainer import train as training
from finetuning_trainer.checkpoint import Position
from finetuning_trainer.plan import TrainingPlan, make_plan
from finetuning_workload.models import quiet_libraries
from finetuning_workload.program import Context, StopFlag

_STEPS, _EVERY, _REPEATS = 40, 5, 5
_NEVER = 1_000_000


class Way(StrEnum):
    """How checkpoints are written; that of the last step always is."""

    NONE = "none but the last"
    IN_THE_STEP = "in the step"
    BESIDE = "beside the steps"


@dataclass(slots=True)
class Clock:
    """How long all steps took, and for how long and how often the training stood still for a checkpoint."""

    total: float = 0.0
    still: float = 0.0
    saves: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is measured."""

    folder: Path
    steps: int
    every: int
    sync_seconds: float
    method: MethodSpec


def run(wanted: Wanted, way: Way) -> Clock:
    """Train once."""
    clock, train, save = Clock(), loop.train, loop._save  # noqa: SLF001  (what is measured is inside)

    def trained(session: loop.Session, position: Position, *, saved_step: int | None) -> Position:
        begun = time.perf_counter()
        last = train(session, position, saved_step=saved_step)
        clock.total = time.perf_counter() - begun
        return last

    def saved(*given: Any) -> None:  # noqa: ANN401  (as it is given)
        begun = time.perf_counter()
        save(*given)
        clock.still += time.perf_counter() - begun
        clock.saves += 1

    def planned(*given: Any, **named: Any) -> TrainingPlan:  # noqa: ANN401  (as it is given)
        return replace(make_plan(*given, **named), background_checkpoints=way is Way.BESIDE)

    with tempfile.TemporaryDirectory(dir=wanted.folder) as output, ExitStack() as patches:
        patches.enter_context(patch.object(training, "train", trained))
        patches.enter_context(patch.object(loop, "_save", saved))
        patches.enter_context(patch.object(training, "make_plan", planned))
        patches.enter_context(_slow_sync(wanted.sync_seconds))
        config = Course(wanted.folder, Data.RAGGED, wanted.steps).config(precision=Precision.FP32, output=Path(output))
        every = _NEVER if way is Way.NONE else wanted.every
        update = {"checkpoint_every_steps": every, "evaluate_every_steps": _NEVER}
        config = config.model_copy(
            update={"method": wanted.method, "training": config.training.model_copy(update=update)}
        )
        environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        training.train_model(config, Context(stop=StopFlag(), environment=environment))
    return clock


@contextmanager
def _slow_sync(seconds: float) -> Iterator[None]:
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        fsync(descriptor)
        time.sleep(seconds)

    with patch.object(os, "fsync", slow):
        yield


def table(clocks: dict[Way, list[Clock]], wanted: Wanted) -> str:
    """Return what came of it, as Markdown."""
    lines = [
        "| checkpoints | a step, all between steps included | stood still for a checkpoint | share of the time |",
        "|---|---|---|---|",
    ]
    for way, each in clocks.items():
        step = median(clock.total / wanted.steps for clock in each)
        still = median(clock.still / max(clock.saves, 1) for clock in each)
        share = median(clock.still / clock.total for clock in each)
        lines.append(f"| {way} ({each[0].saves}) | {1000 * step:.1f} ms | {1000 * still:.1f} ms | {share:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="llama-15m")
    parser.add_argument(
        "--method", type=MethodType, choices=[MethodType.LORA, MethodType.FULL], default=MethodType.LORA
    )
    parser.add_argument("--steps", type=int, default=_STEPS)
    parser.add_argument("--every", type=int, default=_EVERY, help="steps between checkpoints")
    parser.add_argument("--repeats", type=int, default=_REPEATS)
    parser.add_argument("--sync-ms", type=float, default=0.0, help="more time for every sync of a file")
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        method = MethodSpec(type=options.method, rank=8, alpha=16)
        wanted = Wanted(Path(folder), options.steps, options.every, options.sync_ms / 1000, method)
        write_model(options.model, wanted.folder / "model")
        words = AutoConfig.from_pretrained(wanted.folder / "model").vocab_size
        write_rows(Data.RAGGED, wanted.folder / Data.RAGGED, samples=options.steps * BATCH_SIZE, words=words)
        clocks: dict[Way, list[Clock]] = {way: [] for way in Way}
        for _ in range(options.repeats):
            for way, each in clocks.items():
                each.append(run(wanted, way))
        sys.stdout.write(table(clocks, wanted) + "\n")


if __name__ == "__main__":
    main()
