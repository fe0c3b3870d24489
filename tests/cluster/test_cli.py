"""The command on a cluster: what it sends, what it shows, what it says when something is in the way."""

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.cluster import Cluster, Object
from tests.support.kubelet import Kubelet, make_pod, running_kubelet
from tests.support.lifecycle import names
from tests.support.operator_process import OperatorProcess
from tests.support.player import End, play, succeed
from tests.support.processes import FINETUNE, start
from tests.support.tls import Certificate
from tests.unit.api.factories import Manifest, evaluation, job, named, relocation, server
from typer.testing import CliRunner, Result

from finetuning_cli.main import app

Finetune = Callable[..., Result]
JOB = """\
apiVersion: finetuning.dev/v1alpha1
kind: FineTuningJob
metadata: {name: triage}
spec:
  model: {source: "hf://owner/model"}
  dataset:
    source: s3://bucket/rows.jsonl
    prompt: "{message}"
    completion: "{triage}"
"""
JOB_KIND = "FineTuningJob"
SECRET = "apiVersion: v1\nkind: Secret\nmetadata: {name: token}\nstringData: {HF_TOKEN: hush}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


@pytest.fixture
def finetune(cluster: Cluster, namespace: str, folder: Path) -> Finetune:  # noqa: ARG001  (commands run in it)
    def run(*arguments: str, stdin: str | None = None) -> Result:
        place = ["--kubeconfig", str(cluster.kubeconfig), "-n", namespace]
        return CliRunner().invoke(app, [*arguments, *place], input=stdin)

    return run


@pytest.fixture
def made(cluster: Cluster, namespace: str) -> Callable[[Manifest], Object]:
    def make(manifest: Manifest) -> Object:
        metadata = manifest["metadata"] | {"namespace": namespace}
        return cluster.create(manifest | {"metadata": metadata})

    return make


def told(cluster: Cluster, item: Object, **status: object) -> Object:
    """Write a status as the operator would."""
    return cluster.patch(item, {"status": status}, subresource="status")


def condition(name: str, reason: str, *, status: str = "True", message: str = "") -> Object:
    time = "2026-03-01T12:00:00Z"
    return {"type": name, "status": status, "reason": reason, "message": message, "lastTransitionTime": time}


COMPLETE: Object = {
    "phase": "Complete",
    "conditions": [
        condition("Complete", "Succeeded"),
        condition("GatePassed", "GateFailed", status="False", message="exact-match: 0.1 < 0.2"),
    ],
    "evaluation": [{"metric": "exact-match", "base": 0.1, "tuned": 0.2, "delta": 0.1, "samples": 90}],
    "verdict": "Fail",
    "artifacts": {
        "adapter": {"claimName": "triage-adapter", "path": "adapter", "digest": f"sha256:{'0' * 64}", "bytes": 9}
    },
}
FAILED: Object = {
    "phase": "Failed",
    "conditions": [condition("Failed", "OutOfMemory", message="train: the worker ran out of memory")],
}


