"""What people and Prometheus see of a running operator: probes, the values of its metrics, and its log."""

import json
import re
from collections.abc import Callable
from http import HTTPStatus

import httpx
from tests.support.api_proxy import ApiProxy, Fault, Trouble
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.lifecycle import job, resource, wait_for_end, wait_for_events
from tests.support.operator_process import OperatorProcess
from tests.support.player import End, play, succeed
from tests.support.processes import wait_until

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords

RunOperator = Callable[..., OperatorProcess]
OUT_OF_SPACE = End(exit_code=203, words=LastWords(reason=Reason.DISK_FULL, message="no space is left"))


def wrong_train(step: str, pod: Object) -> End | None:
    """Let the training of the job ``wrong`` end badly, and all else well."""
    is_wrong = step == "train" and pod["metadata"]["name"].startswith("wrong-")
    return OUT_OF_SPACE if is_wrong else succeed(step, pod)


def test_a_life_is_counted_and_its_troubles_are_logged_with_the_objects_they_are_about(
    cluster: Cluster, namespace: str, proxy: ApiProxy, run_operator: RunOperator
) -> None:
    operator = run_operator(env={"FINETUNING_NAMESPACES": namespace, "FINETUNING_STATUS_DELAY": "0.2"}, via=proxy)
    operator.wait_ready()
    proxy.fail(Fault(Trouble.STATUS, target="jobs", status=HTTPStatus.INTERNAL_SERVER_ERROR, message="etcd is away"))
    with play(cluster, wrong_train, namespace=namespace):
        cluster.create(job(namespace, "right"))
        assert has_condition(wait_for_end(cluster, namespace, "right"), "Complete")
        cluster.create(job(namespace, "wrong", backoffLimit=0))
        assert has_condition(wait_for_end(cluster, namespace, "wrong"), "Failed")
        cluster.create(job(namespace, "waits", resources={"limits": {"nvidia.com/gpu": 4000}}))
        wait_for_events(cluster, namespace, ("Warning", "Unschedulable"), name="waits")
        cluster.create(job(namespace, "halted", suspend=True))
        cluster.wait_for_object(
            "FineTuningJob", "halted", namespace, where=lambda found: has_condition(found, "Suspended")
        )

    wait_until(lambda: phases(operator) == {"Complete": 1, "Failed": 1, "Training": 1, "Suspended": 1}, what="counted")
    assert operator.metric("finetuning_objects", kind="Relocation", phase="Ready") == 2
    assert operator.metric("finetuning_failures_total", kind="FineTuningJob", reason="DiskFull") == 1
    assert operator.metric("finetuning_failures_total") == 1
    ended = {
        stage: operator.metric("finetuning_stage_seconds_count", kind="FineTuningJob", stage=stage)
        for stage in ("relocate", "preflight", "train", "evaluate")
    }
    assert ended == {"relocate": 3, "preflight": 3, "train": 2, "evaluate": 1}
    assert operator.metric("finetuning_api_requests_total", verb="create", resource="jobs", code="500") == 1
    assert operator.metric("finetuning_retries_total", kind="Relocation") == 1
    assert operator.metric("finetuning_reconcile_seconds_count", kind="FineTuningJob", result="ok") > 4
    assert operator.metric("finetuning_leading") == 1
    wait_until(lambda: operator.metric("finetuning_queue_depth") == 0, what="nothing waits")
    assert (operator.answer("/healthz"), operator.answer("/readyz")) == ("ok\n", "ok\n")

    assert operator.stop() == 0
    lines = [json.loads(line) for line in operator.logs.splitlines()]
    assert {field for line in lines for field in ("time", "level", "logger", "message") if field not in line} == set()
    (told,) = [line for line in lines if "etcd is away" in line["message"]]
    assert (told["level"], told["kind"], told["namespace"]) == ("warning", "Relocation", namespace)
    assert cluster.find("Relocation", told["name"], namespace) is not None


def phases(operator: OperatorProcess) -> dict[str, float]:
    """Return how many jobs are in each phase, as far as it has any."""
    names = ("Pending", "Relocating", "Preparing", "Training", "Evaluating", "Suspended", "Complete", "Failed")
    counted = {name: operator.metric("finetuning_objects", kind="FineTuningJob", phase=name) for name in names}
    return {name: count for name, count in counted.items() if count}


def test_until_it_knows_the_cluster_it_is_alive_and_not_ready(
    cluster: Cluster, namespace: str, proxy: ApiProxy, run_operator: RunOperator
) -> None:
    proxy.be_unreachable()
    operator = run_operator(env={"FINETUNING_NAMESPACES": namespace}, via=proxy)
    wait_until(lambda: "listing failed" in operator.logs, what="it has asked in vain")
    assert (operator.answer("/healthz"), operator.is_ready()) == ("ok\n", False)
    assert operator.exit_code is None

    proxy.heal()
    operator.wait_ready()
    cluster.create(resource("Relocation", "model", namespace, source="hf://acme/tiny", revision="v1"))
    cluster.wait_for_object("Job", "model-measure", namespace)


def test_an_operator_that_learns_nothing_any_more_is_called_unhealthy_until_it_does_again(
    namespace: str, proxy: ApiProxy, run_operator: RunOperator
) -> None:
    """What it knows may be three full lists old and a minute: here 63 s."""
    operator = run_operator(env={"FINETUNING_NAMESPACES": namespace, "FINETUNING_RESYNC_SECONDS": "1"}, via=proxy)
    operator.wait_ready()
    proxy.fail(Fault(Trouble.STATUS, verbs=frozenset({"list"}), times=None, message="etcd is away"))

    wait_until(lambda: healthz(operator).status_code != HTTPStatus.OK, what="it is unhealthy")

    said = healthz(operator)
    assert said.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert re.fullmatch(r"lists: nothing was listed: \d+ s, at most 63 s are healthy\n", said.text)
    proxy.heal()
    wait_until(lambda: operator.answer("/healthz") == "ok\n", what="it is healthy again")
    assert operator.exit_code is None


def test_an_operator_that_stands_still_answers_no_probe(namespace: str, run_operator: RunOperator) -> None:
    operator = run_operator(env={"FINETUNING_NAMESPACES": namespace})
    operator.wait_ready()
    operator.freeze()
    assert operator.answer("/healthz") is None
    operator.resume()
    wait_until(lambda: operator.answer("/healthz") == "ok\n", what="it is healthy again")


def healthz(operator: OperatorProcess) -> httpx.Response:
    return httpx.get(f"{operator.health_url}/healthz")
