"""`finetune export` on one machine after a real training: to a folder, to a registry and to a hub."""

import json
from pathlib import Path

import pytest
import torch
from tests.support.hub import Hub
from tests.support.models import tiny_llama
from tests.support.needs import require_program
from tests.support.processes import finetune
from tests.support.registry import docker_registry
from tests.support.relocator import Relocator, files_in
from tests.support.training import colour_rows, write_rows
from transformers import AutoModelForCausalLM

MANIFEST = """\
apiVersion: finetuning.dev/v1alpha1
kind: FineTuningJob
metadata: {{name: {name}}}
spec:
  model: {{source: model}}
  dataset: {{source: data/rows.jsonl, prompt: "Say {{message}}\\n", completion: "{{answer}}"}}
  method: {{rank: 4}}
  training: {{maxSteps: 4, batchSize: 4, maxLength: 64, learningRate: 0.01, precision: fp32}}
  evaluation: {evaluation}
  exports: {exports}
"""
NO_EVALUATION = "{enabled: false}"
OUT_OF_REACH = "{metrics: [exact-match], gate: [{metric: exact-match, min: 2.0}], generation: {maxNewTokens: 2}}"


def run_job(folder: Path, name: str, *, evaluation: str = NO_EVALUATION, exports: str = "[]") -> None:
    (folder / f"{name}.yaml").write_text(MANIFEST.format(name=name, evaluation=evaluation, exports=exports))
    done = finetune(folder, "run", f"{name}.yaml")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished job that has exported nothing."""
    folder = tmp_path_factory.mktemp("site")
    tiny_llama(folder / "model")
    write_rows(folder / "data", colour_rows())
    run_job(folder, "colours")
    return folder


def exports(folder: Path, name: str = "colours") -> dict[str, dict[str, str]]:
    shown = finetune(folder, "status", name, "-o", "json")
    return {record["name"]: record for record in json.loads(shown.stdout)["status"].get("exports", [])}


def test_a_finished_job_is_merged_once_and_stays_complete(site: Path) -> None:
    done = finetune(site, "export", "colours")

    assert done.returncode == 0, done.stderr
    record = exports(site)["merged"]
    merged = site / ".finetuning" / "volumes" / record["claimName"] / record["path"]
    assert str(merged) in done.stdout
    assert record["digest"] in done.stdout
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    log = site / ".finetuning/steps/FineTuningJob/colours"
    again = finetune(site, "export", "colours")
    assert again.returncode == 0
    assert len(list(log.glob("export-*/attempt-*.log"))) == 1
    assert "Complete" in finetune(site, "status", "colours").stdout


def test_it_is_pushed_to_a_registry_and_serves_as_a_model_again(site: Path, tmp_path: Path) -> None:
    program = require_program("docker-registry", install="apt-get install docker-registry")
    with docker_registry(program, folder=tmp_path) as address:
        to = f"oci://{address}/acme/colours:v1"
        done = finetune(site, "export", "colours", "--to", to)
        assert done.returncode == 0, done.stderr + done.stdout
        record = exports(site)["merged-oci"]
        back = Relocator(tmp_path / "home").relocate(to, tmp_path / "back", include=["*"])
    assert back.artifact.resolved_revision == record["pushedRevision"]
    assert back.artifact.digest == record["digest"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "back").config.model_type == "llama"


def test_an_adapter_is_pushed_to_a_hub_with_the_token_of_the_environment(site: Path) -> None:
    with Hub() as hub:
        command = ("export", "colours", "--format", "adapter", "--to", "hf://acme/colours", "--endpoint", hub.url)
        refused = finetune(site, *command, extra={"HF_TOKEN": ""})
        assert refused.returncode == 1
        assert "HF_TOKEN" in refused.stdout
        done = finetune(site, *command, extra={"HF_TOKEN": "hf_valid"})
        assert done.returncode == 0, done.stderr + done.stdout
        pushed = hub.files("acme/colours")
    adapter = site / ".finetuning/volumes/colours-adapter/adapter"
    assert pushed == files_in(adapter)
    states = {name: record["state"] for name, record in exports(site).items() if name.startswith("adapter")}
    assert states == {"adapter-hf": "Failed", "adapter-hf-2": "Done"}


def test_a_manifest_that_asks_for_exports_gets_them_in_the_same_run(site: Path) -> None:
    with Hub() as hub:
        wanted = f"[{{name: hub, to: 'hf://acme/whole', endpoint: '{hub.url}', secretRef: {{name: team-hub}}}}]"
        (site / "whole.yaml").write_text(MANIFEST.format(name="whole", evaluation=NO_EVALUATION, exports=wanted))
        done = finetune(site, "run", "whole.yaml", extra={"TEAM_HUB_TOKEN": "hf_valid", "HF_TOKEN": ""})
        assert done.returncode == 0, done.stderr
        assert "model.safetensors" in hub.files("acme/whole")
    assert "hf_valid" not in done.stderr + done.stdout
    assert exports(site, "whole")["hub"]["state"] == "Done"


def test_what_missed_its_gate_is_exported_only_on_request(site: Path) -> None:
    run_job(site, "missed", evaluation=OUT_OF_REACH)
    refused = finetune(site, "export", "missed")
    assert refused.returncode == 1
    assert "did not pass the gate" in refused.stdout
    assert finetune(site, "export", "missed", "--any-verdict").returncode == 0


def test_mistakes_are_told_with_what_to_write(site: Path) -> None:
    elsewhere = finetune(site, "export", "colours", "--to", "s3://bucket/model")
    assert elsewhere.returncode == 1
    assert "oci://registry/repository:tag, or hf://owner/name" in elsewhere.stderr
    assert "Traceback" not in elsewhere.stderr
    nowhere = finetune(site, "export", "colours", "--format", "adapter")
    assert "the adapter lies on its own claim already" in nowhere.stderr
