"""What hinders or ends a step, in the words of a real API server, Job controller, scheduler and volume controller.

Only what a kubelet would say is played. Objects are observed as the operator does: with its account, its client, and
the slim copies of its cache.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support import pods
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.operator_process import Identity

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords
from finetuning_operator.cluster.api import ClusterApi, TokenBucket, connect
from finetuning_operator.cluster.cache import slimmed
from finetuning_operator.cluster.diagnose import Diagnosis, diagnose
from finetuning_operator.cluster.errors import ApiError
from finetuning_operator.cluster.event_board import EventBoard
from finetuning_operator.cluster.failures import explain_api_error
from finetuning_operator.cluster.kinds import JOB, KindRef
from finetuning_operator.cluster.observe import observe_step
from finetuning_operator.reconcile.plan import StepPhase, StepState

NAME = "demo-train"
NO_DATA = LastWords(reason=Reason.DATASET_EMPTY, message="there is not one row", hint="Give it rows.")
FULL = LastWords(reason=Reason.DISK_FULL, message="no space is left")
DONE = pods.success_of("train")
LATER = timedelta(minutes=1)
"""Waiting is asked about after seconds; tests say that more time has passed instead of waiting."""
POLICY = {
    "rules": [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [143]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
}


@dataclass(frozen=True, slots=True)
class Sight:
    """One namespace as the operator sees it."""

    cluster: Cluster
    namespace: str
    kubeconfig: Path

    def state(self, diagnosis: Diagnosis | None = None) -> StepState | None:
        """Return where the step stands now."""
        job, found = self._objects()
        return observe_step(job, found, now=datetime.now(UTC), diagnosis=diagnosis)

    def diagnosis(self) -> Diagnosis | None:
        """Return what the operator finds out when it asks, as if some time had passed."""
        job, found = self._objects()
        now = datetime.now(UTC) + LATER

        async def ask(api: ClusterApi) -> Diagnosis | None:
            board = EventBoard(api, TokenBucket(rate=1000, burst=1000))
            board.ready(self.namespace)
            await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name().startswith("events of")))
            return await diagnose(api, board, job, found, now)

        diagnosis: Diagnosis | None = self.call(ask)
        return diagnosis

    def call(self, use: Callable[[ClusterApi], Any]) -> Any:  # noqa: ANN401  (whatever the call returns)
        """Use the API with the operator's account."""

        async def run() -> object:
            client = await connect(str(self.kubeconfig))
            api = ClusterApi(client, bucket=TokenBucket(rate=1000, burst=1000))
            try:
                return await use(api)
            finally:
                await api.close()

        return asyncio.run(run())

    def refusal(self, kind: KindRef, manifest: Object) -> LastWords:
        """Return how the operator explains that the API server does not take an object."""
        with pytest.raises(ApiError) as raised:
            self.call(lambda api: api.create(kind, self.namespace, manifest))
        return explain_api_error(raised.value)

    def wait_for_state(self, *, where: Callable[[StepState], bool], what: str) -> StepState:
        """Return the state of the step once it is as wanted."""

        def look() -> StepState | None:
            state = self.state()
            return state if state and where(state) else None

        return self.cluster.wait_for(look, what=what)

    def wait_for_hindrance(self, reason: Reason, *, message: str = "") -> LastWords:
        """Return what hinders the step, once it is for a reason; asks further as the operator does."""

        def look() -> LastWords | None:
            state = self.state(self.diagnosis())
            found = state.hindrance if state else None
            return found if found and found.reason is reason and message in {"", found.message} else None

        return self.cluster.wait_for(look, what=f"the step is hindered by {reason} {message}")

    def wait_for_end(self) -> StepState:
        """Return the state of the step once it has ended for good."""
        return self.wait_for_state(
            where=lambda state: state.phase in {StepPhase.SUCCEEDED, StepPhase.FAILED}, what="the step ends"
        )

    def running_pod(self, *, other_than: tuple[str, ...] = ()) -> Object:
        return pods.wait_for_pod(self.cluster, self.namespace, phase="Running", other_than=other_than)

    def _objects(self) -> tuple[Object, list[Object]]:
        found = self.cluster.objects("Pod", self.namespace)
        job = self.cluster.get("Job", NAME, self.namespace)
        return slimmed("Job", job), [slimmed("Pod", pod) for pod in found]


