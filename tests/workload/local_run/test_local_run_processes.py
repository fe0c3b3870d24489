"""Trainings of two processes by `finetune run`, from end to end with the real programs and a tiny model."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tests.support.bad_input import good_spec
from tests.support.models import tiny_llama
from tests.support.processes import FINETUNE, finetune, processes_of, start, wait_until
from torch import testing

TOGETHER = {
    "training.maxSteps": 18,
    "parallelism": {"processesPerWorker": 2, "strategy": "ddp"},
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model")
    rows = [{"message": f"case {index} is {kind}", "triage": kind} for index in range(16) for kind in ("bad", "good")]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


def write_job(folder: Path, name: str, **spec: object) -> str:
    """Write a manifest of two processes, and return its file."""
    job = {"apiVersion": "finetuning.dev/v1alpha1", "kind": "FineTuningJob", "metadata": {"name": name}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(job | {"spec": good_spec(TOGETHER) | spec}))
    return f"{name}.yaml"


def claim_of(site: Path, name: str) -> Path:
    return site / f".finetuning/volumes/{name}-adapter"


def record_of(site: Path, name: str) -> dict[str, Any]:
    found = json.loads((claim_of(site, name) / "adapter/provenance.json").read_text())
    assert isinstance(found, dict)
    return found


def test_two_processes_stopped_by_ctrl_c_go_on_to_what_one_process_learns(site: Path) -> None:
    file = write_job(site, "pair")
    process = start(FINETUNE, "run", file, cwd=site)
    wait_until(lambda: any(claim_of(site, "pair").glob("checkpoints/step-*")), what="both train", seconds=300)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    left = processes_of(site / ".finetuning")
    attempts = json.loads((site / ".finetuning/steps/FineTuningJob/pair/state.json").read_text())["content"]["steps"]

    done = finetune(site, "run", file, seconds=900)
    alone = finetune(site, "run", write_job(site, "alone", parallelism={}), seconds=900)

    assert (process.returncode, left) == (130, []), errors
    assert "stopping after a checkpoint" in errors
    assert "Traceback" not in errors
    assert (attempts["train"]["phase"], attempts["train"]["failures"]) == ("Pending", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert alone.returncode == 0, alone.stdout + alone.stderr
    record = record_of(site, "pair")
    assert (record["plan"]["processes"], record["plan"]["strategy"]) == (2, "ddp")
    assert record["resumptions"] == 1
    assert record_of(site, "alone")["plan"]["processes"] == 1
    mine, theirs = (load_file(claim_of(site, name) / "adapter/adapter_model.safetensors") for name in ("pair", "alone"))
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        testing.assert_close(weight, theirs[name], atol=1e-5, rtol=0, msg=name)


def test_trials_of_two_processes_each_are_given_up_together_and_the_best_becomes_the_jobs(site: Path) -> None:
    tuning = {
        "parameters": [{"name": "training.learningRate", "values": [0.01, 1.0e-6]}],
        "search": "grid",
        "halving": {"reductionFactor": 2},
    }

    done = finetune(site, "run", write_job(site, "tuned", tuning=tuning), seconds=900)

    assert done.returncode == 0, done.stdout + done.stderr
    status = yaml.safe_load(finetune(site, "status", "tuned", "-o", "yaml").stdout)["status"]
    trials, best = status["tuning"]["trials"], status["tuning"]["best"]
    assert trials[best]["parameters"][0]["value"] == 0.01
    assert {trial["state"] for trial in trials} <= {"Succeeded", "GivenUp"}
    record = record_of(site, "tuned")
    assert (record["trial"], record["plan"]["processes"]) == (best, 2)
    assert not (claim_of(site, "tuned") / "trials").exists()
    assert processes_of(site / ".finetuning") == []
