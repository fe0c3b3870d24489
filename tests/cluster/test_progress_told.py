"""What programs report reaches the status of their object through a running operator, with genuine tokens."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
from tests.support import pods
from tests.support.api_proxy import ApiProxy, Fault, Trouble
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.lifecycle import condition, job, stage, wait_for_end, wait_for_events
from tests.support.models import tiny_llama
from tests.support.operator_process import OperatorProcess, free_port
from tests.support.player import play, scripted
from tests.support.processes import REPOSITORY, environment, wait_until
from tests.support.progress import report

RunOperator = Callable[..., OperatorProcess]
STOCK_TRAINER = REPOSITORY / "tests" / "support" / "stock_trainer.py"
TRAINING_SECONDS = 300
STALLED_SECONDS = 4
_TO_THE_SECOND = len("2026-03-01T12:00:00")


@dataclass(frozen=True, slots=True)
class Training:
    """A job whose training runs in a pod."""

    cluster: Cluster
    namespace: str
    pod: Object

    def report(self, percent: int) -> httpx.Response:
        """Report as the pod's program does."""
        return pods.report(self.cluster, self.pod, json.dumps(report(progressPercentage=percent)).encode())

    def wait(self, where: Callable[[Object], bool]) -> Object:
        """Return the job once it is as it should be."""
        return self.cluster.wait_for_object("FineTuningJob", "demo", self.namespace, where=where)


Serve = Callable[..., OperatorProcess]


@pytest.fixture
def serve(run_operator: RunOperator, namespace: str) -> Serve:
    """``serve(via=proxy, NAME=value)`` starts an operator with a progress endpoint, and waits until it is ready."""

    def start(via: ApiProxy | None = None, **options: str) -> OperatorProcess:
        port = str(free_port())
        options = {"PROGRESS_URL": f"https://localhost:{port}", "PROGRESS_PORT": port, **options}
        env = {"FINETUNING_NAMESPACES": namespace, "FINETUNING_STATUS_DELAY": "0.2"}
        operator = run_operator(env=env | {f"FINETUNING_{name}": value for name, value in options.items()}, via=via)
        operator.wait_ready()
        return operator

    return start


@contextmanager
def training(cluster: Cluster, namespace: str) -> Iterator[Training]:
    """Bring a job as far as its training, which goes on while the block runs; then let it end well."""
    with play(cluster, scripted({"train": None}), namespace=namespace):
        cluster.create(job(namespace))
        pod = pods.wait_for_pod(cluster, namespace, labels="finetuning.dev/step=train", phase="Running")
        yield Training(cluster, namespace, pod)
    with play(cluster, namespace=namespace):
        assert has_condition(wait_for_end(cluster, namespace), "Complete")


def progress(target: Object) -> Object:
    """Return the progress that an object's status tells."""
    found: Object = target.get("status", {}).get("progress") or {}
    return found


def is_stalled(target: Object) -> bool:
    return bool(target.get("status", {}).get("reason") == "Stalled")


def test_a_stage_that_falls_silent_is_stalled_until_it_reports_again(
    cluster: Cluster, namespace: str, serve: Serve
) -> None:
    serve(STALLED_AFTER_SECONDS=str(STALLED_SECONDS))
    with training(cluster, namespace) as running:
        assert running.report(40).status_code == HTTPStatus.ACCEPTED
        reported = running.wait(lambda found: progress(found).get("percent") == 40)
        assert not is_stalled(reported)

        stalled = running.wait(is_stalled)
        told = condition(stalled, "Trained")
        since = f"{progress(stalled)['updatedAt'][:_TO_THE_SECOND]}Z"
        assert (told["status"], told["reason"]) == ("False", "Stalled")
        assert told["message"] == stage(stalled, "train")["message"]
        assert told["message"].startswith(f"has not reported since {since}. Its log and the load of its node tell")
        assert (stage(stalled, "train")["state"], stalled["status"]["phase"]) == ("Running", "Training")
        assert not has_condition(stalled, "Failed")
        wait_for_events(cluster, namespace, ("Warning", "Stalled"))

        assert running.report(41).status_code == HTTPStatus.ACCEPTED
        again = running.wait(lambda found: progress(found).get("percent") == 41 and not is_stalled(found))
        assert condition(again, "Trained")["reason"] == "Training"
        assert "message" not in stage(again, "train")


def test_a_stock_transformers_script_tells_its_progress_in_the_status_of_a_job(
    cluster: Cluster, namespace: str, tmp_path: Path, serve: Serve
) -> None:
    operator = serve()
    model = tiny_llama(tmp_path / "model")
    with training(cluster, namespace) as running:
        command = [sys.executable, str(STOCK_TRAINER), str(model), str(tmp_path / "output")]
        output, given = tmp_path / "log", pods.given_to_report(cluster, running.pod, tmp_path)
        with (
            output.open("wb") as log,
            subprocess.Popen(command, env=environment(given), stdout=log, stderr=subprocess.STDOUT) as script,
        ):
            try:
                midway = running.cluster.wait_for_object(
                    "FineTuningJob", "demo", namespace, where=_is_midway, seconds=TRAINING_SECONDS
                )
                code = script.wait(TRAINING_SECONDS)
            finally:
                script.kill()
        assert code == 0, output.read_text()[-2000:]
        ended = running.wait(lambda found: progress(found).get("percent") == 100)

    told = progress(midway)
    assert (told["totalSteps"], told["step"] * 5) == (20, told["percent"])
    assert told["loss"] > 0
    assert told["etaSeconds"] > 0
    assert stage(midway, "train")["percent"] == told["percent"]
    assert (stage(midway, "train")["state"], stage(ended, "train")["percent"]) == ("Running", 100)
    assert operator.metric("finetuning_progress_reports_total") == operator.metric(
        "finetuning_progress_reports_total", result="202"
    )


def _is_midway(found: Object) -> bool:
    return 0 < progress(found).get("percent", 0) < 100 and "loss" in progress(found)


REVIEW_TROUBLES = {
    "throttled": Fault(Trouble.STATUS, status=HTTPStatus.TOO_MANY_REQUESTS, times=2),
    "internal-error": Fault(Trouble.STATUS, status=HTTPStatus.INTERNAL_SERVER_ERROR, times=2),
    "cut": Fault(Trouble.CUT_BEFORE, times=2),
    "time-out": Fault(Trouble.DELAY, seconds=90, times=1),
}


@pytest.mark.parametrize("trouble", REVIEW_TROUBLES)
def test_a_token_that_cannot_be_reviewed_for_a_while_is_not_refused_and_the_next_report_counts(
    trouble: str, cluster: Cluster, namespace: str, *, proxy: ApiProxy, serve: Serve
) -> None:
    operator = serve(via=proxy)
    with training(cluster, namespace) as running:
        proxy.fail(replace(REVIEW_TROUBLES[trouble], target="tokenreviews"))
        answers: list[httpx.Response] = []

        def is_taken() -> bool:
            answers.append(running.report(40))
            return answers[-1].status_code == HTTPStatus.ACCEPTED

        wait_until(is_taken, what="the report is taken")
        running.wait(lambda found: progress(found).get("percent") == 40)
    unavailable = {(each.status_code, "Retry-After" in each.headers) for each in answers[:-1]}
    assert unavailable == {(HTTPStatus.SERVICE_UNAVAILABLE, True)}
    assert operator.exit_code is None