@pytest.fixture
def sight(cluster: Cluster, namespace: str, operator_identity: Identity, tmp_path: Path) -> Sight:
    """A namespace whose pods run until a test plays their end."""
    return Sight(cluster, namespace, operator_identity.write_kubeconfig(tmp_path / "kubeconfig"))


@pytest.fixture
def held(cluster: Cluster, hold_namespace: str, operator_identity: Identity, tmp_path: Path) -> Sight:
    """A namespace whose pods wait for a test to play everything."""
    return Sight(cluster, hold_namespace, operator_identity.write_kubeconfig(tmp_path / "kubeconfig"))


def job(
    namespace: str, *, pod: Object | None = None, labels: Object | None = None, retries: int = 3, **fields: object
) -> Object:
    """Return a Job like that of a step; ``pod`` changes the spec of its pod."""
    template = pods.restricted_spec() | (pod or {})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": NAME, "namespace": namespace, "labels": labels or {}},
        "spec": {
            "backoffLimit": retries,
            "podFailurePolicy": POLICY,
            "podReplacementPolicy": "Failed",
            "template": {"spec": template},
            **fields,
        },
    }


def words(content: LastWords) -> Object:
    return content.model_dump(mode="json", by_alias=True, exclude_none=True)


def claim(namespace: str, name: str, *, storage_class: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def mounting(name: str) -> Object:
    return {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]}


def quota(namespace: str, **hard: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small", "namespace": namespace},
        "spec": {"hard": {name.replace("_", "/"): value for name, value in hard.items()}},
    }


def asking_for(**limits: str) -> Object:
    named = {name.replace("__", "/").replace("_", "."): value for name, value in limits.items()}
    return {"containers": pods.restricted_spec(limits=named)["containers"]}


class TestBeforeAPodExists:
    def test_a_quota_without_room_is_told_until_there_is_room(self, sight: Sight) -> None:
        limit = sight.cluster.create(quota(sight.namespace, pods="0"))
        sight.cluster.wait_for_object(
            "ResourceQuota", "small", sight.namespace, where=lambda found: "hard" in found.get("status", {})
        )
        sight.cluster.create(job(sight.namespace))

        told = sight.wait_for_hindrance(Reason.QUOTA_EXCEEDED)

        assert told.message == "the quota small has no room: asked for pods=1, used pods=0, limit pods=0"
        sight.cluster.delete(limit)
        state = sight.wait_for_state(where=lambda found: found.phase is StepPhase.RUNNING, what="the step runs")
        assert state.hindrance is None

    def test_a_pod_that_pod_security_refuses_is_told(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, pod={"hostNetwork": True}))

        told = sight.wait_for_hindrance(Reason.POD_SECURITY_VIOLATION)

        assert told.message == (
            "the namespace enforces Pod Security restricted:latest, which the pod violates: host namespaces"
            " (hostNetwork=true)"
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"serviceAccountName": "trainer"}, "the ServiceAccount trainer does not exist"),
            ({"priorityClassName": "urgent"}, "the PriorityClass urgent does not exist"),
            ({"runtimeClassName": "nvidia"}, "the RuntimeClass nvidia does not exist"),
        ],
    )
    def test_what_a_pod_refers_to_and_is_not_there_is_named(self, sight: Sight, change: Object, message: str) -> None:
        sight.cluster.create(job(sight.namespace, pod=change))

        assert sight.wait_for_hindrance(Reason.CONFIGURATION_MISSING).message == message

    def test_a_limit_range_is_told(self, sight: Sight) -> None:
        bounds = {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]}
        metadata = {"name": "bounds", "namespace": sight.namespace}
        sight.cluster.create({"apiVersion": "v1", "kind": "LimitRange", "metadata": metadata, "spec": bounds})
        sight.cluster.create(job(sight.namespace, pod=asking_for(memory="4Gi")))

        told = sight.wait_for_hindrance(Reason.REJECTED)

        assert "maximum memory usage per Container is 1Gi, but limit is 4Gi" in told.message


