"""Exports on a real API server: asked for after the end, without network but for the push, told by a condition."""

from http import HTTPStatus

import pytest
from tests.support.cluster import Cluster, Object, Refused, has_condition
from tests.support.lifecycle import job, wait_for_end, wait_for_events
from tests.support.player import End, Script, play, succeed
from typer.testing import CliRunner, Result

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ArtifactResult, LastWords, PushResult
from finetuning_cli.main import app

DIGEST, REVISION = f"sha256:{'e' * 64}", f"sha256:{'f' * 64}"
MERGED = End(
    words=LastWords(
        reason=Reason.SUCCEEDED,
        result=ArtifactResult(digest=DIGEST, size_bytes=2000, files=3, format="safetensors"),
    )
)
PUSHED = End(words=LastWords(reason=Reason.SUCCEEDED, result=PushResult(revision=REVISION)))
REFUSED = End(exit_code=1, words=LastWords(reason=Reason.ACCESS_DENIED, message="r.example refuses access (403)"))
TO_REGISTRY: Object = {"name": "registry", "to": "oci://r.example/acme/demo:v1", "secretRef": {"name": "login"}}


def scripted(push: End = PUSHED) -> Script:
    def script(step: str, pod: Object) -> End | None:
        ends = {"export": MERGED, "push": push}
        return ends.get(step.partition("-")[0]) or succeed(step, pod)

    return script


def wait_exported(cluster: Cluster, namespace: str, *, reason: str) -> Object:
    def told(found: Object) -> bool:
        conditions = found.get("status", {}).get("conditions", [])
        return any((each["type"], each["reason"]) == ("Exported", reason) for each in conditions)

    return cluster.wait_for_object("FineTuningJob", "demo", namespace, where=told)


def finetune(cluster: Cluster, namespace: str, *arguments: str) -> Result:
    place = ["--kubeconfig", str(cluster.kubeconfig), "-n", namespace]
    return CliRunner().invoke(app, [*arguments, *place])


def made_for(cluster: Cluster, namespace: str, word: str) -> Object:
    (found,) = [each for each in cluster.objects("Job", namespace) if f"-{word}-" in each["metadata"]["name"]]
    return found


def pod_of(found: Object) -> tuple[Object, str, dict[str, bool]]:
    """Return the labels, the image and the claims of a Job's pods, by name, with whether they are read-only."""
    template = found["spec"]["template"]
    (container,) = template["spec"]["containers"]
    claims = {
        each["name"]: each["persistentVolumeClaim"]["claimName"]
        for each in template["spec"]["volumes"]
        if "persistentVolumeClaim" in each
    }
    mounts = {
        claims[each["name"]]: bool(each.get("readOnly")) for each in container["volumeMounts"] if each["name"] in claims
    }
    return template["metadata"]["labels"], container["image"], mounts


@pytest.mark.usefixtures("operator")
def test_a_finished_job_is_merged_and_pushed_when_it_is_asked_for(cluster: Cluster, namespace: str) -> None:
    with play(cluster, scripted(), namespace=namespace):
        cluster.create(job(namespace))
        assert has_condition(wait_for_end(cluster, namespace), "Complete")
        asked = finetune(cluster, namespace, "export", "demo", "--to", TO_REGISTRY["to"], "--secret", "login")
        assert asked.exit_code == 0, asked.output
        waited = finetune(cluster, namespace, "wait", "demo", "--for", "condition=Exported", "--timeout", "2m")
        assert waited.exit_code == 0, waited.output
    done = cluster.get("FineTuningJob", "demo", namespace)
    told = finetune(cluster, namespace, "export", "demo", "--to", TO_REGISTRY["to"], "--secret", "login")
    assert "Done" in told.output
    assert REVISION in told.output

    (record,) = done["status"]["exports"]
    assert (record["state"], record["digest"], record["pushedRevision"]) == ("Done", DIGEST, REVISION)
    assert has_condition(done, "Complete")
    labels, image, mounts = pod_of(made_for(cluster, namespace, "export"))
    assert labels["finetuning.dev/network"] != "open"
    assert "trainer" in image
    assert {claim for claim, read_only in mounts.items() if not read_only} == {"demo-export"}
    labels, image, mounts = pod_of(made_for(cluster, namespace, "push"))
    assert labels["finetuning.dev/network"] == "open"
    assert "relocator" in image
    assert mounts == {"demo-export": True}
    claim = cluster.get("PersistentVolumeClaim", "demo-export", namespace)
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"


@pytest.mark.usefixtures("operator")
def test_a_push_that_is_refused_is_told_and_the_job_stays_complete(cluster: Cluster, namespace: str) -> None:
    with play(cluster, scripted(REFUSED), namespace=namespace):
        cluster.create(job(namespace, exports=[TO_REGISTRY | {"format": "adapter"}]))
        done = wait_exported(cluster, namespace, reason="ExportFailed")
    assert has_condition(done, "Complete")
    assert done["status"]["exports"][0]["message"] == "r.example refuses access (403)"
    wait_for_events(cluster, namespace, ("Normal", "Succeeded"), ("Warning", "ExportFailed"))


def test_the_api_server_refuses_what_cannot_be_pushed(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(Refused) as refused:
        cluster.create(job(namespace, exports=[{"name": "a", "format": "adapter"}]))
    assert refused.value.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "the adapter lies on its own claim already" in str(refused.value)
