"""`finetune run` with tracking: a real training and evaluation told to a real MLflow server, and one that is down."""

import json
from pathlib import Path

import pytest
from tests.support.local_run import FAKES, run_with_fakes
from tests.support.loopback import Answer, LoopbackServer
from tests.support.mlflow_server import ADMIN, mlflow_server, pairs
from tests.support.models import tiny_llama
from tests.support.processes import REPOSITORY, finetune
from tests.support.training import colour_rows, write_rows

from finetuning_api.base import ConditionType
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.tracking import TrackingState
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.store import Store
from finetuning_operator.reconcile.conditions import find_condition, is_true
from finetuning_operator.reconcile.plan import ImageRole

STEPS = 4
MANIFEST = """\
apiVersion: finetuning.dev/v1alpha1
kind: FineTuningJob
metadata: {{name: colours}}
spec:
  model: {{source: model}}
  dataset: {{source: data/rows.jsonl, prompt: "Say {{message}}\\n", completion: "{{answer}}"}}
  method: {{rank: 4}}
  training: {{maxSteps: 4, batchSize: 4, maxLength: 64, learningRate: 0.01, precision: fp32}}
  evaluation: {{metrics: [exact-match], gate: [{{metric: exact-match, min: 2.0}}], generation: {{maxNewTokens: 2}}}}
  tracking: {{mlflowUri: "{uri}", experiment: colours, secretRef: {{name: team-mlflow}}}}
"""


def test_a_run_on_one_machine_is_a_run_of_mlflow_with_its_numbers_and_reports(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    write_rows(tmp_path / "data", colour_rows())
    login = {"TEAM_MLFLOW_USERNAME": ADMIN[0], "TEAM_MLFLOW_PASSWORD": ADMIN[1]}
    with mlflow_server(tmp_path / "mlflow", login=True) as server:
        (tmp_path / "colours.yaml").write_text(MANIFEST.format(uri=server.url))
        done = finetune(tmp_path, "run", "colours.yaml", extra=login)
        again = finetune(tmp_path, "run", "colours.yaml", extra=login)
        run = server.the_run("colours")
        losses = server.points(run, "loss")
        stored, report = server.files(run), server.content(run, "evaluation/report.html")

    assert (done.returncode, again.returncode) == (0, 0), done.stderr
    status = json.loads(finetune(tmp_path, "status", "colours", "-o", "json").stdout)["status"]
    claim = tmp_path / ".finetuning" / "volumes" / "colours-adapter"
    assert (status["tracking"]["state"], status["tracking"]["runId"]) == ("Done", run["info"]["run_id"])
    assert status["tracking"]["url"] in done.stdout + done.stderr
    assert "warnings" not in status or not [each for each in status["warnings"] if "tracking" in each]
    assert run["info"]["status"] == "FINISHED"
    course = [json.loads(line) for line in (claim / "checkpoints" / "metrics.jsonl").read_text().splitlines()]
    assert [(each["step"], each["value"], each["timestamp"]) for each in losses] == [
        (line["step"], line["loss"], round(line["time"] * 1000)) for line in course
    ]
    assert len(losses) == STEPS
    parameters, tags = pairs(run["data"]["params"]), pairs(run["data"]["tags"])
    assert (parameters["method.rank"], parameters["training.learningRate"]) == ("4", "0.01")
    assert parameters["plan.device"] == "cpu"
    assert tags["finetuning.dev/verdict"] == "Fail"
    assert tags["finetuning.dev/adapter-digest"] == status["artifacts"]["adapter"]["digest"]
    results = json.loads((claim / "evaluation" / "results.json").read_text())
    (metric,) = results["metrics"]
    numbers = {each["key"]: each["value"] for each in run["data"]["metrics"]}
    for value in metric["values"]:
        assert numbers[f"evaluation/exact-match/{value['candidate']}"] == value["value"]
    assert report == (claim / "evaluation" / "report.html").read_bytes()
    assert {"evaluation/results.json", "evaluation/report.md", "provenance.json", "metrics.jsonl"} <= set(stored)
    assert ADMIN[1] not in done.stdout + done.stderr


def test_a_server_that_is_down_fails_nothing_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text('{"message": "a", "answer": "b"}\n')
    with LoopbackServer(lambda _: Answer()) as once:
        uri = once.url
    (tmp_path / "colours.yaml").write_text(MANIFEST.format(uri=uri))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))

    programs = FAKES | {ImageRole.RELOCATOR: "finetuning_relocator"}
    run_with_fakes(tmp_path / "state", tmp_path / "colours.yaml", programs=programs)

    job = Store(Layout.at(tmp_path / "state")).get("FineTuningJob", "colours")
    assert isinstance(job, FineTuningJob)
    status = job.status
    assert status.tracking is not None
    assert is_true(status.conditions, ConditionType.COMPLETE)
    assert status.tracking.state is TrackingState.FAILED
    assert status.tracking.message.startswith(f"{uri}: cannot reach {uri.removeprefix('http://')}")
    tracked = find_condition(status.conditions, ConditionType.TRACKED)
    assert tracked is not None
    assert tracked.message == status.tracking.message
    assert f"tracking: {uri}: cannot reach" in capsys.readouterr().err