class TestApply:
    def test_says_what_became_of_each_object(self, finetune: Finetune, folder: Path, namespace: str) -> None:
        first = finetune("apply", "-f", "job.yaml")
        second = finetune("apply", "-f", "job.yaml")
        (folder / "job.yaml").write_text(f"{JOB}  suspend: true\n")
        third = finetune("apply", "-f", "job.yaml")

        place = f"(namespace {namespace} of context test)\n"
        assert first.stdout == f"FineTuningJob triage created {place}"
        assert second.stdout == f"FineTuningJob triage unchanged {place}"
        assert third.stdout == f"FineTuningJob triage changed {place}"

    def test_takes_a_folder_and_applies_what_jobs_refer_to_first(
        self, finetune: Finetune, folder: Path, cluster: Cluster, namespace: str
    ) -> None:
        (folder / "token.yaml").write_text(SECRET)

        done = finetune("apply", "-f", ".")

        assert [line.split(" (")[0] for line in done.stdout.splitlines()] == [
            "Secret token applied",
            "FineTuningJob triage created",
        ]
        assert cluster.get("Secret", "token", namespace)["data"] == {"HF_TOKEN": "aHVzaA=="}

    def test_reads_standard_input_and_prints_the_object_itself(
        self, finetune: Finetune, cluster: Cluster, namespace: str
    ) -> None:
        done = finetune("apply", "-f", "-", "-o", "json", stdin=JOB)

        stored = cluster.get("FineTuningJob", "triage", namespace)
        stored["metadata"].pop("managedFields")
        assert json.loads(done.stdout) == stored

    def test_tells_every_mistake_of_every_file_with_its_line_and_sends_nothing(
        self, finetune: Finetune, folder: Path, cluster: Cluster, namespace: str
    ) -> None:
        (folder / "bad.yaml").write_text(JOB.replace("prompt", "promt").replace("{name: triage}", "{name: Triage}"))
        (folder / "local.yaml").write_text(JOB.replace("s3://bucket/", "data/"))

        done = finetune("apply", "-f", "bad.yaml", "-f", "local.yaml", "-f", "job.yaml")

        assert done.exit_code == 1
        assert "bad.yaml:3: metadata.name: " in done.stderr
        assert "bad.yaml:8: spec.dataset.promt: is not a field of this API; did you mean prompt?" in done.stderr
        assert "local.yaml:7: spec.dataset.source: is a path on this machine, which a cluster cannot" in done.stderr
        assert "upload it and name it by s3://" in done.stderr
        assert cluster.objects("FineTuningJob", namespace) == []

    def test_shows_a_refusal_of_the_cluster_with_field_and_line(self, finetune: Finetune, folder: Path) -> None:
        finetune("apply", "-f", "job.yaml")
        (folder / "job.yaml").write_text(f"{JOB}  training: {{epochs: 9}}\n")

        done = finetune("apply", "-f", "job.yaml")

        can = "suspend, ttlSecondsAfterFinished, serving.replicas, serving.canary, notifications, exports and tracking"
        fixed = f"is fixed at creation; create a new FineTuningJob with another name (only {can} can be changed)"
        assert done.exit_code == 1
        assert done.stderr.splitlines() == [
            "error: the cluster refuses FineTuningJob triage:",
            f"  job.yaml:10: spec.training: training {fixed}",
        ]

    def test_a_dry_run_asks_the_cluster_and_changes_nothing(
        self, finetune: Finetune, cluster: Cluster, namespace: str
    ) -> None:
        done = finetune("apply", "-f", "job.yaml", "--dry-run")

        assert done.stdout.startswith("FineTuningJob triage created (dry run)")
        assert cluster.objects("FineTuningJob", namespace) == []

    def test_does_not_take_fields_from_others_unasked(
        self, finetune: Finetune, folder: Path, cluster: Cluster, namespace: str
    ) -> None:
        finetune("apply", "-f", "job.yaml")
        metadata = {"name": "triage", "namespace": namespace}
        head = {"apiVersion": "finetuning.dev/v1alpha1", "kind": "FineTuningJob", "metadata": metadata}
        cluster.apply(head | {"spec": {"suspend": True}})
        (folder / "job.yaml").write_text(f"{JOB}  suspend: false\n")

        refused = finetune("apply", "-f", "job.yaml")
        forced = finetune("apply", "-f", "job.yaml", "--force-conflicts")

        assert refused.exit_code == 1
        assert 'spec.suspend (conflict with "tests"' in refused.stderr
        assert "--force-conflicts" in refused.stderr
        assert forced.exit_code == 0
        assert cluster.get("FineTuningJob", "triage", namespace)["spec"]["suspend"] is False

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                JOB.replace("{name: triage}", "{name: triage, namespace: other}"),
                "job.yaml:3: metadata.namespace: is other",
            ),
            (
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n",
                "job.yaml:1: Deployment is not a kind that",
            ),
            (SECRET.replace("name: token", "labels: {}"), "job.yaml:1: metadata.name: is missing"),
            ("a: [", "job.yaml:1:"),
            ("", "job.yaml holds no document"),
        ],
    )
    def test_refuses_what_it_cannot_apply(self, finetune: Finetune, folder: Path, *, text: str, message: str) -> None:
        (folder / "job.yaml").write_text(text)

        done = finetune("apply", "-f", "job.yaml")

        assert done.exit_code == 1
        assert message in done.stderr

    def test_secrets_never_reach_the_output(self, finetune: Finetune, folder: Path) -> None:
        (folder / "token.yaml").write_text(SECRET.replace("stringData", "strngData"))

        done = finetune("apply", "-f", "token.yaml")

        assert done.exit_code == 1
        assert "strngData: is not a field of this API" in done.stderr
        assert "hush" not in done.output


