"""RunConfigs of the trainer for tiny models and data, and the program run as a process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning_api.dataset import DatasetSplit, RowFormat
from finetuning_api.finetuningjob import MethodSpec, ParallelismSpec, Precision, TrainingSpec
from finetuning_api.runconfig import (
    RUN_CONFIG_ENV,
    TERMINATION_LOG_ENV,
    DatasetInput,
    JobIdentity,
    LastWords,
    ModelInput,
    PreflightConfig,
    Provenance,
    RunConfigBase,
    TrainConfig,
)
from finetuning_workload.program import Context, StopFlag

ALONE = ParallelismSpec()
COLOURS = ("red", "green", "blue", "black")
JOB = JobIdentity(kind="FineTuningJob", name="tiny")


def colour_rows(count: int = 40) -> list[dict[str, str]]:
    """Return rows whose completion follows from their prompt, with prompts of many lengths."""
    words = ("one", "two", "three", "four", "five", "six", "seven")
    return [
        {
            "message": f"{COLOURS[number % 4]} {' '.join(words[: number % 7])} {number}",
            "answer": f"it is {COLOURS[number % 4]}",
        }
        for number in range(count)
    ]


def write_rows(folder: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Write rows as JSON lines into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@dataclass(frozen=True)
class Workshop:
    """A folder with a model and data, and the configurations that use them."""

    folder: Path
    model: Path
    data: Path

    def again(self) -> "Workshop":
        """Return a workshop of the same model and data with a claim of its own."""
        return Workshop(self.folder / "again", self.model, self.data)

    @property
    def output(self) -> Path:
        return self.folder / "claim" / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "claim" / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "claim" / "tensorboard"

    def _inputs(self, training: dict[str, Any], method: dict[str, Any], parallelism: ParallelismSpec) -> dict[str, Any]:
        settings = {"epochs": 2, "batch_size": 8, "max_length": 64, "learning_rate": 5e-3, "precision": Precision.FP32}
        model = Provenance(source="pypi://tiny==1.0", resolved_revision="1.0", digest="sha256:" + "1" * 64)
        return {
            "job": JOB,
            "model": ModelInput(
                path=str(self.model), tokenizer_path=str(self.model), provenance=model, tokenizer_provenance=model
            ),
            "dataset": DatasetInput(
                path=str(self.data),
                rows=RowFormat(prompt="Say {message}\n", completion="{answer}", split=DatasetSplit(test=0.2)),
                provenance=Provenance(source="rows.jsonl", digest="sha256:" + "2" * 64),
            ),
            "method": MethodSpec.model_validate({"rank": 4, "alpha": 8} | method),
            "training": TrainingSpec.model_validate(settings | training),
            "parallelism": parallelism,
            "cache_path": str(self.folder / "claim" / "cache"),
            "output_path": str(self.output),
        }

    def train_config(
        self,
        *,
        method: dict[str, Any] | None = None,
        parallelism: ParallelismSpec = ALONE,
        **training: Any,  # noqa: ANN401  (fields of TrainingSpec)
    ) -> TrainConfig:
        inputs = self._inputs(training, method or {}, parallelism)
        return TrainConfig(**inputs, checkpoint_path=str(self.checkpoints), tensorboard_path=str(self.tensorboard))

    def preflight_config(
        self,
        *,
        method: dict[str, Any] | None = None,
        parallelism: ParallelismSpec = ALONE,
        **training: Any,  # noqa: ANN401  (fields of TrainingSpec)
    ) -> PreflightConfig:
        return PreflightConfig(**self._inputs(training, method or {}, parallelism))

    def history(self) -> list[dict[str, Any]]:
        """Return the course of the training, a dictionary a step."""
        return [json.loads(line) for line in (self.checkpoints / "metrics.jsonl").read_text().splitlines()]


def quiet_context(stop: StopFlag | None = None) -> Context:
    """Return what a program's work is given; nobody listens to its progress."""
    return Context(stop=StopFlag() if stop is None else stop, environment={"OMP_NUM_THREADS": "1"})


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    words: LastWords
    log: str


@dataclass(slots=True)
class Running:
    """The trainer as a process."""

    process: subprocess.Popen[bytes]
    folder: Path

    def rank(self, local_rank: int) -> int | None:
        """Return the process id of one of its ranks; None while it is not there."""
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and f"LOCAL_RANK={local_rank}" in _variables(path):
                    return int(path.name)
        return None

    def ended(self, *, seconds: float = 120) -> Ended:
        """Wait for its end."""
        code = self.process.wait(timeout=seconds)
        path = self.folder / "last-words.json"
        words = path.read_text() if path.exists() else '{"reason": "Internal", "message": "no last words"}'
        log = (self.folder / "log.txt").read_text()
        return Ended(code=code, words=LastWords.model_validate_json(words), log=log)


def _variables(process: Path) -> list[str]:
    return (process / "environ").read_text().split("\0")


def start_trainer(config: RunConfigBase, folder: Path, *, environment: Mapping[str, str] | None = None) -> Running:
    """Start ``python -m finetuning_trainer``; its log and last words go to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config_path, words_path = folder / "run-config.json", folder / "last-words.json"
    config_path.write_text(config.to_json())
    words_path.unlink(missing_ok=True)
    variables = os.environ | {
        RUN_CONFIG_ENV: str(config_path),
        TERMINATION_LOG_ENV: str(words_path),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        **(environment or {}),
    }
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetuning_trainer"], env=variables, stdout=log, stderr=subprocess.STDOUT
        )
    return Running(process, folder)


def run_trainer(
    config: RunConfigBase,
    folder: Path,
    *,
    when: Callable[[], bool] | None = None,
    send: signal.Signals = signal.SIGTERM,
) -> Ended:
    """Run ``python -m finetuning_trainer``; with ``when``, send a signal as soon as the condition holds."""
    running = start_trainer(config, folder)
    while when is not None and running.process.poll() is None and not when():
        pass
    if when is not None:
        running.process.send_signal(send)
    return running.ended()
