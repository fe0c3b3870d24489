"""A training by preferences of `finetune run` from end to end with the real programs and a tiny model."""

import json
from pathlib import Path

import pytest
import yaml
from tests.support.models import tiny_llama
from tests.support.processes import finetune

MANIFEST = """\
apiVersion: finetuning.dev/v1alpha1
kind: FineTuningJob
metadata: {name: tone}
spec:
  model: {source: model}
  dataset:
    source: pairs.jsonl
    prompt: "Message: {message}\\nReply: "
    completion: "{better}"
    rejected: "{worse}"
    split: {test: 0.25}
  method: {type: lora, rank: 4}
  training: {objective: dpo, maxSteps: 6, batchSize: 4, maxLength: 96, learningRate: 0.01, precision: fp32}
  evaluation: {metrics: [completion-perplexity]}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model")
    rows = [{"message": f"case {index}", "better": "it is mended", "worse": "no idea"} for index in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "job.yaml").write_text(MANIFEST)
    return tmp_path


def test_preferences_are_learned_and_the_better_output_is_evaluated(site: Path) -> None:
    done = finetune(site, "run", "job.yaml", seconds=900)

    assert done.returncode == 0, done.stdout + done.stderr
    status = yaml.safe_load(finetune(site, "status", "tone", "-o", "yaml").stdout)["status"]
    assert {stage["name"]: stage["state"] for stage in status["stages"]} == {
        "relocate": "Succeeded",
        "preflight": "Succeeded",
        "train": "Succeeded",
        "evaluate": "Succeeded",
    }
    assert status["evaluation"][0]["delta"] < 0
    record = json.loads((site / ".finetuning/volumes/tone-adapter/adapter/provenance.json").read_text())
    assert (record["steps"], record["script"]["source"]) == (6, "finetuning_trainer.dpo")
    # Where nothing is preferred, ln 2 is lost.
    assert record["evaluationLoss"] < 0.69


def test_a_worse_output_that_is_not_there_ends_a_run_in_preflight(site: Path) -> None:
    (site / "job.yaml").write_text(MANIFEST.replace("{worse}", "{wrose}"))

    refused = finetune(site, "run", "job.yaml")

    assert refused.returncode == 1
    assert "spec.dataset.rejected: the data has no column for {wrose}" in " ".join(refused.stdout.split())
    assert "Traceback" not in refused.stdout + refused.stderr


def test_pairs_without_their_objective_are_refused_before_anything_is_brought(site: Path) -> None:
    (site / "job.yaml").write_text(MANIFEST.replace("objective: dpo, ", ""))

    refused = finetune(site, "run", "job.yaml")

    assert refused.returncode == 1
    assert "training.objective dpo and dataset.rejected belong together" in " ".join(refused.stderr.split())
    assert not (site / ".finetuning" / "volumes").exists()