class TestPlacing:
    """The scheduler's own words."""

    def test_accelerators_that_are_missing_are_named(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, pod=asking_for(nvidia_com__gpu="4000")))

        told = sight.wait_for_hindrance(Reason.UNSCHEDULABLE)

        assert told.message.startswith("no node has enough nvidia.com/gpu left: 0/")
        assert "add nodes that have nvidia.com/gpu" in told.hint

    def test_memory_that_is_missing_is_named(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, pod=asking_for(memory="900Ti")))

        assert sight.wait_for_hindrance(Reason.UNSCHEDULABLE).message.startswith("no node has enough memory left: 0/")

    def test_labels_that_no_node_has_lead_to_the_selector(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, pod={"nodeSelector": {"accelerator": "none-such"}}))

        assert sight.wait_for_hindrance(Reason.UNSCHEDULABLE).hint == "Correct pod.nodeSelector, or label a node."

    def test_a_claim_that_is_not_there_is_named(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, pod=mounting("rows")))

        told = sight.wait_for_hindrance(Reason.VOLUME_UNAVAILABLE)

        assert told.message == "the claim rows does not exist or is being deleted"


class TestVolumes:
    """The volume controller's own words, which only Events of the claim repeat."""

    def test_a_storage_class_that_does_not_exist_is_named(self, sight: Sight) -> None:
        sight.cluster.create(claim(sight.namespace, "rows", storage_class="fast"))
        sight.cluster.create(job(sight.namespace, pod=mounting("rows")))

        message = "the claim rows names the StorageClass fast, which does not exist"
        sight.wait_for_hindrance(Reason.VOLUME_UNAVAILABLE, message=message)

    def test_a_claim_without_any_storage_class_is_told(self, sight: Sight) -> None:
        sight.cluster.create(claim(sight.namespace, "rows", storage_class=""))
        sight.cluster.create(job(sight.namespace, pod=mounting("rows")))

        message = "the claim rows has no StorageClass, and the cluster has no default one"
        sight.wait_for_hindrance(Reason.VOLUME_UNAVAILABLE, message=message)


class TestStarting:
    """What a kubelet would say of a pod that has its node."""

    @pytest.mark.parametrize(
        ("reason", "message", "expected"),
        [
            ("ImagePullBackOff", 'Back-off pulling image "example/image:1"', Reason.IMAGE_PULL_FAILED),
            ("CreateContainerConfigError", 'secret "hf-token" not found', Reason.CONFIGURATION_MISSING),
            ("CreateContainerError", "no runtime for it", Reason.CONTAINER_START_FAILED),
        ],
    )
    def test_a_container_that_cannot_start_tells_why(
        self, held: Sight, reason: str, message: str, expected: Reason
    ) -> None:
        held.cluster.create(job(held.namespace))
        pod = pods.wait_for_pod(held.cluster, held.namespace)

        pods.wait_in(held.cluster, pod, reason=reason, message=message)

        state = held.state()
        assert state is not None
        assert (state.phase, state.attempts) == (StepPhase.PENDING, 0)
        assert state.hindrance is not None
        assert state.hindrance.reason is expected

    def test_events_of_the_pod_tell_what_its_status_does_not(self, held: Sight) -> None:
        held.cluster.create(job(held.namespace))
        pod = pods.wait_for_pod(held.cluster, held.namespace)
        pods.wait_in(held.cluster, pod, reason="ContainerCreating")
        message = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) other-train-x'
        pods.warn(held.cluster, pod, reason="FailedAttachVolume", message=message)

        told = held.wait_for_hindrance(Reason.VOLUME_CONFLICT)

        assert told.message == f"a volume is in use on another node: {message}"


