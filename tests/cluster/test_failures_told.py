"""What a user reads where something goes wrong: in stages while it may pass, in a condition and an Event at the end."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import pods
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.kubelet import running_kubelet
from tests.support.lifecycle import condition, wait_for_events
from tests.support.operator_process import OperatorProcess
from tests.support.player import End, play, scripted, succeed

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords

RunOperator = Callable[..., OperatorProcess]
NAME = "demo"
NO_DATA = LastWords(reason=Reason.DATASET_EMPTY, message="there is not one row", hint="Give it rows.")


@pytest.fixture
def operator(run_operator: RunOperator, namespace: str) -> OperatorProcess:
    """An operator for a namespace whose pods run until their end is played."""
    return _started(run_operator, namespace)


@pytest.fixture
def holding_operator(run_operator: RunOperator, hold_namespace: str) -> OperatorProcess:
    """An operator for a namespace whose pods wait until everything is played."""
    return _started(run_operator, hold_namespace)


def _started(run_operator: RunOperator, namespace: str) -> OperatorProcess:
    operator = run_operator(env={"FINETUNING_NAMESPACES": namespace, "FINETUNING_STATUS_DELAY": "0.2"})
    operator.wait_ready()
    return operator


def job(namespace: str, **spec: object) -> Object:
    fields: Object = {
        "model": {"source": "hf://acme/tiny", "revision": "v1"},
        "dataset": {
            "source": "s3://bucket/rows.jsonl",
            "revision": "7",
            "prompt": "{message}",
            "completion": "{triage}",
        },
        "evaluation": {"metrics": ["exact-match"]},
        "backoffLimit": 0,
    }
    return {
        "apiVersion": "finetuning.dev/v1alpha1",
        "kind": "FineTuningJob",
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": fields | spec,
    }


def quota(namespace: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small", "namespace": namespace},
        "spec": {"hard": {"pods": "0"}},
    }


def wait_for_message(cluster: Cluster, namespace: str, text: str) -> Object:
    """Return the stage that is under way, once its message holds a text."""

    def look() -> Object | None:
        stages = cluster.get("FineTuningJob", NAME, namespace).get("status", {}).get("stages", [])
        return next((stage for stage in stages if text in stage.get("message", "")), None)

    return cluster.wait_for(look, what=f"a stage says {text!r}")


def wait_for_failure(cluster: Cluster, namespace: str) -> Object:
    """Return the condition with which a job failed."""
    failed = cluster.wait_for_object(
        "FineTuningJob", NAME, namespace, where=lambda found: has_condition(found, "Failed")
    )
    condition: Object = next(each for each in failed["status"]["conditions"] if each["type"] == "Failed")
    return condition


def complete(found: Object) -> bool:
    return has_condition(found, "Complete")


@pytest.mark.usefixtures("operator")
def test_a_quota_is_told_and_the_job_goes_on_when_there_is_room(cluster: Cluster, namespace: str) -> None:
    limit = cluster.create(quota(namespace))
    cluster.wait_for_object("ResourceQuota", "small", namespace, where=lambda found: "hard" in found.get("status", {}))
    cluster.create(job(namespace))

    wait_for_message(cluster, namespace, "the quota small has no room: asked for pods=1")
    waiting = cluster.objects("Relocation", namespace)
    cluster.delete(limit)
    with play(cluster, namespace=namespace):
        cluster.wait_for_object("FineTuningJob", NAME, namespace, where=complete)

    assert {stage["state"] for found in waiting for stage in found["status"]["stages"]} == {"Pending"}


@pytest.mark.usefixtures("operator")
def test_accelerators_that_no_node_has_are_told_in_the_stage(cluster: Cluster, namespace: str) -> None:
    cluster.create(job(namespace, resources={"limits": {"nvidia.com/gpu": 4000}}))

    with play(cluster, namespace=namespace):
        stage = wait_for_message(cluster, namespace, "no node has enough nvidia.com/gpu left")

    assert (stage["name"], stage["state"]) == ("train", "Pending")
    assert "add nodes that have nvidia.com/gpu" in stage["message"]


@pytest.mark.usefixtures("holding_operator")
def test_an_image_that_cannot_be_pulled_is_told_and_ends_at_the_deadline(cluster: Cluster, hold_namespace: str) -> None:
    cluster.create(job(hold_namespace, pendingDeadlineSeconds=10))
    pod = cluster.wait_for(lambda: next(iter(cluster.objects("Pod", hold_namespace)), None), what="a pod is there")
    pods.image_pull_error(cluster, pod)

    wait_for_message(cluster, hold_namespace, "does not exist: Back-off pulling image")
    failure = wait_for_failure(cluster, hold_namespace)

    assert failure["reason"] == "DeadlineExceeded"


@pytest.mark.usefixtures("holding_operator")
def test_a_volume_that_hangs_on_another_node_is_told_in_condition_and_event_until_it_is_free(
    cluster: Cluster, hold_namespace: str
) -> None:
    cluster.create(job(hold_namespace))
    for pod in pods.wait_for_pods(cluster, hold_namespace, count=2, labels="finetuning.dev/step=measure"):
        pods.succeed(cluster, pods.run(cluster, pod))
    waiting = pods.wait_for_pods(cluster, hold_namespace, count=2, labels="finetuning.dev/step=relocate")
    message = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) other-train-x'
    for pod in waiting:
        pods.wait_in(cluster, pod, reason="ContainerCreating")
        pods.warn(cluster, pod, reason="FailedAttachVolume", message=message)

    told = cluster.wait_for_object(
        "FineTuningJob",
        NAME,
        hold_namespace,
        where=lambda found: condition(found, "Relocated").get("reason") == "VolumeConflict",
    )
    relocated = condition(told, "Relocated")
    assert relocated["status"] == "False"
    assert f"a volume is in use on another node: {message}" in relocated["message"]
    assert (told["status"]["phase"], told["status"]["reason"]) == ("Relocating", "VolumeConflict")
    wait_for_events(cluster, hold_namespace, ("Warning", "VolumeConflict"))

    for pod in waiting:
        pods.succeed(cluster, pods.run(cluster, pod))
    cluster.wait_for_object(
        "FineTuningJob", NAME, hold_namespace, where=lambda found: has_condition(found, "Relocated")
    )


def test_a_corrected_image_of_the_installation_reaches_what_waits_for_the_wrong_one(
    cluster: Cluster, hold_namespace: str, holding_operator: OperatorProcess, run_operator: RunOperator
) -> None:
    cluster.create(job(hold_namespace))
    first, other = pods.wait_for_pods(cluster, hold_namespace, count=2)
    pods.image_pull_error(cluster, first)
    wait_for_message(cluster, hold_namespace, "does not exist: Back-off pulling image")

    holding_operator.stop()
    corrected = run_operator(
        env={"FINETUNING_NAMESPACES": hold_namespace, "FINETUNING_IMAGE_RELOCATOR": "example/right:2"}
    )
    corrected.wait_ready()

    def look() -> Object | None:
        found = cluster.objects("Pod", hold_namespace)
        return next((pod for pod in found if pod["spec"]["containers"][0]["image"] == "example/right:2"), None)

    second = cluster.wait_for(look, what="a pod has the corrected image")
    label = "batch.kubernetes.io/job-name"
    assert second["metadata"]["labels"][label] == first["metadata"]["labels"][label]
    assert cluster.refresh(other)["metadata"]["uid"] == other["metadata"]["uid"]


@pytest.mark.usefixtures("operator")
def test_memory_that_ran_out_fails_the_job_with_its_reason_and_one_event(cluster: Cluster, namespace: str) -> None:
    cluster.create(job(namespace, resources={"limits": {"memory": "1Gi"}}))
    with play(cluster, scripted({"train": None}), namespace=namespace):
        labels = "finetuning.dev/step=train"
        pod = pods.wait_for_pod(cluster, namespace, labels=labels, phase="Running")
        pods.run_out_of_memory(cluster, pod)

        failure = wait_for_failure(cluster, namespace)

    assert failure["reason"] == "OutOfMemory"
    assert "train: the container was killed because it used more memory than its limit of 1Gi" in failure["message"]
    told = [each for each in cluster.events(namespace, name=NAME) if each["reason"] == "OutOfMemory"]
    assert [(each["type"], each.get("count", 1)) for each in told] == [("Warning", 1)]


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    "noise",
    ["\x1b[31m\u202e" + "spam\x07 " * 50_000, '{"reason": "DiskFu', "[" * 4000, '{"reason": 7, "message": {"a": []}}'],
    ids=["binary", "cut-off", "deep", "wrong-types"],
)
def test_whatever_a_pod_leaves_behind_the_job_fails_with_readable_words(
    cluster: Cluster, namespace: str, noise: str
) -> None:
    cluster.create(job(namespace))
    with play(cluster, scripted({"preflight": End(exit_code=203, words=noise)}), namespace=namespace):
        failure = wait_for_failure(cluster, namespace)

    assert failure["reason"] == "Internal"
    assert failure["message"].startswith("preflight: the program ended with exit code 203")
    assert failure["message"].replace("\n", " ").isprintable()
    assert len(failure["message"]) < 4096


@pytest.mark.usefixtures("operator")
def test_a_job_that_fails_once_and_then_succeeds_is_complete_with_two_attempts(
    cluster: Cluster, namespace: str
) -> None:
    seen: list[str] = []

    def once(step: str, pod: Object) -> End | None:
        name = str(pod["metadata"]["name"])
        if step == "train" and not seen:
            seen.append(name)
        words = LastWords(reason=Reason.DISK_FULL, message="no space is left")
        return End(exit_code=203, words=words) if name in seen else scripted({})(step, pod)

    cluster.create(job(namespace, backoffLimit=1))
    with play(cluster, once, namespace=namespace):
        stage = wait_for_message(cluster, namespace, "no space is left")
        done = cluster.wait_for_object("FineTuningJob", NAME, namespace, where=complete)

    assert (stage["name"], stage["state"]) == ("train", "Pending")
    train = next(each for each in done["status"]["stages"] if each["name"] == "train")
    assert (train["state"], train["attempts"]) == ("Succeeded", 2)
    assert not has_condition(done, "Failed")


@pytest.mark.usefixtures("operator")
def test_the_last_lines_of_its_log_stay_with_a_failed_job_whose_pods_are_gone(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    with running_kubelet(cluster, tmp_path) as kubelet:

        def logs_and_ends(step: str, pod: Object) -> End | None:
            if step != "preflight":
                return succeed(step, pod)
            reads = [f"\x1b[32mread {number} rows\x1b[0m" for number in range(100)]
            kubelet.logs[pod["metadata"]["name"]] = [*reads, "", "Segmentation fault (core dumped)"]
            return End(exit_code=139)

        cluster.create(job(namespace, pod=kubelet.placement))
        with play(cluster, logs_and_ends, namespace=namespace):
            failure = wait_for_failure(cluster, namespace)

    message, *log = failure["message"].splitlines()
    assert message.startswith("preflight: ")
    assert log == [
        "last log lines:",
        *(f"read {number} rows" for number in range(82, 100)),
        "Segmentation fault (core dumped)",
    ]
    told = next(each for each in cluster.events(namespace, name=NAME) if each["reason"] == failure["reason"])
    assert "Segmentation fault" not in told["message"]
    for pod in cluster.objects("Pod", namespace):
        cluster.delete(pod)
    cluster.wait_for(lambda: not cluster.objects("Pod", namespace), what="no pod is left")
    assert wait_for_failure(cluster, namespace) == failure