class TestStatus:
    def test_lists_every_kind(self, finetune: Finetune, made: Callable[[Manifest], Object]) -> None:
        for manifest in (job(), named(evaluation(), "compare"), named(relocation(), "bytes"), named(server(), "serve")):
            made(manifest)

        lines = finetune("status").stdout.splitlines()

        assert [line.split()[:2] for line in lines[1:]] == [
            ["FineTuningJob", "triage"],
            ["EvaluationJob", "compare"],
            ["Relocation", "bytes"],
            ["InferenceServer", "serve"],
        ]

    def test_shows_one_object_with_results_and_where_they_lie(
        self, finetune: Finetune, cluster: Cluster, made: Callable[[Manifest], Object]
    ) -> None:
        told(cluster, made(job()), **COMPLETE)

        done = finetune("status", "ftj/triage")

        assert "FineTuningJob triage: Complete" in done.stdout
        assert "exact-match  0.1000  0.2000  +0.1000" in done.stdout
        assert "report       claim triage-adapter, evaluation/report.html" in done.stdout

    @pytest.mark.parametrize("form", ["json", "yaml"])
    def test_for_scripts_it_is_the_object_itself(
        self, finetune: Finetune, cluster: Cluster, made: Callable[[Manifest], Object], *, form: str
    ) -> None:
        expected = told(cluster, made(job()), **COMPLETE)
        expected["metadata"].pop("managedFields")

        one, every = finetune("status", "triage", "-o", form), finetune("status", "-o", form)

        assert yaml.safe_load(one.stdout) == expected
        assert yaml.safe_load(every.stdout) == ([expected] if form == "json" else expected)

    def test_says_that_nobody_has_looked_at_a_new_object(
        self, finetune: Finetune, made: Callable[[Manifest], Object]
    ) -> None:
        made(job())
        assert "no operator has looked at it yet" in finetune("status", "triage").stderr

    def test_an_unknown_name_is_told_with_where_it_was_looked_for(self, finetune: Finetune, namespace: str) -> None:
        done = finetune("status", "nobody")

        assert done.exit_code == 1
        assert f"there is no object named 'nobody' in namespace {namespace} of context test" in done.stderr

    @pytest.mark.parametrize("name", ["", "ftj/", "pod/x", "a b/c"])
    def test_what_names_no_object_is_told(self, finetune: Finetune, name: str) -> None:
        done = finetune("status", name)

        assert (done.exit_code, done.stdout) == (1, "")
        assert "Write NAME or KIND/NAME with KIND one of finetuningjob, evaluationjob" in done.stderr

    def test_watches_until_the_end(
        self, cluster: Cluster, namespace: str, folder: Path, made: Callable[[Manifest], Object]
    ) -> None:
        item = made(job())
        watch = ("--watch", "-o", "json", "-n", namespace)
        with _started((FINETUNE, "status", "triage", *watch), cluster, folder) as process:
            assert process.stdout is not None
            assert "status" not in json.loads(process.stdout.readline())
            told(cluster, item, phase="Training")
            assert json.loads(process.stdout.readline())["status"]["phase"] == "Training"
            told(cluster, item, **COMPLETE)
            assert json.loads(process.stdout.readline())["status"]["phase"] == "Complete"

            assert process.wait(30) == 0


@contextmanager
def _started(command: Sequence[str | Path], cluster: Cluster, folder: Path) -> Iterator[subprocess.Popen[str]]:
    with start(*command, cwd=folder, extra={"KUBECONFIG": str(cluster.kubeconfig)}) as process:
        try:
            yield process
        finally:
            process.kill()


