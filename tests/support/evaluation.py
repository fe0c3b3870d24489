"""A small world to evaluate in: tiny candidates, a data set, and the RunConfig of an evaluation."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from finetuning_api.dataset import DatasetSplit, RowFormat
from finetuning_api.metrics import GateRule, Metric
from finetuning_api.runconfig import (
    RUN_CONFIG_ENV,
    TERMINATION_LOG_ENV,
    CandidateInput,
    DatasetInput,
    EvaluateConfig,
    JobIdentity,
    LastWords,
    ModelInput,
    Provenance,
)
from finetuning_workload.program import Context, StopFlag

PRODUCTS = ("billing", "app", "other")
SEVERITIES = ("low", "high")


def write_adapter(base: Path, folder: Path, *, bias: str = "none", scale: float = 0.3, seed: int = 1) -> Path:
    """Write a LoRA adapter for a base model; ``scale`` 0 makes one that changes nothing."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", bias=bias))  # type: ignore[arg-type]  # a literal
    for name, weight in adapted.named_parameters():
        if "lora_B" in name or (bias != "none" and name.endswith("bias")):
            torch.nn.init.normal_(weight, std=scale)
    adapted.save_pretrained(str(folder))
    return folder


def write_rows(path: Path, *, rows: int = 120) -> Path:
    """Write a triage data set with six distinct completions."""
    lines = (
        json.dumps(
            {
                "message": f"Message {number}: the invoice was charged {number % 7} times",
                "triage": json.dumps(
                    {"product": PRODUCTS[number % 3], "severity": SEVERITIES[number % 2]}, separators=(",", ":")
                ),
            }
        )
        for number in range(rows)
    )
    path.write_text("\n".join(lines) + "\n")
    return path


def model_input(path: Path) -> ModelInput:
    """Return a model with its own tokenizer; its digest is made up from the name."""
    provenance = Provenance(source=f"file://{path.name}", digest=f"sha256:{path.name}")
    return ModelInput(path=str(path), tokenizer_path=str(path), provenance=provenance, tokenizer_provenance=provenance)


def candidate(name: str, model: Path, adapter: Path | None = None) -> CandidateInput:
    """Return a candidate."""
    return CandidateInput(name=name, model=model_input(model), adapter_path=None if adapter is None else str(adapter))


def evaluate_config(
    candidates: Iterable[CandidateInput],
    *,
    data: Path,
    output: Path,
    metrics: Iterable[Metric] = (Metric.COMPLETION_PERPLEXITY,),
    gate: Iterable[GateRule] = (),
    rows: RowFormat | None = None,
) -> EvaluateConfig:
    """Return the RunConfig of an evaluation of the triage data."""
    default = RowFormat(
        prompt="Triage this message:\n{message}\n", completion="{triage}", split=DatasetSplit(test=0.2, seed=1)
    )
    return EvaluateConfig(
        job=JobIdentity(kind="EvaluationJob", name="compare"),
        candidates=tuple(candidates),
        dataset=DatasetInput(
            path=str(data),
            rows=rows or default,
            provenance=Provenance(source=f"file://{data.name}", digest=f"sha256:{data.name}"),
        ),
        metrics=tuple(metrics),
        gate=tuple(gate),
        bootstrap_samples=500,
        output_path=str(output),
    )


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ended."""

    exit_code: int
    last_words: LastWords
    output: str
    log: str


def program_environment(config: Path, last_words: Path) -> dict[str, str]:
    """Return the environment of a program: one thread, no network."""
    return {
        **os.environ,
        RUN_CONFIG_ENV: str(config),
        TERMINATION_LOG_ENV: str(last_words),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def bare_context() -> Context:
    """Return what an evaluation within the test's own process is given: nobody reads what it reports."""
    return Context(stop=StopFlag(), environment=program_environment(Path("none"), Path("none")))


def run_program(module: str, config_json: str, folder: Path) -> Finished:
    """Run a program to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    config, last_words = folder / "config.json", folder / "last-words.json"
    config.write_text(config_json)
    ended = subprocess.run(
        [sys.executable, "-m", module],
        env=program_environment(config, last_words),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    words = LastWords.model_validate_json(last_words.read_bytes())
    return Finished(exit_code=ended.returncode, last_words=words, output=ended.stdout, log=ended.stderr)
