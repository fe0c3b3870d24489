"""TensorBoard of a job on a real API server: beside the training, told in the status, and gone after its time."""

from collections.abc import Callable

import pytest
from tests.support.api_proxy import ApiProxy
from tests.support.cluster import Cluster, Object
from tests.support.lifecycle import is_training, job, names, wait_for_end
from tests.support.operator_process import OperatorProcess
from tests.support.player import play, scripted, succeed
from tests.support.processes import wait_until
from tests.support.whole_job import own_writes

NAME = "demo-tensorboard"


@pytest.fixture
def serve(run_operator: Callable[..., OperatorProcess], namespace: str) -> Callable[..., OperatorProcess]:
    def start(via: ApiProxy) -> OperatorProcess:
        env = {
            "FINETUNING_NAMESPACES": namespace,
            "FINETUNING_STATUS_DELAY": "0.2",
            "FINETUNING_RESYNC_SECONDS": "1",
        }
        operator = run_operator(env=env, via=via)
        operator.wait_ready()
        return operator

    return start


def has_address(found: Object) -> bool:
    return bool((found["status"].get("tensorboard") or {}).get("url"))


def test_it_stands_beside_the_training_on_its_node_and_goes_after_its_time(
    cluster: Cluster, namespace: str, proxy: ApiProxy, serve: Callable[..., OperatorProcess]
) -> None:
    def lists() -> int:
        return len(proxy.seen(verbs={"list"}, target="networkpolicies"))

    def rest() -> list[str]:
        proxy.forget()
        wait_until(lambda: lists() >= 3, seconds=60, what="several full lists")
        return [str(seen.asked) for seen in own_writes(proxy)]

    serve(proxy)
    with play(cluster, scripted({"train": None}), namespace=namespace):
        cluster.create(job(namespace, tensorboard={"ttlSecondsAfterFinished": 3}))
        cluster.wait_for_object("FineTuningJob", "demo", namespace, where=is_training)
        told = cluster.wait_for_object("FineTuningJob", "demo", namespace, where=has_address)
        assert told["status"]["tensorboard"]["url"] == f"http://{NAME}.{namespace}.svc:6006"
        wait_until(lambda: rest() == [], seconds=60, what="everything is told")
        assert rest() == []
    service = cluster.get("Service", NAME, namespace)
    pods = cluster.objects("Pod", namespace, labels="finetuning.dev/component=tensorboard")
    training = cluster.objects("Pod", namespace, labels="finetuning.dev/step=train")
    assert [pod["metadata"]["labels"]["finetuning.dev/network"] for pod in pods] == ["serving"]
    assert {pod["spec"]["nodeName"] for pod in pods} == {pod["spec"]["nodeName"] for pod in training}
    assert service["spec"]["selector"].items() <= pods[0]["metadata"]["labels"].items()
    [mount] = [each for each in pods[0]["spec"]["containers"][0]["volumeMounts"] if each["name"] == "claim-0"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/volumes/demo-adapter", True)

    with play(cluster, succeed, namespace=namespace):
        wait_for_end(cluster, namespace)
        for kind in ("Deployment", "Service"):
            cluster.wait_gone(kind, NAME, namespace)
    cluster.wait_for_object("FineTuningJob", "demo", namespace, where=lambda job: not has_address(job))
    assert names(cluster, "PersistentVolumeClaim", namespace) >= {"demo-adapter"}
    wait_until(lambda: rest() == [], seconds=60, what="nothing is written any more")
