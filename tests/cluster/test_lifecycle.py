"""Objects from their first moment to their end, on a real API server; only the programs in the pods are played."""

from collections import Counter
from collections.abc import Callable

import pytest
from tests.support.api_proxy import ApiProxy
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.operator_process import OperatorProcess
from tests.support.player import End, play, scripted
from tests.support.processes import wait_until

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords

RunOperator = Callable[..., OperatorProcess]
API_VERSION = "finetuning.dev/v1alpha1"
OWN_KINDS = ("FineTuningJob", "EvaluationJob", "Relocation", "InferenceServer")


def relocation(namespace: str, name: str = "model", **spec: object) -> Object:
    fields = {"source": "hf://acme/tiny", "revision": "v1"} | spec
    return _manifest("Relocation", name, namespace=namespace, spec=fields)


def job(namespace: str, name: str = "demo", **spec: object) -> Object:
    fields: Object = {
        "model": {"source": "hf://acme/tiny", "revision": "v1"},
        "dataset": {
            "source": "s3://bucket/rows.jsonl",
            "revision": "7",
            "prompt": "{message}",
            "completion": "{triage}",
        },
        "evaluation": {"metrics": ["exact-match"]},
    }
    return _manifest("FineTuningJob", name, namespace=namespace, spec=fields | spec)


def _manifest(kind: str, name: str, *, namespace: str, spec: Object) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


@pytest.fixture
def serve(run_operator: RunOperator, namespace: str) -> Callable[..., OperatorProcess]:
    """``serve(via=proxy, NAME=value)`` starts an operator for the namespace of the test and waits until it is ready."""

    def start(via: ApiProxy | None = None, **options: str) -> OperatorProcess:
        env = {"FINETUNING_NAMESPACES": namespace, "FINETUNING_STATUS_DELAY": "0.2"}
        env |= {f"FINETUNING_{name}": value for name, value in options.items()}
        operator = run_operator(env=env, via=via)
        operator.wait_ready()
        return operator

    return start


def ended(target: Object) -> bool:
    return has_condition(target, "Complete") or has_condition(target, "Failed")


def wait_for_end(cluster: Cluster, namespace: str, name: str = "demo") -> Object:
    return cluster.wait_for_object("FineTuningJob", name, namespace, where=ended)


def condition(target: Object, kind: str) -> Object:
    found = [each for each in target["status"]["conditions"] if each["type"] == kind]
    return {name: found[0].get(name) for name in ("status", "reason", "message")} if found else {}


def stages(target: Object) -> list[tuple[str, str]]:
    return [(stage["name"], stage["state"]) for stage in target.get("status", {}).get("stages", ())]


def wait_for_events(cluster: Cluster, namespace: str, *expected: tuple[str, str]) -> None:
    """Events follow the status that they tell of: wait for as many as are expected, which must be these."""

    def told() -> list[tuple[str, str]]:
        return sorted((event["type"], event["reason"]) for event in cluster.events(namespace, name="demo"))

    wait_until(lambda: len(told()) >= len(expected), seconds=30, what=f"events {expected}")
    assert told() == sorted(expected)


def names(cluster: Cluster, kind: str, namespace: str) -> set[str]:
    return {found["metadata"]["name"] for found in cluster.objects(kind, namespace)}


def test_a_relocation_is_measured_gets_its_claim_and_is_ready(
    cluster: Cluster, namespace: str, serve: Callable[..., OperatorProcess]
) -> None:
    serve()
    with play(cluster, namespace=namespace) as player:
        cluster.create(relocation(namespace))
        ready = cluster.wait_for_object(
            "Relocation", "model", namespace, where=lambda found: has_condition(found, "Ready")
        )
    assert [step for step, _ in player.played] == ["measure", "relocate"]
    assert ready["status"]["phase"] == "Ready"
    assert ready["status"]["artifact"]["claim"] == {"claimName": "model", "path": "artifact"}
    assert names(cluster, "Job", namespace) == {"model-measure", "model-relocate"}
    claim = cluster.get("PersistentVolumeClaim", "model", namespace)
    assert [owner["uid"] for owner in claim["metadata"]["ownerReferences"]] == [ready["metadata"]["uid"]]


