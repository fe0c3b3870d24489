"""The check of an installation, with the rights that `skaffold verify` gives it."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from tests.cluster.conftest import RunOperator
from tests.support import objects
from tests.support.cluster import Cluster, Object
from tests.support.operator_process import Identity
from tests.support.processes import REPOSITORY
from tests.unit.api import factories

from finetuning_client import Client, WaitFailedError, check

ACCOUNT = "finetuning-verify"
TIME = "2026-03-01T12:00:00Z"

Check = Callable[..., int]


@pytest.fixture
def verify(cluster: Cluster, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Run the check as the account that skaffold's values make, in a namespace of its own."""
    values = yaml.safe_load((REPOSITORY / "hack" / "skaffold" / "values.yaml").read_text())
    for item in values["extraObjects"]:
        item["metadata"]["namespace"] = namespace
        for subject in item.get("subjects", ()):
            subject["namespace"] = namespace
        cluster.apply(item)
    kubeconfig = Identity.of(cluster, ACCOUNT, namespace).write_kubeconfig(tmp_path / "verify.kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    return lambda *arguments: check.main(["--namespace", namespace, *arguments])


def test_an_operator_that_works_is_told_and_nothing_is_left(
    cluster: Cluster, namespace: str, verify: Check, run_operator: RunOperator, capsys: pytest.CaptureFixture[str]
) -> None:
    run_operator(env={"FINETUNING_NAMESPACES": namespace}).wait_ready()

    assert verify() == 0

    kinds, operator = capsys.readouterr().out.splitlines()
    counts = "0 FineTuningJob, 0 EvaluationJob, 0 Relocation, 0 InferenceServer"
    assert kinds == f"the cluster serves every kind; namespace {namespace} of context test holds {counts}"
    assert operator == "the operator answers: it accepted a suspended job"
    assert [each for kind in ("FineTuningJob", "Job", "Pod") for each in cluster.objects(kind, namespace)] == []


def test_an_operator_that_is_silent_is_an_error_and_nothing_is_left(
    cluster: Cluster, namespace: str, verify: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify("--timeout", "1") == 1

    assert capsys.readouterr().err.startswith("error: the operator did not answer within 1 s; it may not run,")
    assert cluster.objects("FineTuningJob", namespace) == []


class Answers(BaseHTTPRequestHandler):
    """A server of two models that repeat what they are asked."""

    def do_GET(self) -> None:
        self._send({"data": [{"id": "base"}, {"id": "demo"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._send({"choices": [{"text": f" {asked['prompt']} said {asked['model']}\n"}]})

    def _send(self, content: object) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_address[1]}"
        listener.shutdown()


@pytest.fixture
def told(cluster: Cluster, namespace: str) -> Callable[..., Client]:
    """Make a job and write its status, as the operator would; return a client of its namespace."""
    client = Client(kubeconfig=cluster.kubeconfig, namespace=namespace)

    def tell(condition: str, *, reason: str, message: str = "") -> Client:
        client.jobs.create(objects.job())
        held = {"type": condition, "status": "True", "reason": reason, "message": message, "lastTransitionTime": TIME}
        status: Object = {"phase": condition, "conditions": [held]}
        cluster.patch(cluster.get("FineTuningJob", "demo", namespace), {"status": status}, subresource="status")
        return client

    return tell


def test_every_model_of_a_job_answers(
    cluster: Cluster, namespace: str, told: Callable[..., Client], address: str
) -> None:
    client = told("Complete", reason="Succeeded")
    server = factories.server()
    made = cluster.create({**server, "metadata": {"name": "demo", "namespace": namespace}})
    cluster.patch(made, {"status": {"url": address}}, subresource="status")

    answers = check.job_answers(client, "demo", prompt="Hello", timeout=30)

    assert answers == ["base answers: Hello said base", "demo answers: Hello said demo"]


def test_a_job_that_failed_is_told_with_its_reason(told: Callable[..., Client]) -> None:
    client = told("Failed", reason="OutOfMemory", message="train: no memory")

    with pytest.raises(WaitFailedError, match=r"FineTuningJob demo: Failed \(OutOfMemory\): train: no memory"):
        check.job_answers(client, "demo", prompt="Hello", timeout=30)
