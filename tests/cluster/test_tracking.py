"""Tracking on a real API server: one pod with network after the end, told by a condition, and in nobody's way."""

from http import HTTPStatus

import pytest
from tests.support.cluster import Cluster, Object, Refused, has_condition
from tests.support.lifecycle import condition, job, wait_for_end, wait_for_events
from tests.support.player import End, Script, play, succeed
from typer.testing import CliRunner

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import RUN_CONFIG, LastWords, TrackConfig, TrackResult
from finetuning_cli.main import app

URI = "https://mlflow.example"
TRACKING: Object = {"mlflowUri": URI, "experiment": "triage", "secretRef": {"name": "mlflow"}}
WRITTEN = End(words=LastWords(reason=Reason.SUCCEEDED, result=TrackResult(experiment_id="7", run_id="abc")))
REFUSED = End(exit_code=1, words=LastWords(reason=Reason.ACCESS_DENIED, message=f"{URI} refuses access (403)"))


def scripted(end: End = WRITTEN) -> Script:
    return lambda step, pod: end if step.startswith("track-") else succeed(step, pod)


@pytest.mark.usefixtures("operator")
def test_a_job_is_tracked_after_its_end_and_the_status_says_where(cluster: Cluster, namespace: str) -> None:
    with play(cluster, scripted(), namespace=namespace):
        cluster.create(job(namespace, tracking=TRACKING))
        place = ["--kubeconfig", str(cluster.kubeconfig), "-n", namespace]
        waited = CliRunner().invoke(app, ["wait", "demo", "--for", "condition=Tracked", "--timeout", "4m", *place])
        assert waited.exit_code == 0, waited.output
    done = cluster.get("FineTuningJob", "demo", namespace)

    assert has_condition(done, "Complete")
    told = done["status"]["tracking"]
    assert (told["state"], told["runId"], told["url"]) == ("Done", "abc", f"{URI}/#/experiments/7/runs/abc")
    (made,) = [each for each in cluster.objects("Job", namespace) if told["name"] in each["metadata"]["name"]]
    template = made["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert template["metadata"]["labels"]["finetuning.dev/network"] == "open"
    assert "relocator" in container["image"]
    assert [each["secretRef"]["name"] for each in container["envFrom"]] == ["mlflow"]
    (claim,) = [each for each in template["spec"]["volumes"] if "persistentVolumeClaim" in each]
    assert claim["persistentVolumeClaim"]["claimName"] == "demo-adapter"
    assert [each["readOnly"] for each in container["volumeMounts"] if each["name"] == claim["name"]] == [True]
    config = RUN_CONFIG.validate_json(template["metadata"]["annotations"]["finetuning.dev/run-config"])
    assert isinstance(config, TrackConfig)
    assert (config.uri, config.experiment, config.job.uid) == (URI, "triage", done["metadata"]["uid"])
    others = [each for each in cluster.objects("Job", namespace) if "-train" in each["metadata"]["name"]]
    labels = [each["spec"]["template"]["metadata"]["labels"]["finetuning.dev/network"] for each in others]
    assert labels
    assert "open" not in labels


@pytest.mark.usefixtures("operator")
def test_a_server_that_refuses_is_told_and_asked_again_when_tracking_changes(cluster: Cluster, namespace: str) -> None:
    with play(cluster, scripted(REFUSED), namespace=namespace):
        cluster.create(job(namespace, tracking=TRACKING))
        assert has_condition(wait_for_end(cluster, namespace), "Complete")
        failed = cluster.wait_for_object(
            "FineTuningJob",
            "demo",
            namespace,
            where=lambda found: condition(found, "Tracked").get("reason") == "TrackingFailed",
        )
    told = f"{URI}: {URI} refuses access (403)"
    assert (has_condition(failed, "Complete"), condition(failed, "Tracked")["message"]) == (True, told)
    wait_for_events(cluster, namespace, ("Normal", "Succeeded"), ("Warning", "TrackingFailed"))

    with play(cluster, scripted(), namespace=namespace):
        cluster.patch(failed, {"spec": {"tracking": {"runName": "again"}}})
        cluster.wait_for_object("FineTuningJob", "demo", namespace, where=lambda found: has_condition(found, "Tracked"))


def test_the_api_server_refuses_tracking_without_an_address(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(Refused) as refused:
        cluster.create(job(namespace, tracking={"experiment": "a"}))
    assert refused.value.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "spec.tracking.mlflowUri" in str(refused.value)
