"""Objects from their first moment to their end, on a real API server; only the programs in the pods are played."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest
from tests.support import pods
from tests.support.api_proxy import ApiProxy
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.lifecycle import (
    condition,
    has_ended,
    is_training,
    job,
    names,
    relocation,
    stage_message,
    stages,
    wait_for_end,
    wait_for_events,
)
from tests.support.nodes import HOSTNAME, tainted_node
from tests.support.operator_process import OperatorProcess
from tests.support.player import STEP_LABEL, End, play, scripted
from tests.support.processes import wait_until
from tests.support.whole_job import own_writes

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords

RunOperator = Callable[..., OperatorProcess]
Serve = Callable[..., OperatorProcess]


@pytest.fixture
def serve(run_operator: RunOperator, namespace: str) -> Serve:
    """``serve(via=proxy, NAME=value)`` starts an operator for the namespace of the test and waits until it is ready."""

    def start(via: ApiProxy | None = None, **options: str) -> OperatorProcess:
        env = {"FINETUNING_NAMESPACES": namespace, "FINETUNING_STATUS_DELAY": "0.2"}
        env |= {f"FINETUNING_{name}": value for name, value in options.items()}
        operator = run_operator(env=env, via=via)
        operator.wait_ready()
        return operator

    return start


@contextmanager
def training(cluster: Cluster, namespace: str) -> Iterator[Object]:
    """Bring a job as far as its training, which goes on, and play everything else while the block runs."""
    with play(cluster, scripted({"train": None}), namespace=namespace):
        made = cluster.create(job(namespace))
        wait_for_training(cluster, namespace)
        yield made


def wait_for_training(cluster: Cluster, namespace: str) -> Object:
    """Return the job once its training runs."""
    return cluster.wait_for_object("FineTuningJob", "demo", namespace, where=is_training)


def rest(proxy: ApiProxy) -> list[str]:
    """Return what was written while everything was listed several times; with RESYNC_SECONDS=1."""

    def lists() -> int:
        return len(proxy.seen(verbs={"list"}, target="networkpolicies"))

    proxy.forget()
    wait_until(lambda: lists() >= 4, seconds=60, what="several full lists")
    return [f"{seen.asked.verb} {seen.asked.target}: {seen.body!r}" for seen in own_writes(proxy)]


def wait_for_rest(proxy: ApiProxy) -> None:
    """Return once nothing is written: what was seen last may still be on its way; what swings never comes to rest."""
    wait_until(lambda: rest(proxy) == [], seconds=60, what="everything is told")


def test_a_relocation_is_measured_gets_its_claim_and_is_ready(cluster: Cluster, namespace: str, serve: Serve) -> None:
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


def test_a_job_goes_through_all_its_stages(cluster: Cluster, namespace: str, serve: Serve) -> None:
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
    wait_for_events(cluster, namespace, ("Normal", "Succeeded"))


def test_a_job_whose_stages_are_quick_costs_nine_writes(
    cluster: Cluster, namespace: str, proxy: ApiProxy, serve: Serve
) -> None:
    # Held for long, a change is written only where somebody waits for it.
    serve(via=proxy, STATUS_DELAY="600")
    with play(cluster, namespace=namespace):
        cluster.create(job(namespace, "first"))
        wait_for_end(cluster, namespace, "first")
        wait_for_events(cluster, namespace, ("Normal", "Succeeded"), name="first")
        proxy.forget()
        cluster.create(job(namespace))
        wait_for_end(cluster, namespace)
    wait_for_events(cluster, namespace, ("Normal", "Succeeded"))
    assert {event["reason"] for event in cluster.events(namespace, name="demo") if event["type"] == "Normal"} == {
        "Succeeded"
    }
    # Warnings are not counted: on a slow machine a volume or a node is waited for long enough to be told.
    counted = Counter(seen.asked.target for seen in own_writes(proxy) if seen.asked.target != "events")
    assert counted == {
        "persistentvolumeclaims": 1,
        "jobs": 3,
        "finetuningjobs/status": 2,
        "evaluationjobs": 1,
        "evaluationjobs/status": 1,
    }


def test_a_stage_runs_only_while_something_of_it_does(
    cluster: Cluster, hold_namespace: str, run_operator: RunOperator
) -> None:
    env = {"FINETUNING_NAMESPACES": hold_namespace, "FINETUNING_STATUS_DELAY": "0.2"}
    run_operator(env=env).wait_ready()

    def relocate(message: str) -> tuple[str, str, str | None]:
        found = cluster.wait_for_object(
            "FineTuningJob", "demo", hold_namespace, where=lambda found: stage_message(found, "relocate") == message
        )
        return stages(found)[0][1], found["status"]["phase"], found["status"].get("reason")

    cluster.create(job(hold_namespace))
    assert relocate("dataset pending, model pending") == ("Pending", "Relocating", "Pending")
    sources = {
        each["spec"]["source"]: each["metadata"]["name"] for each in cluster.objects("Relocation", hold_namespace)
    }
    selector = f"{STEP_LABEL}=measure,finetuning.dev/name={sources['hf://acme/tiny']}"
    measure = pods.run(cluster, pods.wait_for_pod(cluster, hold_namespace, labels=selector))
    assert relocate("dataset pending, model measuring") == ("Running", "Relocating", None)
    pods.succeed(cluster, measure)
    assert relocate("dataset pending, model pending") == ("Pending", "Relocating", "Pending")


def test_two_jobs_share_what_both_need(cluster: Cluster, namespace: str, serve: Serve) -> None:
    serve()
    with play(cluster, namespace=namespace) as player:
        for name in ("one", "two"):
            cluster.create(job(namespace, name))
        for name in ("one", "two"):
            assert has_condition(wait_for_end(cluster, namespace, name), "Complete")
    assert len(names(cluster, "Relocation", namespace)) == 2
    assert Counter(step for step, _ in player.played)["relocate"] == 2


def test_a_wrong_input_fails_the_job_with_the_words_of_the_program_and_one_event(
    cluster: Cluster, namespace: str, serve: Serve
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
    cluster: Cluster, namespace: str, proxy: ApiProxy, serve: Serve
) -> None:
    first = serve(via=proxy, RESYNC_SECONDS="1")
    cluster.create(relocation(namespace))
    with training(cluster, namespace):
        wait_for_rest(proxy)
        assert rest(proxy) == []
        before = cluster.get("FineTuningJob", "demo", namespace)
        assert first.stop() == 0
        serve(via=proxy, RESYNC_SECONDS="1")
        assert rest(proxy) == []
        assert cluster.get("FineTuningJob", "demo", namespace) == before


def test_a_job_made_while_no_operator_runs_is_taken_up_and_what_rests_is_not_written(
    cluster: Cluster, namespace: str, proxy: ApiProxy, serve: Serve
) -> None:
    first = serve(via=proxy, RESYNC_SECONDS="1")
    with play(cluster, namespace=namespace):
        cluster.create(job(namespace, "done"))
        wait_for_end(cluster, namespace, "done")
        wait_for_events(cluster, namespace, ("Normal", "Succeeded"), name="done")
        cluster.create(job(namespace, "halted", suspend=True))
        cluster.wait_for_object(
            "FineTuningJob", "halted", namespace, where=lambda found: has_condition(found, "Suspended")
        )
    with training(cluster, namespace):
        wait_for_rest(proxy)
        assert first.stop() == 0
        before = _own_objects(cluster, namespace)
        cluster.create(job(namespace, "late"))
        proxy.forget()

        serve(via=proxy)
        cluster.wait_for_object("FineTuningJob", "late", namespace, where=is_training)

    now = _own_objects(cluster, namespace)
    assert {key: found for key, found in now.items() if not key[1].startswith("late")} == before
    written = {seen.asked.name or json.loads(seen.body)["metadata"]["name"] for seen in own_writes(proxy)}
    assert "late-train" in written
    assert {name for name in written if not name.startswith("late")} == set()


def _own_objects(cluster: Cluster, namespace: str) -> dict[tuple[str, str], Object]:
    """Return everything of this API and the Jobs and claims that it made, as it is now."""
    kinds = ("FineTuningJob", "EvaluationJob", "Relocation", "Job", "PersistentVolumeClaim")
    return {(kind, found["metadata"]["name"]): found for kind in kinds for found in cluster.objects(kind, namespace)}


def test_suspending_stops_the_training_and_resuming_goes_on_to_the_end(
    cluster: Cluster, namespace: str, serve: Serve
) -> None:
    serve()
    with training(cluster, namespace) as made:
        first = cluster.get("Job", "demo-train", namespace)["metadata"]["uid"]
        cluster.patch(made, {"spec": {"suspend": True}})
        suspended = cluster.wait_for_object(
            "FineTuningJob", "demo", namespace, where=lambda found: has_condition(found, "Suspended")
        )
        cluster.wait_gone("Job", "demo-train", namespace)
        assert not has_ended(suspended)
    with play(cluster, namespace=namespace):
        cluster.patch(made, {"spec": {"suspend": False}})
        done = wait_for_end(cluster, namespace)
    assert has_condition(done, "Complete")
    assert has_condition(done, "Suspended", "False")
    assert cluster.get("Job", "demo-train", namespace)["metadata"]["uid"] != first


def test_deleting_a_job_takes_what_it_owns_and_leaves_what_is_shared(
    cluster: Cluster, namespace: str, serve: Serve
) -> None:
    serve()
    with training(cluster, namespace) as made:
        cluster.delete(made)
        for kind, name in (("Job", "demo-train"), ("Job", "demo-preflight"), ("PersistentVolumeClaim", "demo-adapter")):
            cluster.wait_gone(kind, name, namespace)
    assert len(names(cluster, "Relocation", namespace)) == 2


def test_a_name_that_is_deleted_and_made_again_at_once_starts_a_new_life(
    cluster: Cluster, namespace: str, serve: Serve
) -> None:
    serve()
    with training(cluster, namespace) as old:
        cluster.delete(old)
        cluster.wait_gone("FineTuningJob", "demo", namespace)
        new = cluster.create(job(namespace))
        again = wait_for_training(cluster, namespace)
    assert again["metadata"]["uid"] == new["metadata"]["uid"]
    for kind, name in (("Job", "demo-train"), ("PersistentVolumeClaim", "demo-adapter")):
        owners = cluster.get(kind, name, namespace)["metadata"]["ownerReferences"]
        assert [owner["uid"] for owner in owners] == [new["metadata"]["uid"]]


def test_a_child_that_somebody_deletes_is_made_again(cluster: Cluster, namespace: str, serve: Serve) -> None:
    serve()
    with training(cluster, namespace):
        deleted = cluster.get("Job", "demo-train", namespace)
        cluster.delete(deleted)
        cluster.wait_for_object(
            "Job", "demo-train", namespace, where=lambda found: found["metadata"]["uid"] != deleted["metadata"]["uid"]
        )


def test_a_finished_job_stays_finished_whatever_becomes_of_its_children(
    cluster: Cluster, namespace: str, proxy: ApiProxy, serve: Serve
) -> None:
    serve(via=proxy)
    with play(cluster, namespace=namespace) as player:
        cluster.create(job(namespace))
        done = wait_for_end(cluster, namespace)
        wait_for_events(cluster, namespace, ("Normal", "Succeeded"))
        played = len(player.played)
        proxy.forget()
        for kind in ("Job", "EvaluationJob", "Relocation"):
            for child in cluster.objects(kind, namespace):
                cluster.delete({"kind": kind, **child})
        wait_until(
            lambda: not any(names(cluster, kind, namespace) for kind in ("Job", "EvaluationJob", "Relocation")),
            seconds=60,
            what="no child is left",
        )
        other = cluster.create(job(namespace, "other", suspend=True))
        cluster.wait_for_object(
            "FineTuningJob", "other", namespace, where=lambda found: has_condition(found, "Suspended")
        )
        assert len(player.played) == played
    assert cluster.get("FineTuningJob", "demo", namespace) == done
    # A Relocation whose claim seems to go first is deleted once more, and was gone.
    done_to = {seen.asked.name for seen in own_writes(proxy) if seen.status != HTTPStatus.NOT_FOUND}
    assert done_to == {"other"}
    assert other["metadata"]["name"] == "other"


def test_a_job_of_somebody_else_with_the_name_of_a_step_is_told_and_waited_for(
    cluster: Cluster, namespace: str, serve: Serve
) -> None:
    template = {"spec": {**pods.restricted_spec(), "restartPolicy": "Never"}}
    foreign = cluster.create(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "model-measure", "namespace": namespace},
            "spec": {"suspend": True, "template": template},
        }
    )
    serve()
    with play(cluster, namespace=namespace):
        cluster.create(relocation(namespace))
        told = cluster.wait_for_object(
            "Relocation", "model", namespace, where=lambda found: "model-measure" in stage_message(found, "measure")
        )
        assert "Job model-measure exists and was not made by the operator" in stage_message(told, "measure")
        cluster.delete(foreign)
        cluster.wait_for_object("Relocation", "model", namespace, where=lambda found: has_condition(found, "Ready"))


def test_a_full_quota_is_told_and_the_step_starts_once_there_is_room(
    cluster: Cluster, namespace: str, serve: Serve
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small", "namespace": namespace},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    quota = cluster.create(quota)
    cluster.wait_for_object("ResourceQuota", "small", namespace, where=lambda found: "hard" in found.get("status", {}))
    serve()
    with play(cluster, namespace=namespace):
        cluster.create(relocation(namespace))
        told = cluster.wait_for_object(
            "Relocation", "model", namespace, where=lambda found: "quota" in stage_message(found, "measure")
        )
        assert condition(told, "Ready")["status"] == "False"
        cluster.patch(quota, {"spec": {"hard": {"count/jobs.batch": "5"}}})
        cluster.wait_for_object("Relocation", "model", namespace, where=lambda found: has_condition(found, "Ready"))


def test_a_served_job_has_an_address_and_its_server_follows_the_replicas(
    cluster: Cluster, namespace: str, serve: Serve
) -> None:
    serve()
    with play(cluster, namespace=namespace):
        made = cluster.create(job(namespace, serving={"replicas": 1}))
        done = wait_for_end(cluster, namespace)
        assert has_condition(done, "Serving")
        assert done["status"]["serving"]["url"].startswith(f"http://demo.{namespace}.svc")
        deployment = cluster.get("Deployment", "demo", namespace)
        assert deployment["metadata"]["generation"] == 1
        cluster.patch(made, {"spec": {"serving": {"replicas": 2}}})
        cluster.wait_for_object("Deployment", "demo", namespace, where=lambda found: found["spec"]["replicas"] == 2)
        cluster.delete(deployment)
        cluster.wait_for_object(
            "Deployment",
            "demo",
            namespace,
            where=lambda found: found["metadata"]["uid"] != deployment["metadata"]["uid"],
        )


def test_pods_run_where_the_tolerations_and_the_runtime_class_of_their_job_lead(
    cluster: Cluster, namespace: str, serve: Serve
) -> None:
    serve()
    taint = f"tests/{namespace}"
    with tainted_node(cluster, taint) as node, play(cluster, scripted({"preflight": None}), namespace=namespace):
        there, tolerates = {HOSTNAME: node}, [{"key": taint, "operator": "Exists"}]
        sandbox = cluster.create(
            {
                "apiVersion": "node.k8s.io/v1",
                "kind": "RuntimeClass",
                "metadata": {"name": namespace},
                "handler": "sandbox",
                "scheduling": {"nodeSelector": there, "tolerations": tolerates},
            }
        )
        wishes: dict[str, Object] = {
            "tolerant": {"nodeSelector": there, "tolerations": tolerates},
            "sandboxed": {"runtimeClassName": namespace},
            "kept-away": {"nodeSelector": there},
        }
        for name, wish in wishes.items():
            cluster.create(job(namespace, name, pod=wish))
        for name in ("tolerant", "sandboxed"):
            labels = f"finetuning.dev/step=preflight,finetuning.dev/name={name}"
            placed = pods.wait_for_pod(cluster, namespace, labels=labels, phase="Running")
            assert (name, placed["spec"]["nodeName"]) == (name, node)
        cluster.wait_for_object(
            "FineTuningJob",
            "kept-away",
            namespace,
            where=lambda found: "does not tolerate the taints" in stage_message(found, "preflight"),
        )
        cluster.delete(sandbox)


def test_a_trashed_adapter_outlives_its_job_for_a_while(cluster: Cluster, namespace: str, serve: Serve) -> None:
    serve(RESYNC_SECONDS="1", TRASH_TTL_SECONDS="3")
    with play(cluster, namespace=namespace):
        made = cluster.create(job(namespace, storage={"retention": "Trash"}))
        wait_for_end(cluster, namespace)
        cluster.delete(made)
        cluster.wait_gone("Job", "demo-train", namespace)
        cluster.wait_for_object(
            "PersistentVolumeClaim",
            "demo-adapter",
            namespace,
            where=lambda found: "finetuning.dev/trashed-at" in found["metadata"].get("annotations", {}),
        )
        cluster.wait_gone("PersistentVolumeClaim", "demo-adapter", namespace)


def test_what_protects_pods_is_put_back_when_somebody_removes_it(
    cluster: Cluster, namespace: str, serve: Serve
) -> None:
    serve()
    with play(cluster, namespace=namespace):
        cluster.create(relocation(namespace))
        cluster.wait_for_object("Relocation", "model", namespace, where=lambda found: has_condition(found, "Ready"))
        policy = cluster.get("NetworkPolicy", "finetuning-isolated", namespace)
        cluster.delete(policy)
        cluster.wait_for_object(
            "NetworkPolicy",
            "finetuning-isolated",
            namespace,
            where=lambda found: found["metadata"]["uid"] != policy["metadata"]["uid"],
        )