class TestEnding:
    def test_a_program_that_says_what_is_wrong_ends_the_step_at_once(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace))
        pods.finish(sight.cluster, sight.running_pod(), exit_code=1, message=words(NO_DATA))

        state = sight.wait_for_end()

        assert (state.phase, state.attempts, state.last_words) == (StepPhase.FAILED, 1, NO_DATA)

    def test_a_step_that_failed_once_and_then_succeeded_is_no_failure(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace))
        first = sight.running_pod()
        pods.finish(sight.cluster, first, exit_code=203, message=words(FULL))
        between = sight.wait_for_state(where=lambda state: state.attempts == 1, what="the first attempt is counted")
        second = sight.running_pod(other_than=(first["metadata"]["name"],))
        again = sight.state()
        pods.finish(sight.cluster, second, message=DONE)

        state = sight.wait_for_end()

        assert (between.phase, between.last_words) == (StepPhase.PENDING, FULL)
        assert again is not None
        assert (again.phase, again.attempts) == (StepPhase.RUNNING, 2)
        assert (state.phase, state.attempts) == (StepPhase.SUCCEEDED, 2)
        assert state.last_words == DONE

    def test_memory_that_ran_out_is_told_with_its_limit(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, pod=asking_for(memory="1Gi"), retries=0))
        pods.run_out_of_memory(sight.cluster, sight.running_pod())

        state = sight.wait_for_end()

        assert state.phase is StepPhase.FAILED
        assert state.last_words is not None
        assert state.last_words.reason is Reason.OUT_OF_MEMORY
        assert state.last_words.message.endswith("its limit of 1Gi")

    def test_an_eviction_on_request_is_an_attempt_that_costs_none(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, retries=0))
        first = sight.running_pod()
        name = first["metadata"]["name"]
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        path = sight.cluster.path("Pod", name, namespace=sight.namespace, subresource="eviction")
        sight.cluster.request("POST", path, body=body, content_type="application/json")
        second = sight.running_pod(other_than=(name,))
        again = sight.state()
        pods.finish(sight.cluster, second, message=DONE)

        state = sight.wait_for_end()

        assert again is not None
        assert again.phase is StepPhase.RUNNING
        assert (state.phase, state.last_words) == (StepPhase.SUCCEEDED, DONE)

    @pytest.mark.parametrize(
        ("reason", "expected"),
        [
            ("PreemptionByScheduler", Reason.PREEMPTED),
            ("DeletionByTaintManager", Reason.NODE_LOST),
            ("EvictionByEvictionAPI", Reason.EVICTED),
        ],
    )
    def test_a_pod_that_was_taken_away_is_replaced_without_counting(
        self, sight: Sight, reason: str, expected: Reason
    ) -> None:
        sight.cluster.create(job(sight.namespace, retries=0))
        first = sight.running_pod()
        pods.evict(sight.cluster, first, reason=reason)
        sight.running_pod(other_than=(first["metadata"]["name"],))

        state = sight.state()

        assert state is not None
        assert (state.phase, state.attempts) == (StepPhase.RUNNING, 2)
        assert state.last_words is not None
        assert state.last_words.reason is expected
        assert sight.cluster.get("Job", NAME, sight.namespace)["status"].get("failed", 0) == 0

    def test_a_node_under_pressure_is_told(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace))
        pressure = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 52Mi."
        pods.evict_for_pressure(sight.cluster, sight.running_pod(), message=pressure)

        state = sight.wait_for_state(where=lambda found: found.last_words is not None, what="the eviction is seen")

        assert state.last_words is not None
        assert state.last_words.reason is Reason.EVICTED
        assert "ran short of memory" in state.last_words.message

    def test_a_deadline_is_told_as_such(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, activeDeadlineSeconds=1))

        state = sight.wait_for_end()

        assert state.phase is StepPhase.FAILED
        assert state.last_words is not None
        assert state.last_words.reason is Reason.DEADLINE_EXCEEDED

    def test_words_of_any_kind_end_as_bounded_text(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, retries=0))
        noise = "\x1b[31m\u202e" + "spam\x07 " * 100_000
        pods.finish(sight.cluster, sight.running_pod(), exit_code=203, message=noise)

        state = sight.wait_for_end()

        assert state.last_words is not None
        assert state.last_words.reason is Reason.INTERNAL
        assert state.last_words.message.isprintable()
        assert len(state.last_words.message) < 2000

    def test_a_log_that_cannot_be_read_does_no_harm(self, sight: Sight) -> None:
        """No node runs here that could answer with a log."""
        sight.cluster.create(job(sight.namespace, retries=0))
        pod = sight.running_pod()
        pods.finish(sight.cluster, pod, exit_code=203)
        sight.wait_for_end()

        assert sight.diagnosis() == Diagnosis(log_of=pod["metadata"]["uid"])

    def test_a_result_is_known_before_the_job_is_complete_and_lost_with_its_pod(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace))
        pod = sight.running_pod()
        pods.finish(sight.cluster, pod, message=DONE)
        early = sight.state()
        sight.cluster.wait_for_object(
            "Job", NAME, sight.namespace, where=lambda found: has_condition(found, "Complete")
        )
        late = sight.state()
        sight.cluster.delete(pod)
        sight.cluster.wait_gone("Pod", pod["metadata"]["name"], sight.namespace)

        assert early is not None
        assert early.phase is StepPhase.SUCCEEDED
        assert late == early
        assert sight.state() is None