def test_a_job_goes_through_all_its_stages(
    cluster: Cluster, namespace: str, serve: Callable[..., OperatorProcess]
) -> None:
    serve()
    with play(cluster, namespace=namespace) as player:
        cluster.create(job(namespace))
        done = wait_for_end(cluster, namespace)
    assert stages(done) == [(name, "Succeeded") for name in ("relocate", "preflight", "train", "evaluate")]
    assert condition(done, "Complete") == {"status": "True", "reason": "Succeeded", "message": ""}
    assert condition(done, "GatePassed")["status"] == "True"
    assert done["status"]["artifacts"]["adapter"]["claimName"] == "demo-adapter"
    assert Counter(step for step, _ in player.played) == Counter(
        ["measure", "measure", "relocate", "relocate", "preflight", "train", "evaluate"]
    )
    wait_for_events(cluster, namespace, ("Normal", "GatePassed"), ("Normal", "Succeeded"))


def test_two_jobs_share_what_both_need(cluster: Cluster, namespace: str, serve: Callable[..., OperatorProcess]) -> None:
    serve()
    with play(cluster, namespace=namespace) as player:
        for name in ("one", "two"):
            cluster.create(job(namespace, name))
        for name in ("one", "two"):
            assert has_condition(wait_for_end(cluster, namespace, name), "Complete")
    assert len(names(cluster, "Relocation", namespace)) == 2
    assert Counter(step for step, _ in player.played)["relocate"] == 2


def test_a_wrong_input_fails_the_job_with_the_words_of_the_program_and_one_event(
    cluster: Cluster, namespace: str, serve: Callable[..., OperatorProcess]
) -> None:
    words = LastWords(reason=Reason.COLUMN_NOT_FOUND, message="no column triage", hint="Set spec.dataset.completion.")
    serve()
    with play(cluster, scripted({"preflight": End(exit_code=1, words=words)}), namespace=namespace):
        cluster.create(job(namespace))
        failed = wait_for_end(cluster, namespace)
    told = condition(failed, "Failed")
    assert (told["status"], told["reason"]) == ("True", "ColumnNotFound")
    assert "no column triage. Set spec.dataset.completion." in told["message"]
    assert stages(failed)[1:3] == [("preflight", "Failed"), ("train", "Pending")]
    wait_for_events(cluster, namespace, ("Warning", "ColumnNotFound"))
    assert names(cluster, "Job", namespace) & {"demo-preflight", "demo-train"} == {"demo-preflight"}


def test_nothing_is_written_once_nothing_changes_and_a_restart_writes_nothing(
    cluster: Cluster, namespace: str, proxy: ApiProxy, serve: Callable[..., OperatorProcess]
) -> None:
    def lists() -> int:
        return len(proxy.seen(verbs={"list"}, target="networkpolicies"))

    def rest() -> list[str]:
        """Return what was written while everything was listed several times."""
        proxy.forget()
        wait_until(lambda: lists() >= 4, seconds=60, what="several full lists")
        return own_writes(proxy)

    def is_training(found: Object) -> bool:
        return ("train", "Running") in stages(found)

    first = serve(via=proxy, RESYNC_SECONDS="1")
    with play(cluster, scripted({"train": None}), namespace=namespace):
        cluster.create(relocation(namespace))
        cluster.create(job(namespace))
        training = cluster.wait_for_object("FineTuningJob", "demo", namespace, where=is_training)
        assert rest() == []
        assert first.stop() == 0
        serve(via=proxy, RESYNC_SECONDS="1")
        assert rest() == []
        assert cluster.get("FineTuningJob", "demo", namespace) == training


def own_writes(proxy: ApiProxy) -> list[str]:
    """Every write but the renewals of the Lease."""
    return [f"{seen.asked.verb} {seen.asked.target}" for seen in proxy.writes() if seen.asked.resource != "leases"]