class TestWait:
    def test_is_over_at_once_when_the_job_is_complete(
        self, finetune: Finetune, cluster: Cluster, made: Callable[[Manifest], Object]
    ) -> None:
        told(cluster, made(job()), **COMPLETE)

        done = finetune("wait", "triage")

        assert (done.exit_code, done.stdout) == (0, "FineTuningJob triage: Complete=True\n")

    def test_goes_on_until_the_job_is_complete(
        self, cluster: Cluster, namespace: str, folder: Path, made: Callable[[Manifest], Object]
    ) -> None:
        item = made(job())
        with _started([FINETUNE, "wait", "triage", "-n", namespace], cluster, folder) as process:
            running = {"name": "train", "state": "Running", "percent": 5}
            told(cluster, item, phase="Training", stages=[running])
            assert process.stderr is not None
            assert process.stderr.readline() == "triage train: running 5 %\n"
            told(cluster, item, **COMPLETE)

            assert process.wait(30) == 0

    @pytest.mark.parametrize(
        ("goal", "status", "message"),
        [
            ("complete", FAILED, "FineTuningJob triage: Failed (OutOfMemory): train: the worker ran out of memory"),
            ("failed", COMPLETE, "FineTuningJob triage: it ended without the condition Failed"),
            ("condition=GatePassed", COMPLETE, "GatePassed is False (GateFailed): exact-match: 0.1 < 0.2"),
        ],
    )
    def test_ends_with_1_and_the_reason_when_it_can_never_be(
        self,
        finetune: Finetune,
        cluster: Cluster,
        made: Callable[[Manifest], Object],
        *,
        goal: str,
        status: Object,
        message: str,
    ) -> None:
        told(cluster, made(job()), **status)

        done = finetune("wait", "triage", "--for", goal)

        assert done.exit_code == 1
        assert message in done.stderr

    @pytest.mark.parametrize("goal", ["failed", "condition=Failed=true"])
    def test_waits_for_a_failure_as_well(
        self, finetune: Finetune, cluster: Cluster, made: Callable[[Manifest], Object], *, goal: str
    ) -> None:
        told(cluster, made(job()), **FAILED)
        assert finetune("wait", "triage", "--for", goal).exit_code == 0

    def test_ends_with_124_when_time_is_over(self, finetune: Finetune, made: Callable[[Manifest], Object]) -> None:
        made(job())

        done = finetune("wait", "triage", "--timeout", "0.1s")

        assert done.exit_code == 124
        assert "did not get there within 0.1 s" in done.stderr

    def test_ends_when_the_job_is_deleted(
        self, cluster: Cluster, namespace: str, folder: Path, made: Callable[[Manifest], Object]
    ) -> None:
        item = made(job())
        with _started([FINETUNE, "wait", "triage", "-n", namespace], cluster, folder) as process:
            told(cluster, item, phase="Training", stages=[{"name": "train", "state": "Running", "percent": 5}])
            assert process.stderr is not None
            process.stderr.readline()
            cluster.delete(item)

            assert process.wait(30) == 1
            assert "FineTuningJob triage was deleted" in process.stderr.read()

    def test_complete_means_ready_for_what_does_not_end(
        self, finetune: Finetune, cluster: Cluster, made: Callable[[Manifest], Object]
    ) -> None:
        told(cluster, made(server()), phase="Ready", conditions=[condition("Ready", "Succeeded")])

        assert finetune("wait", "infs/triage").stdout == "InferenceServer triage: Ready=True\n"


class TestChanges:
    def test_cancel_suspends_and_resume_goes_on(
        self, finetune: Finetune, cluster: Cluster, made: Callable[[Manifest], Object]
    ) -> None:
        item = made(job())

        cancelled = finetune("cancel", "triage")
        suspended = cluster.refresh(item)["spec"]["suspend"]
        resumed = finetune("resume", "triage")

        assert "FineTuningJob triage stops after a checkpoint" in cancelled.stdout
        assert "finetune resume triage" in cancelled.stderr
        assert resumed.stdout.startswith("FineTuningJob triage goes on")
        assert (suspended, cluster.refresh(item)["spec"]["suspend"]) == (True, False)

    def test_what_has_ended_is_not_cancelled_and_does_not_go_on(
        self, finetune: Finetune, cluster: Cluster, made: Callable[[Manifest], Object]
    ) -> None:
        item = told(cluster, made(job()), **COMPLETE)

        cancelled, resumed = finetune("cancel", "triage"), finetune("resume", "triage")

        assert (cancelled.exit_code, resumed.exit_code) == (0, 1)
        assert cancelled.stdout == "FineTuningJob triage has ended already (Complete)\n"
        assert "A finished job never runs again" in resumed.stderr
        assert cluster.refresh(item)["spec"] == item["spec"]

    def test_a_relocation_has_nothing_to_cancel(self, finetune: Finetune, made: Callable[[Manifest], Object]) -> None:
        made(relocation())
        assert "has nothing to cancel" in finetune("cancel", "triage").stderr

    @pytest.mark.parametrize(
        ("retention", "fate"),
        [
            ("Delete", "its adapter is deleted with it"),
            ("Retain", "its adapter stays on the claim triage-adapter"),
            ("Trash", "its adapter stays on the claim triage-adapter until the trash is emptied"),
        ],
    )
    def test_delete_says_what_becomes_of_the_adapter(
        self,
        finetune: Finetune,
        cluster: Cluster,
        namespace: str,
        made: Callable[[Manifest], Object],
        *,
        retention: str,
        fate: str,
    ) -> None:
        told(cluster, made(job(storage={"retention": retention})), **COMPLETE)

        done = finetune("delete", "triage")

        assert done.stdout.splitlines()[1] == f"  {fate}; relocated models and data stay for other jobs"
        assert cluster.objects("FineTuningJob", namespace) == []

    def test_a_job_is_meant_before_its_server_of_the_same_name(
        self, finetune: Finetune, cluster: Cluster, namespace: str, made: Callable[[Manifest], Object]
    ) -> None:
        made(job())
        made(server())

        finetune("delete", "triage")

        assert cluster.objects("FineTuningJob", namespace) == []
        assert len(cluster.objects("InferenceServer", namespace)) == 1


