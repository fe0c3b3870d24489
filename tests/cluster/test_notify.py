"""Notifications on a real API server: one Job each, from the terminal state too, and never in the way of the job."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.api_proxy import ApiProxy
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.lifecycle import job, names, wait_for_end, wait_for_events
from tests.support.operator_process import OperatorProcess
from tests.support.player import End, Script, play, succeed
from tests.support.processes import wait_until
from tests.support.whole_job import own_writes

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords, NotifyResult

Serve = Callable[..., OperatorProcess]
SENT = End(words=LastWords(reason=Reason.SUCCEEDED, result=NotifyResult(host="hooks.example")))
REFUSED = End(
    exit_code=1, words=LastWords(reason=Reason.NOTIFICATION_FAILED, message="hooks.example answered HTTP 404")
)


@pytest.fixture
def serve(run_operator: Callable[..., OperatorProcess], namespace: str) -> Serve:
    def start(via: ApiProxy | None = None) -> OperatorProcess:
        env = {"FINETUNING_NAMESPACES": namespace, "FINETUNING_STATUS_DELAY": "0.2"}
        operator = run_operator(env=env, via=via)
        operator.wait_ready()
        return operator

    return start


def notified(namespace: str, *events: str, **spec: Any) -> Object:  # noqa: ANN401  (fields of the specification)
    receivers = [{"type": "slack", "secretRef": {"name": "hook"}, "events": list(events)}]
    return job(namespace, notifications=receivers, **spec)


def scripted(**ends: End | None) -> Script:
    """Return a script that ends notifications by their event, and all other steps well."""

    def script(step: str, pod: Object) -> End | None:
        event = step.rpartition("-")[2]
        return ends.get(event) if step.startswith("notify-") else succeed(step, pod)

    return script


def states(cluster: Cluster, namespace: str) -> dict[str, str]:
    found = cluster.get("FineTuningJob", "demo", namespace)["status"].get("notifications", [])
    return {record["event"]: record["state"] for record in found}


def notices(cluster: Cluster, namespace: str) -> list[Object]:
    return [found for found in cluster.objects("Job", namespace) if "-notify-" in found["metadata"]["name"]]


def test_a_job_is_complete_while_its_notifications_hang_and_fail(
    cluster: Cluster, namespace: str, proxy: ApiProxy, serve: Serve
) -> None:
    serve(via=proxy)
    with play(cluster, scripted(started=None, succeeded=REFUSED), namespace=namespace):
        cluster.create(notified(namespace, "Started", "Succeeded"))
        assert has_condition(wait_for_end(cluster, namespace), "Complete")
        wait_until(
            lambda: states(cluster, namespace) == {"Started": "Pending", "Succeeded": "Failed"},
            seconds=60,
            what="the failure is told",
        )
    wait_for_events(cluster, namespace, ("Normal", "Succeeded"), ("Warning", "NotificationFailed"))
    made = [seen.asked.name or seen.body for seen in proxy.writes(target="jobs") if seen.asked.verb == "create"]
    assert sum(b"notify-" in (each if isinstance(each, bytes) else each.encode()) for each in made) == 2
    for found in notices(cluster, namespace):
        template = found["spec"]["template"]
        [container] = template["spec"]["containers"]
        assert template["metadata"]["labels"]["finetuning.dev/network"] == "open"
        assert container["envFrom"] == [{"prefix": "SOURCE_SECRET_", "secretRef": {"name": "hook", "optional": False}}]
        assert "relocator" in container["image"]
        assert found["spec"]["backoffLimit"] == 5


def test_the_end_is_told_once_by_whichever_operator_runs_and_not_again_when_the_jobs_are_gone(
    cluster: Cluster, namespace: str, proxy: ApiProxy, serve: Serve
) -> None:
    first = serve(via=proxy)
    with play(cluster, scripted(succeeded=None), namespace=namespace):
        cluster.create(notified(namespace, "Succeeded"))
        wait_for_end(cluster, namespace)
        first.kill()
    serve(via=proxy)
    with play(cluster, scripted(succeeded=SENT), namespace=namespace):
        wait_until(lambda: states(cluster, namespace) == {"Succeeded": "Sent"}, seconds=60, what="it is sent")
        [only] = notices(cluster, namespace)
        proxy.forget()
        cluster.delete({"kind": "Job", **only})
        cluster.wait_gone("Job", only["metadata"]["name"], namespace)
        other = cluster.create(job(namespace, "other", suspend=True))
        cluster.wait_for_object(
            "FineTuningJob", "other", namespace, where=lambda found: has_condition(found, "Suspended")
        )
    assert notices(cluster, namespace) == []
    assert {seen.asked.name for seen in own_writes(proxy)} == {"other"}
    assert other["metadata"]["name"] == "other"


def test_a_finished_job_is_kept_until_its_notification_was_dealt_with(
    cluster: Cluster, namespace: str, serve: Serve
) -> None:
    serve()
    with play(cluster, scripted(succeeded=None), namespace=namespace):
        cluster.create(notified(namespace, "Succeeded", ttlSecondsAfterFinished=0))
        wait_for_end(cluster, namespace)
        wait_until(lambda: len(notices(cluster, namespace)) == 1, seconds=60, what="its Job is made")
    assert "demo" in names(cluster, "FineTuningJob", namespace)
    with play(cluster, scripted(succeeded=SENT), namespace=namespace):
        cluster.wait_gone("FineTuningJob", "demo", namespace)
