"""How near the plan's memory is to what a training takes: ``python -m bench.trainer.bench_memory``.

Every training has a process of its own, the trainer as it is started in a pod, and writes both figures into its
provenance: what the plan expected before the first step, and the peak of its resident memory. Memory of large tensors
goes back to the system at once, as where memory is scarce; ``--kept`` leaves it to the C library, as where it is not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bench.trainer.material import BATCH_SIZE, MODELS, Course, Data, write_model, write_rows
from transformers import AutoConfig

from finetuning_api.finetuningjob import MethodSpec, MethodType, Precision
from finetuning_api.runconfig import PROVENANCE_NAME, RUN_CONFIG_ENV, TERMINATION_LOG_ENV
from finetuning_workload.files import format_bytes

_STEPS, _EVERY = 4, 2
_GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "33554432"}
"""What the trainer sets where memory is scarce, as variables of glibc."""
METHODS = {
    "lora-8": MethodSpec(rank=8, alpha=16),
    "lora-64": MethodSpec(rank=64, alpha=128),
    "full": MethodSpec(type=MethodType.FULL),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One training."""

    model: str
    method: str
    precision: Precision
    data: Data

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.model}, {self.method}, {self.precision}, {self.data}"


def run(case: Case, home: Path, *, steps: int, every: int, kept: bool) -> dict[str, Any]:
    """Train, and return the provenance. Raises SystemExit with the log where the training fails."""
    with tempfile.TemporaryDirectory(dir=home) as output:
        config = Course(home, case.data, steps).config(precision=case.precision, output=Path(output))
        training = config.training.model_copy(update={"checkpoint_every_steps": every})
        config = config.model_copy(update={"method": METHODS[case.method], "training": training})
        path, words = Path(output) / "run-config.json", Path(output) / "last-words.json"
        path.write_text(config.to_json())
        quiet = {"HF_HUB_OFFLINE": "1", RUN_CONFIG_ENV: str(path), TERMINATION_LOG_ENV: str(words)}
        environment = os.environ | quiet | ({} if kept else _GIVEN_BACK)
        command = [sys.executable, "-m", "finetuning_trainer"]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{case.name} failed:\n{done.stderr[-4000:]}")
        record: dict[str, Any] = json.loads((Path(output) / "adapter" / PROVENANCE_NAME).read_text())
    return record


def line(case: Case, record: dict[str, Any]) -> str:
    """Return a line of the table."""
    plan = record["plan"]
    expected, measured = plan["memory_bytes"], record["peakMemoryBytes"]
    most = ", ".join(plan["memory_reason"].split(", ")[:3])
    return f"| {case.name} | {format_bytes(expected)} | {format_bytes(measured)} | {expected / measured:.2f} | {most} |"


def cases(options: argparse.Namespace) -> Sequence[Case]:
    """Return what is asked for, every combination."""
    wanted = product(options.models, options.methods, options.precisions, options.data)
    return [Case(*each) for each in wanted]


def main() -> None:
    """Measure, and print a table line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["llama-15m", "gpt2-124m", "smollm2-135m"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    precisions = [Precision.FP32, Precision.BF16]
    parser.add_argument("--precisions", nargs="+", type=Precision, choices=precisions, default=precisions)
    parser.add_argument("--data", nargs="+", type=Data, choices=list(Data), default=list(Data))
    parser.add_argument("--steps", type=int, default=_STEPS)
    parser.add_argument("--every", type=int, default=_EVERY, help="steps between checkpoints")
    parser.add_argument("--kept", action="store_true", help="leave freed memory to the C library")
    options = parser.parse_args()
    sys.stdout.write("| training | expected | measured | ratio | the most of it |\n|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options):
            home = Path(folder) / case.model
            if not home.exists():
                write_model(case.model, home / "model")
            if not (home / case.data).exists():
                words = AutoConfig.from_pretrained(home / "model").vocab_size
                write_rows(case.data, home / case.data, samples=options.steps * BATCH_SIZE, words=words)
            record = run(case, home, steps=options.steps, every=options.every, kept=options.kept)
            sys.stdout.write(line(case, record) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