class TestReport:
    def test_shows_results_and_verdict(
        self, finetune: Finetune, cluster: Cluster, made: Callable[[Manifest], Object]
    ) -> None:
        told(cluster, made(job()), **COMPLETE)

        table, content = finetune("report", "triage"), json.loads(finetune("report", "triage", "-o", "json").stdout)

        assert "gate         Fail exact-match: 0.1 < 0.2" in table.stdout
        assert (content["verdict"], content["evaluation"][0]["tuned"]) == ("Fail", 0.2)

    def test_without_results_says_where_the_job_stands(
        self, finetune: Finetune, cluster: Cluster, made: Callable[[Manifest], Object]
    ) -> None:
        told(cluster, made(job()), phase="Training")

        done = finetune("report", "triage")

        assert (done.exit_code, done.stderr.splitlines()[0]) == (1, "error: triage has no results yet (Training)")


@pytest.fixture(scope="module")
def kubelet(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:
    with running_kubelet(cluster, tmp_path_factory.mktemp("kubelet")) as running:
        yield running


@pytest.fixture
def pod(cluster: Cluster, kubelet: Kubelet, namespace: str) -> Callable[..., Object]:
    """Make a running pod of a step with lines in its log."""

    def make(
        name: str, step: str, *, lines: tuple[str, ...] = (), kind: str = "FineTuningJob", worker: int = 0
    ) -> Object:
        owner = {"FineTuningJob": "triage", "EvaluationJob": "triage-evaluation", "InferenceServer": "triage"}[kind]
        labels = {"finetuning.dev/kind": kind, "finetuning.dev/name": owner, "finetuning.dev/step": step}
        labels |= {"batch.kubernetes.io/job-completion-index": str(worker)}
        full_name = f"{name}-{namespace}"
        metadata = {"name": full_name, "namespace": namespace, "labels": labels}
        made = make_pod(cluster, kubelet, {"metadata": metadata})
        kubelet.logs[full_name] += lines
        return made

    return make


class TestLogs:
    def test_prints_the_stage_that_is_asked_for(
        self, finetune: Finetune, made: Callable[[Manifest], Object], pod: Callable[..., Object]
    ) -> None:
        made(job())
        pod("a", "preflight", lines=("looks fine",))
        pod("b", "train", lines=("step 1", "step 2"))
        pod("c", "train", lines=("I am the other one",), worker=1)
        pod("d", "evaluate", lines=("compares",), kind="EvaluationJob")

        assert finetune("logs", "triage", "train").stdout == "step 1\nstep 2\n"
        assert finetune("logs", "triage", "--stage", "preflight").stdout == "looks fine\n"
        assert finetune("logs", "triage", "train", "--tail", "1").stdout == "step 2\n"
        assert finetune("logs", "triage", "train", "--worker", "1").stdout == "I am the other one\n"
        assert finetune("logs", "triage", "evaluate").stdout == "compares\n"
        assert "There are pods of evaluate, preflight, train." in finetune("logs", "triage", "serve").stderr

    def test_follows_through_a_retry_until_the_job_has_ended(
        self,
        cluster: Cluster,
        kubelet: Kubelet,
        namespace: str,
        folder: Path,
        made: Callable[[Manifest], Object],
        pod: Callable[..., Object],
    ) -> None:
        item = made(job())
        first = pod("first", "train", lines=("step 1",))
        with _started([FINETUNE, "logs", "triage", "-f", "-n", namespace], cluster, folder) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "step 1\n"
            second = pod("second", "train")
            kubelet.ended.add(first["metadata"]["name"])
            kubelet.logs[second["metadata"]["name"]].append("step 1 again")
            assert process.stdout.readline() == "step 1 again\n"
            told(cluster, item, **COMPLETE)
            kubelet.ended.add(second["metadata"]["name"])

            assert process.wait(30) == 0

    def test_pods_that_were_made_within_one_second_are_all_followed(
        self,
        finetune: Finetune,
        cluster: Cluster,
        kubelet: Kubelet,
        made: Callable[[Manifest], Object],
        pod: Callable[..., Object],
    ) -> None:
        told(cluster, made(job()), **COMPLETE)
        pods: list[Object] = []
        newest: list[str] = []
        while len(newest) < 2:
            name = f"pod-{len(pods)}"
            pods.append(pod(name, "train", lines=(f"of {name}",)))
            times = [each["metadata"]["creationTimestamp"] for each in pods]
            newest = [f"of pod-{number}" for number, time in enumerate(times) if time == times[-1]]
        kubelet.ended.update(each["metadata"]["name"] for each in pods)

        assert finetune("logs", "triage", "-f").stdout.splitlines() == newest

    def test_without_pods_says_where_the_last_words_are(
        self, finetune: Finetune, made: Callable[[Manifest], Object]
    ) -> None:
        made(job())

        done = finetune("logs", "triage")

        assert done.exit_code == 1
        assert "triage has no pod" in done.stderr
        assert "finetune status triage" in done.stderr


class Models(BaseHTTPRequestHandler):
    """Two models that repeat what they are asked, word by word."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "base"}, {"id": "triage"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = f"{asked['model']} was asked {asked.get('prompt') or asked['messages'][-1]['content']}"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for word in re.split("(?= )", text):
            event = {"choices": [{"text": word, "delta": {"content": word}}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def _answer(self, content: Any) -> None:  # noqa: ANN401  (JSON)
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def models(kubelet: Kubelet) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Models) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        kubelet.port = listener.server_address[1]
        yield
        listener.shutdown()


class TestPrompt:
    @pytest.mark.usefixtures("models")
    def test_asks_every_model_of_the_server_through_a_forwarded_port(
        self, finetune: Finetune, made: Callable[[Manifest], Object], pod: Callable[..., Object]
    ) -> None:
        dataset = {"source": "s3://b/rows", "prompt": "Triage {message}!", "completion": "{x}"}
        made(job(serving={}, dataset=dataset))
        made(server())
        pod("server", "serve", kind="InferenceServer")

        done = finetune("prompt", "triage", "hello")
        chat = finetune("prompt", "triage", "hello", "--chat")

        assert done.stdout == "base: base was asked Triage hello!\ntriage: triage was asked Triage hello!\n"
        assert chat.stdout == "base: base was asked hello\ntriage: triage was asked hello\n"

    @pytest.mark.usefixtures("models")
    def test_answers_are_objects_for_scripts(
        self, finetune: Finetune, made: Callable[[Manifest], Object], pod: Callable[..., Object]
    ) -> None:
        made(server())
        pod("server", "serve", kind="InferenceServer")

        done = finetune("prompt", "infs/triage", "hello", "-o", "json")

        assert [json.loads(line) for line in done.stdout.splitlines()] == [
            {"candidate": "base", "text": "base was asked hello"},
            {"candidate": "triage", "text": "triage was asked hello"},
        ]

    @pytest.mark.usefixtures("models")
    def test_a_chat_goes_through_a_forwarded_port_turn_by_turn(
        self, finetune: Finetune, made: Callable[[Manifest], Object], pod: Callable[..., Object]
    ) -> None:
        made(job(serving={}))
        made(server())
        pod("server", "serve", kind="InferenceServer")

        done = finetune("chat", "triage", stdin="hello\nand then\n/model base\nwell\n")

        assert done.stdout == "triage was asked hello\ntriage was asked and then\nbase was asked well\n"
        assert done.exit_code == 0

    def test_a_chat_needs_a_name_on_a_cluster(self, finetune: Finetune) -> None:
        assert "on a cluster a chat needs the name of what is served" in finetune("chat").stderr

    def test_a_job_without_serving_is_told_how_to_be_served(
        self, finetune: Finetune, made: Callable[[Manifest], Object]
    ) -> None:
        made(job())

        done = finetune("prompt", "triage", "hello")

        assert done.exit_code == 1
        assert "triage is not served: its spec has no serving" in done.stderr

    def test_a_job_that_is_not_served_yet_says_where_it_stands(
        self, finetune: Finetune, cluster: Cluster, made: Callable[[Manifest], Object]
    ) -> None:
        told(cluster, made(job(serving={})), phase="Training")
        assert "not served yet (Training)" in finetune("prompt", "triage", "hello").stderr

    def test_a_server_without_ready_pods_is_told(self, finetune: Finetune, made: Callable[[Manifest], Object]) -> None:
        made(server())
        assert "no pod of InferenceServer triage is ready (0 there)" in finetune("prompt", "triage", "hi").stderr


def kubeconfig(cluster: Cluster, folder: Path, change: Callable[[Object], None]) -> Path:
    """Write a copy of the kubeconfig in which something is wrong."""
    content = yaml.safe_load(cluster.kubeconfig.read_text())
    change(content)
    path = folder / "broken.kubeconfig"
    path.write_text(yaml.safe_dump(content))
    return path


class TestWhatIsInTheWay:
    def told(self, path: Path, *arguments: str) -> list[str]:
        done = CliRunner().invoke(app, [*(arguments or ("status", "triage")), "--kubeconfig", str(path)])
        assert done.exit_code == 1
        assert "Traceback" not in done.output
        assert done.stderr.startswith("error: ")
        return done.stderr.removeprefix("error: ").splitlines()

    def test_nobody_answers(self, cluster: Cluster, folder: Path) -> None:
        def close(content: Object) -> None:
            content["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"

        message, hint = self.told(kubeconfig(cluster, folder, close))

        assert message.startswith("cannot reach the cluster at https://127.0.0.1:9: ")
        assert "Connection refused" in message
        assert hint == "  Check the network and the address: kubectl cluster-info"

    def test_credentials_are_not_known_any_more(self, cluster: Cluster, folder: Path) -> None:
        def expire(content: Object) -> None:
            content["users"][0]["user"] = {"token": "expired"}

        message, hint = self.told(kubeconfig(cluster, folder, expire))

        assert message == f"the cluster at {cluster.server} does not accept your credentials"
        assert "log in to the cluster again" in hint

    def test_somebody_else_answers(self, cluster: Cluster, folder: Path) -> None:
        def distrust(content: Object) -> None:
            entry = content["clusters"][0]["cluster"]
            entry.pop("certificate-authority-data", None)
            entry["certificate-authority"] = str(Certificate.make(folder).path)

        message, _ = self.told(kubeconfig(cluster, folder, distrust))

        assert message.endswith("its certificate is not the one that the kubeconfig trusts")

    def test_the_account_has_no_rights(self, cluster: Cluster, folder: Path, namespace: str) -> None:
        account = {"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "guest", "namespace": namespace}}
        cluster.create(account)
        path = cluster.path("ServiceAccount", "guest", namespace=namespace, subresource="token")
        request: Object = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token = cluster.request("POST", path, body=request, content_type="application/json")["status"]["token"]

        def forbid(content: Object) -> None:
            content["users"][0]["user"] = {"token": token}

        broken = kubeconfig(cluster, folder, forbid)
        message, hint = self.told(broken, "delete", "ftj/triage", "-n", namespace)

        assert message.startswith(f"you may not get finetuningjobs in the namespace {namespace}: ")
        assert f"kubectl auth can-i get finetuningjobs -n {namespace}" in hint

    @pytest.mark.parametrize(("command", "why"), [("no-such-login", "No such file"), ("false", "returned 1")])
    def test_the_login_program_fails(self, cluster: Cluster, folder: Path, *, command: str, why: str) -> None:
        def ask(content: Object) -> None:
            version = "client.authentication.k8s.io/v1"
            content["users"][0]["user"] = {"exec": {"apiVersion": version, "command": command}}

        message, hint = self.told(kubeconfig(cluster, folder, ask))

        assert message.startswith("the login that the kubeconfig ")
        assert why in message
        assert "Log in to the cluster" in hint

    def test_the_client_certificate_is_damaged(self, cluster: Cluster, folder: Path) -> None:
        def damage(content: Object) -> None:
            content["users"][0]["user"] = {"client-certificate-data": "bm8=", "client-key-data": "bm8="}

        message, _ = self.told(kubeconfig(cluster, folder, damage))

        assert message.endswith("the client certificate of the kubeconfig, or its key, cannot be read")

    def test_the_kubeconfig_is_not_there(self, folder: Path) -> None:
        assert self.told(folder / "none") == [f"there is no kubeconfig {folder / 'none'}", "  Check the path."]

    @pytest.mark.parametrize("text", ["{", "[]", "a: 1", "contexts: 5\ncurrent-context: x"])
    def test_the_kubeconfig_is_no_kubeconfig(self, folder: Path, text: str) -> None:
        (folder / "odd").write_text(text)

        message, hint = self.told(folder / "odd")[0], self.told(folder / "odd")[-1]

        assert message.startswith(f"the kubeconfig {folder / 'odd'} cannot be used: ")
        assert hint == "  Check it with: kubectl config view"

    def test_the_context_is_not_there(self, cluster: Cluster, folder: Path) -> None:  # noqa: ARG002
        message, hint = self.told(cluster.kubeconfig, "status", "--context", "production")

        assert message.endswith("holds no context 'production'")
        assert hint == "  It holds test."

    def test_the_namespace_is_not_there(self, cluster: Cluster, folder: Path) -> None:  # noqa: ARG002
        message, hint = self.told(cluster.kubeconfig, "apply", "-f", "job.yaml", "-n", "nowhere")

        assert (message, hint) == ("there is no namespace nowhere", "  Create it, or name another with -n.")


def test_help_of_every_command_answers_without_a_cluster() -> None:
    for command in [
        "apply",
        "status",
        "wait",
        "logs",
        "report",
        "prompt",
        "chat",
        "serve",
        "cancel",
        "resume",
        "delete",
    ]:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


RunOperator = Callable[..., OperatorProcess]


class TestWithTheOperator:
    @pytest.fixture
    def place(self, cluster: Cluster, auto_namespace: str, run_operator: RunOperator) -> list[str]:
        """The options of a namespace that an operator looks after, and in which programs end well by themselves."""
        run_operator(env={"FINETUNING_NAMESPACES": auto_namespace}).wait_ready()
        return ["--kubeconfig", str(cluster.kubeconfig), "-n", auto_namespace]

    def test_a_job_goes_from_apply_to_its_results(self, place: list[str], folder: Path) -> None:  # noqa: ARG002
        applied = CliRunner().invoke(app, ["apply", "-f", "job.yaml", *place])
        waited = CliRunner().invoke(app, ["wait", "triage", "--timeout", "180s", *place])
        report = CliRunner().invoke(app, ["report", "triage", *place])
        status = json.loads(CliRunner().invoke(app, ["status", "triage", "-o", "json", *place]).stdout)

        assert (applied.exit_code, waited.exit_code, report.exit_code) == (0, 0, 0), waited.output
        assert waited.stdout == "FineTuningJob triage: Complete=True\n"
        assert "triage train: succeeded" in waited.stderr
        assert "exact-match" in report.stdout
        assert status["status"]["phase"] == "Complete"

    def test_a_cancelled_job_stops_and_goes_on(
        self, cluster: Cluster, namespace: str, run_operator: RunOperator, finetune: Finetune
    ) -> None:
        run_operator(env={"FINETUNING_NAMESPACES": namespace}).wait_ready()
        finetune("apply", "-f", "job.yaml")
        cluster.wait_for(lambda: cluster.objects("Pod", namespace), what="the job has pods")

        finetune("cancel", "triage")
        suspended = finetune("wait", "triage", "--for", "condition=Suspended", "--timeout", "180s")
        finetune("resume", "triage")
        resumed = finetune("wait", "triage", "--for", "condition=Suspended=False", "--timeout", "180s")

        assert (suspended.exit_code, resumed.exit_code) == (0, 0), suspended.output + resumed.output

    @pytest.mark.usefixtures("models")
    def test_logs_prompt_and_delete_reach_what_the_operator_made(
        self,
        cluster: Cluster,
        kubelet: Kubelet,
        namespace: str,
        folder: Path,
        *,
        run_operator: RunOperator,
        finetune: Finetune,
    ) -> None:
        def log_and_end(step: str, pod: Object) -> End | None:
            kubelet.logs[pod["metadata"]["name"]] = [f"{step} begins", f"{step} is done"]
            return succeed(step, pod)

        manifest = yaml.safe_load(JOB)
        manifest["spec"] |= {"serving": {}, "pod": kubelet.placement}
        (folder / "job.yaml").write_text(yaml.safe_dump(manifest))
        run_operator(env={"FINETUNING_NAMESPACES": namespace}).wait_ready()
        with play(cluster, log_and_end, namespace=namespace):
            finetune("apply", "-f", "job.yaml")
            waited = finetune("wait", "triage", "--timeout", "180s")
        assert waited.exit_code == 0, waited.output

        for stage in ("preflight", "train", "evaluate"):
            assert finetune("logs", "triage", stage).stdout == f"{stage} begins\n{stage} is done\n"
        asked = finetune("prompt", "triage", "hello")
        assert asked.stdout == "base: base was asked hello\ntriage: triage was asked hello\n", asked.stderr

        deleted = finetune("delete", "triage")
        assert deleted.exit_code == 0, deleted.output
        assert "its adapter is deleted with it" in deleted.stdout
        kinds = ("Job", "Deployment", "EvaluationJob", "InferenceServer", "PersistentVolumeClaim")
        for kind in kinds:
            for name in names(cluster, kind, namespace):
                if name.startswith("triage"):
                    cluster.wait_gone(kind, name, namespace)
        assert len(names(cluster, "Relocation", namespace)) == 2
        assert "there is no object named 'triage'" in finetune("status", "triage").stderr