class TestStopping:
    def test_a_job_that_is_deleted_is_being_stopped_until_its_pod_has_ended(self, held: Sight) -> None:
        created = held.cluster.create(job(held.namespace))
        pod = pods.run(held.cluster, pods.wait_for_pod(held.cluster, held.namespace))
        held.cluster.delete(created, propagation="Foreground")
        held.cluster.wait_for_object("Pod", pod["metadata"]["name"], held.namespace, where=is_deleted)

        state = held.state()
        stopped = LastWords(reason=Reason.INTERRUPTED, message="saved at step 5")
        pods.finish(held.cluster, pod, exit_code=143, message=words(stopped))
        held.cluster.wait_gone("Job", NAME, held.namespace)

        assert state is not None
        assert state.phase is StepPhase.PENDING
        assert state.hindrance is not None
        assert state.hindrance.reason is Reason.STOPPING


class TestWorkers:
    def test_the_worker_that_failed_first_is_to_blame(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, completionMode="Indexed", completions=2, parallelism=2, retries=0))
        one, two = workers(sight)
        together = sight.wait_for_state(where=lambda found: found.phase is StepPhase.RUNNING, what="both run")
        pods.finish(sight.cluster, two, exit_code=1, message=words(NO_DATA))

        state = sight.wait_for_end()

        assert together.attempts == 1
        assert one["metadata"]["name"] != two["metadata"]["name"]
        assert state.phase is StepPhase.FAILED
        assert state.last_words == NO_DATA.model_copy(update={"message": "worker 1: there is not one row"})

    def test_all_workers_end_before_the_step_has(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, completionMode="Indexed", completions=2, parallelism=2))
        one, two = workers(sight)
        pods.finish(sight.cluster, one, message=DONE)
        half = sight.state()
        pods.finish(sight.cluster, two)

        state = sight.wait_for_end()

        assert half is not None
        assert half.phase is StepPhase.RUNNING
        assert (state.phase, state.attempts) == (StepPhase.SUCCEEDED, 1)
        assert state.last_words == DONE


class TestQueue:
    """Kueue's part is played, as releases before 0.15 play it; test_kueue.py has a real one of today."""

    @pytest.fixture
    def workloads(self, cluster: Cluster) -> Iterator[None]:
        cluster.apply(WORKLOADS)
        cluster.wait_for_object(
            "CustomResourceDefinition",
            WORKLOADS["metadata"]["name"],
            where=lambda found: has_condition(found, "Established"),
        )
        yield
        cluster.delete(WORKLOADS)

    def test_a_queued_job_names_its_queue(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace, labels=QUEUED, suspend=True))

        told = sight.wait_for_hindrance(Reason.QUEUED)

        assert told == LastWords(reason=Reason.QUEUED, message="waits in the queue gpus")

    @pytest.mark.usefixtures("workloads")
    def test_a_queue_that_does_not_admit_says_why_until_it_does(self, sight: Sight) -> None:
        queued = sight.cluster.create(job(sight.namespace, labels=QUEUED, suspend=True))
        sight.cluster.wait_for(lambda: create_workload(sight.cluster, queued), what="the workload is taken")

        told = sight.wait_for_hindrance(Reason.QUEUE_INADMISSIBLE)
        sight.cluster.patch(queued, {"spec": {"suspend": False}})
        state = sight.wait_for_state(where=lambda found: found.phase is StepPhase.RUNNING, what="the step runs")

        assert told.message == "the queue gpus does not admit: LocalQueue gpus doesn't exist"
        assert state.hindrance is None


