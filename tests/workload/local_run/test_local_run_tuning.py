"""Trials of `finetune run` from end to end with the real programs and a tiny model."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from tests.support.models import tiny_llama
from tests.support.processes import FINETUNE, finetune, start, wait_until

TUNING = """\
  tuning:
    parameters:
      - {name: method.rank, values: [4, 8]}
      - {name: training.learningRate, values: [0.01, 1.0e-6]}
    search: grid
    seed: 3
    halving: {reductionFactor: 2}
"""
MANIFEST = """\
apiVersion: finetuning.dev/v1alpha1
kind: FineTuningJob
metadata: {name: triage}
spec:
  model: {source: model}
  dataset:
    source: rows.jsonl
    prompt: "Message: {message}\\nTriage: "
    completion: "{triage}"
    split: {test: 0.25}
  method: {type: lora, rank: 4}
  training: {epochs: 3, batchSize: 4, maxLength: 96, precision: fp32, checkpointEverySteps: 1}
  evaluation: {enabled: false}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model")
    rows = [{"message": f"case {index} is {kind}", "triage": kind} for index in range(16) for kind in ("bad", "good")]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "job.yaml").write_text(MANIFEST + TUNING)
    return tmp_path


def test_trials_interrupted_in_the_middle_end_with_the_best_as_the_jobs_adapter(site: Path) -> None:
    claim = site / ".finetuning/volumes/triage-adapter"
    process = start(FINETUNE, "run", "job.yaml", cwd=site)
    wait_until(lambda: any(claim.glob("trials/1/checkpoints/step-*")), seconds=300, what="the second trial trains")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    interrupted = yaml.safe_load(finetune(site, "status", "triage", "-o", "yaml").stdout)["status"]["tuning"]
    assert interrupted["trials"][0]["state"] in {"Succeeded", "GivenUp"}
    assert interrupted["trials"][2]["state"] == "Pending"

    done = finetune(site, "run", "job.yaml", seconds=500)

    assert done.returncode == 0, done.stdout + done.stderr
    status = yaml.safe_load(finetune(site, "status", "triage", "-o", "yaml").stdout)["status"]
    trials, best = status["tuning"]["trials"], status["tuning"]["best"]
    assert trials[0] == interrupted["trials"][0]
    numbers = [tuple(each["value"] for each in trial["parameters"]) for trial in trials]
    assert sorted(numbers) == [(rank, rate) for rank in (4, 8) for rate in (1e-6, 0.01)]
    losses = [trial["evaluationLoss"] for trial in trials]
    assert losses[best] == min(losses)
    assert numbers[best][1] == 0.01
    # What comes after a good trial and learns nothing is not trained to its end.
    behind = [trial["state"] for trial, (_, rate) in zip(trials[1:], numbers[1:], strict=True) if rate == 1e-6]
    assert "GivenUp" in behind
    assert status["artifacts"]["adapter"]["digest"] == trials[best]["digest"]
    record = json.loads((claim / "adapter/provenance.json").read_text())
    assert (record["trial"], record["method"]["rank"]) == (best, numbers[best][0])
    assert not (claim / "trials").exists()
    table = finetune(site, "status", "triage").stdout
    assert f"trial {best} of 4" in " ".join(table.split())
    assert f"{trials[best]['state']}, best" in table


def test_numbers_that_a_field_cannot_have_end_a_run_before_anything_is_brought(site: Path) -> None:
    (site / "job.yaml").write_text(MANIFEST + TUNING.replace("[4, 8]", "[4, 8.5]"))

    refused = finetune(site, "run", "job.yaml", seconds=500)

    assert refused.returncode == 1
    assert "spec.tuning.parameters[0] (method.rank): rank cannot be 8.5" in " ".join(refused.stdout.split())
    assert "Traceback" not in refused.stdout + refused.stderr


def test_a_field_that_cannot_be_tuned_is_refused_with_those_that_can(site: Path) -> None:
    (site / "job.yaml").write_text(MANIFEST + TUNING.replace("method.rank", "method.ranks"))

    refused = finetune(site, "run", "job.yaml", seconds=500)

    told = " ".join(refused.stderr.split())
    assert refused.returncode == 1
    assert "spec.tuning.parameters[0].name" in told
    assert "training.learningRate" in told
    assert not (site / ".finetuning" / "volumes").exists()
