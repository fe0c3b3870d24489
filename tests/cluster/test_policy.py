"""What an administrator says, on a real API server: presets that jobs pick, bounds, and the way out of the cluster."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.support.cluster import Cluster, Object
from tests.support.lifecycle import condition, has_ended, is_training, job, wait_for_end
from tests.support.operator_process import OperatorProcess
from tests.support.player import play, scripted

BUNDLE = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"
SMALL = {
    "training": {"epochs": 1, "learningRate": 2.0e-5},
    "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "1Gi"}},
    "pod": {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
    "priorityClassName": "system-node-critical",
}
POLICY: Object = {
    "presets": {"small": SMALL, "large": SMALL | {"resources": {"limits": {"nvidia.com/gpu": 8}}}},
    "bounds": {"resources": {"nvidia.com/gpu": 2}},
    "relocation": {"allowedSources": ["hf://acme/", "s3://bucket/"], "endpoints": {"hf": "https://hub.example"}},
    "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
}
Serve = Callable[..., OperatorProcess]


@pytest.fixture
def serve(run_operator: Callable[..., OperatorProcess], namespace: str, tmp_path: Path) -> Serve:
    def start(policy: Object) -> OperatorProcess:
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
        (tmp_path / "ca.pem").write_text(BUNDLE)
        env = {
            "FINETUNING_NAMESPACES": namespace,
            "FINETUNING_STATUS_DELAY": "0.2",
            "FINETUNING_POLICY": str(tmp_path / "policy.yaml"),
            "FINETUNING_CA_BUNDLE": str(tmp_path / "ca.pem"),
            "FINETUNING_HTTPS_PROXY": "http://proxy.example:3128",
            "FINETUNING_PRIORITY_CLASS": "system-cluster-critical",
        }
        operator = run_operator(env=env)
        operator.wait_ready()
        return operator

    return start


def test_a_job_with_a_preset_is_done_with_it_also_after_it_was_taken_away(
    cluster: Cluster, namespace: str, serve: Serve
) -> None:
    first = serve(POLICY)
    with play(cluster, scripted({"train": None}), namespace=namespace):
        cluster.create(job(namespace, preset="small"))
        running = cluster.wait_for_object("FineTuningJob", "demo", namespace, where=is_training)
    assert first.stop() == 0
    assert running["status"]["preset"]["training"]["epochs"] == 1
    assert "epochs" not in str(running["spec"].get("resources"))
    assert running["spec"]["training"]["epochs"] == 3
    (pod,) = cluster.objects("Pod", namespace, labels="finetuning.dev/step=train")
    assert pod["spec"]["priorityClassName"] == "system-node-critical"
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1", "memory": "1Gi"}

    serve({"bounds": {"resources": {"nvidia.com/gpu": 0}}})
    with play(cluster, namespace=namespace):
        done = wait_for_end(cluster, namespace)
    assert condition(done, "Complete")["status"] == "True"
    assert done["status"]["preset"] == running["status"]["preset"]


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        ({"preset": "tiny"}, "InvalidSpec", "no such preset; choose one of large, small"),
        ({"preset": "large"}, "NotAllowed", "spec.resources.limits.nvidia.com/gpu is 8, but this installation gives"),
        ({"model": {"source": "hf://other/model"}}, "NotAllowed", "spec.model.source is hf://other/model, but"),
        (
            {"model": {"source": "hf://acme/tiny", "endpoint": "https://elsewhere.example"}},
            "NotAllowed",
            "spec.model.endpoint is https://elsewhere.example, but the endpoints of this installation",
        ),
    ],
)
def test_what_is_not_offered_or_not_allowed_is_refused_before_anything_starts(
    cluster: Cluster, namespace: str, serve: Serve, spec: Object, reason: str, message: str
) -> None:
    serve(POLICY)
    cluster.create(job(namespace, **spec))
    refused = cluster.wait_for_object("FineTuningJob", "demo", namespace, where=has_ended)

    told = condition(refused, "Accepted")
    assert (told["status"], told["reason"]) == ("False", reason)
    assert message in told["message"]
    assert cluster.objects("Relocation", namespace) == []


def test_only_relocation_is_told_of_the_way_out(cluster: Cluster, namespace: str, serve: Serve) -> None:
    serve(POLICY)
    with play(cluster, namespace=namespace):
        cluster.create(job(namespace))
        wait_for_end(cluster, namespace)

    told: dict[str, set[tuple[str, str]]] = {}
    for pod in cluster.objects("Pod", namespace):
        variables = {each["name"]: each.get("value") for each in pod["spec"]["containers"][0]["env"]}
        bundle = pod["metadata"]["annotations"].get("finetuning.dev/extra-ca", "")
        network = pod["metadata"]["labels"]["finetuning.dev/network"]
        told.setdefault(network, set()).add((variables.get("HTTPS_PROXY", ""), bundle))
    assert told == {"open": {("http://proxy.example:3128", BUNDLE)}, "isolated": {("", "")}}
    policy = cluster.get("NetworkPolicy", "finetuning-open", namespace)
    assert policy["spec"]["egress"][0] == POLICY["egress"][0]