class TestAnswers:
    """Refusals that the operator itself meets."""

    def test_a_quota_on_jobs(self, sight: Sight) -> None:
        sight.cluster.create(quota(sight.namespace, **{"count_jobs.batch": "0"}))
        sight.cluster.wait_for_object(
            "ResourceQuota", "small", sight.namespace, where=lambda found: "hard" in found.get("status", {})
        )

        told = sight.refusal(JOB, job(sight.namespace))

        assert (told.reason, told.message) == (
            Reason.QUOTA_EXCEEDED,
            "the quota small has no room: asked for {0}=1, used {0}=0, limit {0}=0".format("count/jobs.batch"),
        )

    def test_an_object_that_is_written_wrong(self, sight: Sight) -> None:
        told = sight.refusal(JOB, job(sight.namespace, pod={"restartPolicy": "Always"}))

        assert told.reason is Reason.REJECTED
        assert "restartPolicy" in told.message

    def test_something_that_the_operator_may_not_do(self, sight: Sight) -> None:
        secrets = KindRef("", "v1", "secrets", "Secret")
        metadata = {"name": "token", "namespace": sight.namespace}

        told = sight.refusal(secrets, {"apiVersion": "v1", "kind": "Secret", "metadata": metadata})

        assert told.reason is Reason.FORBIDDEN
        assert told.message.startswith("the operator may not create secrets: ")

    def test_a_name_that_is_taken(self, sight: Sight) -> None:
        sight.cluster.create(job(sight.namespace))

        assert sight.refusal(JOB, job(sight.namespace)).reason is Reason.NAME_CONFLICT

    def test_a_namespace_on_its_way_out(self, held: Sight) -> None:
        held.cluster.create(job(held.namespace))
        pods.wait_for_pod(held.cluster, held.namespace)
        held.cluster.delete({"kind": "Namespace", "metadata": {"name": held.namespace}})
        held.cluster.wait_for_object(
            "Namespace", held.namespace, where=lambda found: found["status"]["phase"] == "Terminating"
        )
        other = job(held.namespace)
        other["metadata"]["name"] = "another"

        told = held.refusal(JOB, other)

        assert (told.reason, told.message) == (Reason.NAMESPACE_TERMINATING, "the namespace is being deleted")


QUEUED = {"kueue.x-k8s.io/queue-name": "gpus"}
WORKLOADS: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "workloads.kueue.x-k8s.io", "annotations": {"api-approved.kubernetes.io": "unapproved, test"}},
    "spec": {
        "group": "kueue.x-k8s.io",
        "names": {"plural": "workloads", "singular": "workload", "kind": "Workload", "listKind": "WorkloadList"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        ],
    },
}


def create_workload(cluster: Cluster, queued: Object) -> Object | None:
    """Write what Kueue writes for a Job into a queue that does not exist; None until the kind is served."""
    told = {
        "type": "QuotaReserved",
        "status": "False",
        "reason": "Inadmissible",
        "message": "LocalQueue gpus doesn't exist",
        "lastTransitionTime": "2026-03-01T12:00:00Z",
    }
    manifest = {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "Workload",
        "metadata": {
            "name": f"job-{NAME}",
            "namespace": queued["metadata"]["namespace"],
            "labels": {"kueue.x-k8s.io/job-uid": queued["metadata"]["uid"]},
        },
        "status": {"conditions": [told]},
    }
    done = cluster.kubectl("create", "-f", "-", stdin=json.dumps(manifest), check=False)
    return manifest if done.returncode == 0 else None


def workers(sight: Sight) -> tuple[Object, Object]:
    """Return the two running pods of an Indexed Job, in order."""

    def look() -> tuple[Object, Object] | None:
        found = [pod for pod in sight.cluster.objects("Pod", sight.namespace) if pod["status"]["phase"] == "Running"]
        one_two = sorted(found, key=lambda pod: str(pod["metadata"]["name"]))
        return (one_two[0], one_two[1]) if len(one_two) == 2 else None

    return sight.cluster.wait_for(look, what="two workers run")


def is_deleted(target: Object) -> bool:
    return "deletionTimestamp" in target["metadata"]
