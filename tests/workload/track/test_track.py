"""The real step against a real MLflow server: what it is told, once, however often and over whatever trouble."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support.loopback import Answer, LoopbackServer, Seen
from tests.support.mlflow_server import ADMIN, MlflowServer, mlflow_server, pairs
from tests.support.relocator import Ended, Relocator, assert_refused

from finetuning_api.reasons import ExitCode
from finetuning_api.runconfig import JobIdentity, TrackConfig, TrackResult
from finetuning_workload.artifact import write_manifest

STARTED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
STEPS = 300
"""With five numbers each: more than one request may hold."""
REPORT = b"<html><body>better</body></html>"
RESULTS: dict[str, Any] = {
    "schemaVersion": "eval/v1",
    "createdAt": "2026-03-01T12:20:00Z",
    "verdict": "Pass",
    "metrics": [
        {
            "metric": "rougeL",
            "unit": "share",
            "values": [
                {"candidate": "base", "value": 0.25, "ciLow": 0.2, "ciHigh": 0.3, "samples": 50},
                {"candidate": "tuned", "value": 0.75, "ciLow": 0.7, "ciHigh": 0.8, "samples": 50},
            ],
            "comparisons": [
                {"candidate": "tuned", "against": "base", "delta": 0.5, "ciLow": 0.4, "ciHigh": 0.6, "pValue": 0.001}
            ],
        }
    ],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture
def relocator(tmp_path: Path) -> Relocator:
    return Relocator(tmp_path / "home")


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    """Return a claim as a training and an evaluation leave it."""
    folder = tmp_path / "claim"
    for name in ("checkpoints", "adapter", "evaluation"):
        (folder / name).mkdir(parents=True)
    (folder / "checkpoints" / "metrics.jsonl").write_text("".join(line(step) for step in range(1, STEPS + 1)))
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 8000)
    plan = {"device": "cpu", "micro_batch_tokens": 512, "reason": ""}
    (folder / "adapter" / "provenance.json").write_text(json.dumps({"plan": plan, "versions": {"torch": "2.9.0"}}))
    write_manifest(
        folder / "adapter",
        source="training",
        resolved_revision=None,
        content_format="peft-adapter",
        created_at=STARTED,
        tool="test",
    )
    (folder / "evaluation" / "results.json").write_text(json.dumps(RESULTS))
    (folder / "evaluation" / "report.md").write_text("# better\n")
    (folder / "evaluation" / "report.html").write_bytes(REPORT)
    return folder


def line(step: int, **more: float) -> str:
    numbers = {
        "step": step,
        "loss": 5.0 / step,
        "learning_rate": 0.01,
        "grad_norm": 1.5,
        "tokens": 64,
        "tokens_per_second": 1000.5,
        "time": (STARTED + timedelta(seconds=step)).timestamp(),
    }
    return json.dumps(numbers | ({"eval_loss": 4.0} if step == STEPS else {}) | more) + "\n"


def told(uri: str, claim: Path | None, experiment: str, **fields: Any) -> TrackConfig:  # noqa: ANN401  (fields of TrackConfig)
    places = {"checkpoint_path": "checkpoints", "adapter_path": "adapter", "report_path": "evaluation"}
    folders = {field: str(claim / name) for field, name in places.items()} if claim else {}
    standard = {
        "job": JobIdentity(kind="FineTuningJob", name="triage", namespace="team", uid=f"uid-{experiment}"),
        "uri": uri,
        "experiment": experiment,
        "run_name": "triage",
        "failed": False,
        "started_at": STARTED,
        "finished_at": STARTED + timedelta(minutes=30),
        "parameters": {"method.rank": "16", "training.learningRate": "0.01"},
        "tags": {"finetuning.dev/name": "triage", "finetuning.dev/verdict": "Pass"},
    }
    return TrackConfig.model_validate(standard | folders | fields)


def written(ended: Ended) -> TrackResult:
    assert isinstance(ended.words.result, TrackResult), f"{ended.words}\n{ended.log}"
    return ended.words.result


def test_a_job_is_one_run_with_numbers_texts_and_files(server: MlflowServer, relocator: Relocator, claim: Path) -> None:
    result = written(relocator.run(told(server.url, claim, "whole")))

    run = server.the_run("whole")
    info, data = run["info"], run["data"]
    assert (info["run_id"], info["experiment_id"]) == (result.run_id, result.experiment_id)
    assert (info["run_name"], info["status"], result.lacking) == ("triage", "FINISHED", "")
    began = round(STARTED.timestamp() * 1000)
    assert (info["start_time"], info["end_time"]) == (began, began + 30 * 60_000)
    assert pairs(data["params"]) == {
        "method.rank": "16",
        "training.learningRate": "0.01",
        "plan.device": "cpu",
        "plan.micro_batch_tokens": "512",
    }
    tags = pairs(data["tags"])
    assert (tags["finetuning.dev/uid"], tags["finetuning.dev/verdict"]) == ("uid-whole", "Pass")
    assert tags["version.torch"] == "2.9.0"
    losses = server.points(run, "loss")
    assert [each["step"] for each in losses] == list(range(1, STEPS + 1))
    assert losses[9] == losses[9] | {"value": 0.5, "timestamp": began + 10_000}
    assert [each["value"] for each in server.points(run, "eval_loss")] == [4.0]
    assert len(server.points(run, "tokens_per_second")) == STEPS
    assert server.files(run) == {
        path: (claim / folder / Path(path).name).stat().st_size
        for path, folder in {
            "metrics.jsonl": "checkpoints",
            "provenance.json": "adapter",
            "evaluation/results.json": "evaluation",
            "evaluation/report.md": "evaluation",
            "evaluation/report.html": "evaluation",
        }.items()
    }
    assert server.content(run, "evaluation/report.html") == REPORT


def test_every_number_of_the_evaluation_is_a_metric(server: MlflowServer, relocator: Relocator, claim: Path) -> None:
    written(relocator.run(told(server.url, claim, "numbers")))

    metrics = {each["key"]: each["value"] for each in server.the_run("numbers")["data"]["metrics"]}
    prefix = "evaluation/rougeL/"
    assert {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)} == {
        "base": 0.25,
        "base.ci_low": 0.2,
        "base.ci_high": 0.3,
        "tuned": 0.75,
        "tuned.ci_low": 0.7,
        "tuned.ci_high": 0.8,
        "tuned-base": 0.5,
        "tuned-base.ci_low": 0.4,
        "tuned-base.ci_high": 0.6,
        "tuned-base.p_value": 0.001,
    }


def test_writing_the_same_again_changes_nothing(server: MlflowServer, relocator: Relocator, claim: Path) -> None:
    first = written(relocator.run(told(server.url, claim, "twice")))
    before = server.the_run("twice")

    assert written(relocator.run(told(server.url, claim, "twice"))) == first

    assert server.the_run("twice") == before
    assert len(server.points(before, "loss")) == STEPS


@pytest.mark.parametrize(
    ("lost", "exit_code"),
    [
        # Asked again, the step finds what it made.
        ("runs/create", ExitCode.DONE),
        ("runs/log-batch", ExitCode.ENVIRONMENT),
        ("artifacts", ExitCode.ENVIRONMENT),
        ("runs/update", ExitCode.ENVIRONMENT),
    ],
)
def test_a_step_that_never_heard_an_answer_goes_on_with_its_run(
    server: MlflowServer, relocator: Relocator, claim: Path, lost: str, exit_code: ExitCode
) -> None:
    experiment = f"lost-{lost.replace('/', '-')}"

    def forward(seen: Seen) -> Answer:
        # What was asked for is done, and the answer does not arrive: nobody knows what became of it.
        headers = {"Content-Type": seen.headers.get("content-type", "application/json")}
        url = f"{server.url}{seen.path}{'?' if seen.query else ''}{seen.query}"
        answer = httpx2.request(seen.method, url, headers=headers, content=seen.body or None)
        if lost in seen.path and seen.method in {"POST", "PUT"}:
            return Answer(status=HTTPStatus.SERVICE_UNAVAILABLE)
        return Answer(body=answer.content, status=HTTPStatus(answer.status_code))

    with LoopbackServer(forward) as proxy:
        ended = relocator.run(told(proxy.url, claim, experiment))
    assert ended.exit_code == exit_code, ended.log
    if exit_code is ExitCode.ENVIRONMENT:
        assert_refused(ended, "SourceUnavailable", proxy.url, exit_code=exit_code)

    written(relocator.run(told(server.url, claim, experiment)))

    run = server.the_run(experiment)
    assert run["info"]["status"] == "FINISHED"
    for key, count in (("loss", STEPS), ("learning_rate", STEPS), ("eval_loss", 1), ("evaluation/rougeL/tuned", 1)):
        assert len(server.points(run, key)) == count
    assert len(server.files(run)) == 5


def test_the_run_of_a_job_that_failed_is_marked_so_and_has_what_there_was(
    server: MlflowServer, relocator: Relocator, claim: Path
) -> None:
    # As a training leaves it that diverged, and was killed while it wrote.
    course = line(1) + line(2, loss=float("nan"), grad_norm=float("inf")) + '{"step": 3, "lo'
    (claim / "checkpoints" / "metrics.jsonl").write_text(course)
    tags = {"finetuning.dev/reason": "LossDiverged", "mlflow.note.content": "the loss is no number"}
    config = told(server.url, claim, "failed", failed=True, tags=tags, adapter_path=None, report_path=None)

    written(relocator.run(config))
    written(relocator.run(config))

    run = server.the_run("failed")
    assert run["info"]["status"] == "FAILED"
    assert pairs(run["data"]["tags"])["finetuning.dev/reason"] == "LossDiverged"
    assert [each["step"] for each in server.points(run, "loss")] == [1, 2]
    assert [each["step"] for each in server.points(run, "grad_norm")] == [1, 2]


def test_a_job_that_left_nothing_is_told_by_its_parameters(server: MlflowServer, relocator: Relocator) -> None:
    written(relocator.run(told(server.url, None, "nothing", failed=True)))

    run = server.the_run("nothing")
    assert pairs(run["data"]["params"])["method.rank"] == "16"
    assert (run["info"]["status"], server.files(run)) == ("FAILED", {})


def test_of_a_script_its_own_log_is_told(server: MlflowServer, relocator: Relocator, claim: Path) -> None:
    (claim / "checkpoints" / "metrics.jsonl").unlink()
    for step in (5, 10):
        history = [{"step": each, "loss": 1.0 / each, "eval_rewards/chosen (mean)": 0.5} for each in range(1, step + 1)]
        folder = claim / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))

    written(relocator.run(told(server.url, claim, "script")))

    run = server.the_run("script")
    assert [each["step"] for each in server.points(run, "loss")] == list(range(1, 11))
    assert len(server.points(run, "eval_rewards/chosen _mean_")) == 10


def test_weights_are_stored_where_they_are_asked_for(server: MlflowServer, relocator: Relocator, claim: Path) -> None:
    written(relocator.run(told(server.url, claim, "weights", weights=True)))

    run = server.the_run("weights")
    name = "adapter_model.safetensors"
    assert server.content(run, f"adapter/{name}") == (claim / "adapter" / name).read_bytes()


def test_without_an_experiment_the_run_is_in_that_of_mlflow(
    server: MlflowServer, relocator: Relocator, claim: Path
) -> None:
    result = written(relocator.run(told(server.url, claim, "Default").model_copy(update={"experiment": None})))

    assert result.experiment_id == server.experiment_id("Default")
    assert server.the_run("Default")["info"]["run_id"] == result.run_id


def test_an_experiment_that_was_deleted_is_told(server: MlflowServer, relocator: Relocator, claim: Path) -> None:
    made = server.tell("experiments/create", name="gone")
    server.tell("experiments/delete", experiment_id=made["experiment_id"])

    ended = relocator.run(told(server.url, claim, "gone"))

    assert_refused(ended, "TrackingFailed", "the experiment 'gone'", "is deleted", "spec.tracking.experiment")


def test_a_server_that_asks_who_writes_gets_it_from_the_secret_alone(
    relocator: Relocator, claim: Path, tmp_path: Path
) -> None:
    user, password = ADMIN
    with mlflow_server(tmp_path / "mlflow", login=True) as guarded:
        config = told(guarded.url, claim, "guarded", secret="mlflow")
        keys = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        refused = relocator.run(config)
        assert_refused(refused, "AuthenticationRequired", guarded.url, "Secret 'mlflow'", *keys)

        relocator.environment = {f"SOURCE_SECRET_{keys[0]}": user, f"SOURCE_SECRET_{keys[1]}": "wrong-password"}
        wrong = relocator.run(config)
        assert_refused(wrong, "AuthenticationRequired", guarded.url)

        # As a Secret of type kubernetes.io/basic-auth has them.
        relocator.environment = {"SOURCE_SECRET_username": user, "SOURCE_SECRET_password": password}
        ended = relocator.run(config)
        written(ended)
        assert guarded.the_run("guarded")["info"]["status"] == "FINISHED"
    assert password not in ended.log + ended.words.model_dump_json() + wrong.log + wrong.words.model_dump_json()


def test_a_token_is_sent_as_one_and_no_redirect_gets_it(relocator: Relocator, claim: Path) -> None:
    with LoopbackServer(lambda _: Answer(status=HTTPStatus.FOUND, headers={"Location": "http://127.0.0.1:9/"})) as one:
        relocator.environment = {"SOURCE_SECRET_MLFLOW_TRACKING_TOKEN": "t0ken-value"}
        ended = relocator.run(told(one.url, claim, "elsewhere", secret="mlflow"))

    assert_refused(ended, "TrackingFailed", one.url, "does not answer as an MLflow server", "mlflowUri")
    assert {seen.headers["authorization"] for seen in one.seen} == {"Bearer t0ken-value"}
    assert "t0ken-value" not in ended.log


def test_a_server_that_is_down_is_an_environment_fault_with_its_address(relocator: Relocator, claim: Path) -> None:
    with LoopbackServer(lambda _: Answer()) as once:
        uri = once.url

    ended = relocator.run(told(uri, claim, "down"))

    assert_refused(ended, "NetworkUnreachable", uri.removeprefix("http://"), exit_code=ExitCode.ENVIRONMENT)


@pytest.mark.parametrize("status", [HTTPStatus.OK, HTTPStatus.NOT_FOUND])
def test_what_is_no_mlflow_server_is_told(relocator: Relocator, claim: Path, status: HTTPStatus) -> None:
    with LoopbackServer(lambda _: Answer(body=b"<html>hello</html>", status=status)) as stranger:
        ended = relocator.run(told(stranger.url, claim, "stranger"))

    assert_refused(ended, "TrackingFailed", stranger.url, "does not answer as an MLflow server")


def test_files_that_a_server_does_not_take_are_told_and_the_numbers_are_there(
    relocator: Relocator, claim: Path, tmp_path: Path
) -> None:
    with mlflow_server(tmp_path / "mlflow", serves_files=False) as bare:
        result = written(relocator.run(told(bare.url, claim, "bare")))
        run = bare.the_run("bare")

    assert "no file is stored" in result.lacking
    assert "--serve-artifacts" in result.lacking
    assert run["info"]["status"] == "FINISHED"
    assert len(run["data"]["metrics"]) > 10


def test_a_store_that_keeps_points_twice_is_sent_none_twice(relocator: Relocator, claim: Path, tmp_path: Path) -> None:
    whole = (claim / "checkpoints" / "metrics.jsonl").read_text()
    with mlflow_server(tmp_path / "mlflow", database=False) as simple:
        config = told(simple.url, claim, "simple")
        # As far as a step came that was killed.
        (claim / "checkpoints" / "metrics.jsonl").write_text("".join(whole.splitlines(keepends=True)[:100]))
        first = written(relocator.run(config))
        (claim / "checkpoints" / "metrics.jsonl").write_text(whole)
        assert written(relocator.run(config)) == first
        assert written(relocator.run(config)) == first

        run = simple.the_run("simple")
        assert [each["step"] for each in simple.points(run, "loss")] == list(range(1, STEPS + 1))
        assert len(simple.points(run, "evaluation/rougeL/tuned")) == 1
