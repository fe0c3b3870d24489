"""`finetune run` from end to end with the real programs and a tiny model."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.support.models import tiny_llama
from tests.support.processes import FINETUNE, finetune, processes_of, start, wait_until

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
  training: {epochs: 6, batchSize: 4, maxLength: 96, learningRate: 0.01, precision: fp32, checkpointEverySteps: 1}
  evaluation:
    metrics: [completion-perplexity, exact-match]
    gate: [{metric: completion-perplexity, minDelta: 1.0}]
    bootstrapSamples: 200
    generation: {maxNewTokens: 8}
"""


def make_site(folder: Path) -> Path:
    """Write a model, data and a manifest."""
    tiny_llama(folder / "model")
    rows = [
        {"message": f"case {index} is about {kind}", "triage": kind}
        for index in range(24)
        for kind in ("refund", "crash")
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "job.yaml").write_text(MANIFEST)
    return folder


def read_state(folder: Path, kind: str, name: str) -> dict[str, dict[str, object]]:
    path = folder / ".finetuning" / "steps" / kind / name / "state.json"
    steps = json.loads(path.read_text())["content"]["steps"]
    assert isinstance(steps, dict)
    return steps


def status(folder: Path) -> dict[str, object]:
    shown = finetune(folder, "status", "triage", "-o", "json")
    found = json.loads(shown.stdout)["status"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = make_site(tmp_path_factory.mktemp("finished"))
    return folder, finetune(folder, "run", "job.yaml")


def test_run_trains_evaluates_and_tells_where_everything_lies(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = finished

    assert done.returncode == 0, done.stderr
    assert "triage train: succeeded" in done.stderr
    assert "completion-perplexity" in done.stdout
    assert "Pass" in done.stdout
    shown = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    places = {parts[0]: Path(parts[1]) for parts in shown if len(parts) == 2 and parts[1].startswith(".finetuning/")}
    assert set(places) == {"adapter", "provenance", "report", "results"}
    assert all((folder / path).exists() for path in places.values())
    assert processes_of(folder / ".finetuning") == []


def test_second_run_repeats_nothing(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, first = finished
    before = status(folder)

    again = finetune(folder, "run", "job.yaml")

    assert again.returncode == 0, again.stderr
    assert "relocated 0 B" in again.stdout
    assert status(folder) == before
    assert again.stdout.splitlines()[:-1] == first.stdout.splitlines()[:-1]
    assert {step["attempts"] for step in read_state(folder, "FineTuningJob", "triage").values()} == {1}


def test_a_metric_that_does_not_suit_the_data_ends_a_run_before_anything_is_trained(tmp_path: Path) -> None:
    folder = make_site(tmp_path)
    manifest = MANIFEST.replace("exact-match]", "json-match]")
    (folder / "job.yaml").write_text(manifest)

    done = finetune(folder, "run", "job.yaml")

    assert done.returncode == 1
    told = " ".join(done.stdout.split())
    assert "json-match cannot be computed" in told
    assert "Remove json-match from evaluation.metrics" in told
    assert list(read_state(folder, "FineTuningJob", "triage")) == ["preflight"]
    assert status(folder)["reason"] == "MetricUnavailable"


def test_a_second_job_on_the_same_data_does_not_score_the_base_again(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "site")
    other = MANIFEST.replace("name: triage", "name: other").replace("epochs: 6", "epochs: 1")
    (folder / "other.yaml").write_text(other)

    done = finetune(folder, "run", "other.yaml")

    assert done.returncode == 0, done.stderr
    (report,) = (folder / ".finetuning" / "volumes").glob("other-*/evaluation/results.json")
    base, tuned = json.loads(report.read_text())["candidates"]
    assert {task: each["job"]["name"] for task, each in base["reused"].items()} == {
        "likelihood": "triage-evaluation",
        "generation": "triage-evaluation",
    }
    assert tuned["reused"] == {}


def write_later_job(folder: Path, *, against: str) -> None:
    """Write a job of one epoch that must not be worse than an earlier one."""
    document = yaml.safe_load(MANIFEST)
    document["metadata"]["name"] = "later"
    document["spec"]["training"]["epochs"] = 1
    rule = {"metric": "completion-perplexity", "nonInferior": 0.5, "against": against}
    document["spec"]["evaluation"] |= {"gate": [rule], "jobRefs": [against]}
    (folder / "later.yaml").write_text(yaml.safe_dump(document))


def test_a_job_is_gated_against_an_earlier_one_whose_scores_are_there(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "site")
    write_later_job(folder, against="triage")

    done = finetune(folder, "run", "later.yaml")

    assert "triage" in done.stdout, done.stderr
    (report,) = (folder / ".finetuning" / "volumes").glob("later-*/evaluation/results.json")
    results = json.loads(report.read_text())
    before = json.loads((report.parents[2] / "triage-adapter" / "evaluation" / "results.json").read_text())
    base, tuned, earlier = results["candidates"]
    assert [each["name"] for each in (base, tuned, earlier)] == ["base", "tuned", "triage"]
    assert earlier["adapterDigest"] == before["candidates"][1]["adapterDigest"]
    assert set(earlier["reused"]) == {"likelihood", "generation"}
    metric = next(each for each in results["metrics"] if each["metric"] == "completion-perplexity")
    values = {each["candidate"]: each["value"] for each in metric["values"]}
    known = next(each for each in before["metrics"] if each["metric"] == "completion-perplexity")
    assert values["triage"] == next(each["value"] for each in known["values"] if each["candidate"] == "tuned")
    (gate,) = results["gates"]
    assert gate["result"]["verdict"] == "Fail", gate
    assert "over triage" in gate["result"]["message"]
    assert values["tuned"] > values["triage"] + 0.5
    assert [each["against"] for each in metric["comparisons"]] == ["base", "triage"]


def test_a_job_is_not_compared_with_a_result_that_is_damaged_or_not_there(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "site")
    write_later_job(folder, against="nobody")
    missing = finetune(folder, "run", "later.yaml")
    finetune(folder, "delete", "later")
    write_later_job(folder, against="triage")
    (folder / ".finetuning/volumes/triage-adapter/adapter/adapter_model.safetensors").unlink()
    gone = finetune(folder, "run", "later.yaml")

    assert missing.returncode != 0
    assert "waits for FineTuningJob nobody (not there yet)" in " ".join(missing.stderr.split())
    assert gone.returncode != 0
    told = " ".join(gone.stderr.split())
    assert "the adapter of triage cannot be trusted" in told
    assert "finetune delete triage" in told
    assert not (folder / ".finetuning/steps/FineTuningJob/later").exists()


def test_a_metric_of_one_s_own_is_computed_and_a_mistake_in_it_is_told_before_the_training(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "site")
    document = yaml.safe_load(MANIFEST)
    document["metadata"]["name"] = "own"
    document["spec"]["training"]["epochs"] = 1
    document["spec"]["evaluation"] |= {
        "metrics": ["custom"],
        "gate": [{"metric": "words", "min": 0}],
        "custom": [{"name": "words", "source": "metric.py", "allowCode": True}],
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(document))
    (folder / "metric.py").write_text("def score(predictions, references, rows)\n    return []\n")
    wrong = finetune(folder, "run", "own.yaml")
    steps = list(read_state(folder, "FineTuningJob", "own"))
    finetune(folder, "delete", "own")
    (folder / "metric.py").write_text(
        "def score(predictions, references, rows):\n    return [len(row['message']) for row in rows]\n"
    )
    right = finetune(folder, "run", "own.yaml")

    assert wrong.returncode == 1
    assert "words cannot be computed: metric.py, line 1: expected ':'" in " ".join(wrong.stdout.split())
    assert steps == ["preflight"]
    assert right.returncode == 0, right.stderr
    assert any(line.startswith("words") for line in right.stdout.splitlines())
    assert "Pass" in right.stdout


def test_status_is_the_object_that_a_cluster_shows(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished

    shown = yaml.safe_load(finetune(folder, "status", "triage", "-o", "yaml").stdout)

    conditions = {each["type"]: each["status"] for each in shown["status"]["conditions"]}
    assert conditions == {
        "Accepted": "True",
        "Relocated": "True",
        "Trained": "True",
        "Evaluated": "True",
        "GatePassed": "True",
        "Complete": "True",
    }
    assert shown["status"]["evaluation"][0]["delta"] < 0


def test_prompt_answers_with_base_and_tuned(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished

    asked = finetune(folder, "prompt", "triage", "case 3 is about refund", "--max-new-tokens", "8")

    assert asked.returncode == 0, asked.stderr
    answers = dict(line.split(": ", 1) for line in asked.stdout.splitlines() if ": " in line)
    assert set(answers) == {"base", "tuned"}
    assert answers["base"] != answers["tuned"]


def test_report_and_logs_are_printed(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished

    assert "exact-match" in finetune(folder, "report", "triage").stdout
    assert "checkpoint" in finetune(folder, "logs", "triage", "train").stdout
    unknown = finetune(folder, "logs", "triage", "bake")
    assert unknown.returncode == 1
    assert "It has dataset/relocate, evaluate, model/relocate, preflight, train." in unknown.stderr


def test_changed_specification_is_refused_with_what_changed(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder, _ = finished
    other = tmp_path / "job.yaml"
    other.write_text(
        MANIFEST.replace("rank: 4", "rank: 8")
        .replace("source: model", f"source: {folder / 'model'}")
        .replace("source: rows.jsonl", f"source: {folder / 'rows.jsonl'}")
    )

    refused = finetune(folder, "run", str(other))

    assert refused.returncode == 1
    assert "spec.method.rank: 4 -> 8" in refused.stderr
    assert "finetune delete triage" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_changed_data_is_another_job(finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(finished[0], copied)
    # The sources' paths are part of the stored job, so the copy's state is moved to where the sources are the same.
    rows = finished[0] / "rows.jsonl"
    before = rows.read_bytes()
    rows.write_bytes(before + b'{"message": "new", "triage": "crash"}\n')
    try:
        refused = finetune(finished[0], "run", "job.yaml", "--state", str(copied / ".finetuning"))
    finally:
        rows.write_bytes(before)

    assert refused.returncode == 1
    assert "spec.dataset.checksum" in refused.stderr
    assert "the content of the local source changed" in refused.stderr


@pytest.mark.parametrize(
    ("kind", "name", "step"),
    [
        ("FineTuningJob", "triage", "preflight"),
        ("FineTuningJob", "triage", "train"),
        ("Relocation", "*", "relocate"),
        ("EvaluationJob", "triage-evaluation", "evaluate"),
    ],
)
def test_killed_run_goes_on_to_the_same_result(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, *, kind: str, name: str, step: str
) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns(".finetuning"))
    state = folder / ".finetuning"
    process = start(FINETUNE, "run", "job.yaml", cwd=folder)
    marks = "checkpoints/step-*" if step == "train" else None
    pattern = f"volumes/triage-adapter/{marks}" if marks else f"steps/{kind}/{name}/{step}/attempt-1.log"
    wait_until(lambda: any(state.glob(pattern)), what=f"{step} is under way")

    process.kill()
    process.communicate(timeout=60)
    done = finetune(folder, "run", "job.yaml")

    assert done.returncode == 0, done.stderr
    assert processes_of(state) == []
    assert _results(done) == _results(finished[1])
    assert read_state(folder, "FineTuningJob", "triage")[step if kind == "FineTuningJob" else "train"]["failures"] == 0


def test_ctrl_c_stops_after_a_checkpoint_and_the_next_run_resumes(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns(".finetuning"))
    process = start(FINETUNE, "run", "job.yaml", cwd=folder)
    checkpoints = folder / ".finetuning/volumes/triage-adapter/checkpoints"
    wait_until(lambda: any(checkpoints.glob("step-*")), what="training has a checkpoint")

    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    done = finetune(folder, "run", "job.yaml")

    assert process.returncode == 130
    assert "stopping after a checkpoint" in errors
    assert done.returncode == 0, done.stderr
    assert _results(done) == _results(finished[1])
    train = read_state(folder, "FineTuningJob", "triage")["train"]
    assert (train["attempts"], train["failures"]) == (2, 0)


def test_deleting_a_job_keeps_what_was_relocated(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "deleted"
    shutil.copytree(finished[0], folder)

    deleted = finetune(folder, "delete", "triage")

    assert deleted.returncode == 0, deleted.stderr
    assert not (folder / ".finetuning/volumes/triage-adapter").exists()
    assert len(list((folder / ".finetuning/volumes").glob("reloc-*"))) == 2
    assert finetune(folder, "status", "triage").returncode == 1


def _results(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of the table of results."""
    return [line for line in done.stdout.splitlines() if line.startswith(("metric", "completion-perplexity", "exact"))]
