"""The table of failures against Kubernetes' own words: those of its sources (1.35), of containerd, and of Kueue."""

import re

import pytest
from tests.support.batch import Object, batch_job, condition, ended_pod, pod, running_pod, terminated, waiting_pod

from finetuning_api.reasons import LIFE_CYCLE_REASONS, Reason
from finetuning_api.runconfig import LastWords
from finetuning_operator.cluster import errors
from finetuning_operator.cluster.facts import Told, read_job, read_pod
from finetuning_operator.cluster.failure_table import RULES, Fact, Source
from finetuning_operator.cluster.failures import (
    explain,
    explain_api_error,
    explain_ended_pod,
    explain_event,
    explain_job,
    explain_pod,
    explain_queue,
    explain_restart,
    read_last_words,
)
from finetuning_operator.cluster.texts import clean, log_tail

IMAGE = "registry.example/trainer:1"
NOT_FOUND = f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": {IMAGE}: not found'
DENIED = (
    "failed to authorize: failed to fetch anonymous token: unexpected status from GET request to "
    "https://registry.example/token: 401 Unauthorized"
)


def unschedulable(message: str, reason: str = "Unschedulable") -> Object:
    told = condition("PodScheduled", status="False", reason=reason, message=message)
    return pod(conditions=[told], claims=["rows", "model"])


def told_by(found: Object) -> LastWords:
    words = explain_pod(read_pod(found))
    assert words is not None
    return words


def left_by(found: Object) -> LastWords:
    return explain_ended_pod(read_pod(found))


def said(words: LastWords | None) -> tuple[Reason, str]:
    assert words is not None
    return words.reason, words.message


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("ErrImagePull", NOT_FOUND, f"the image {IMAGE} does not exist: {NOT_FOUND}"),
        (
            "ImagePullBackOff",
            f'Back-off pulling image "{IMAGE}": ErrImagePull: {DENIED}',
            f'the registry refuses the image {IMAGE}: Back-off pulling image "{IMAGE}": ErrImagePull: {DENIED}',
        ),
        (
            "ImagePullBackOff",
            f'Back-off pulling image "{IMAGE}"',
            f'the image {IMAGE} cannot be pulled: Back-off pulling image "{IMAGE}"',
        ),
        ("ErrImagePull", "", f"the image {IMAGE} cannot be pulled"),
        (
            "InvalidImageName",
            f'Failed to apply default image tag "{IMAGE}": couldn\'t parse image name',
            f"{IMAGE} is no valid name of an image",
        ),
        (
            "ErrImageNeverPull",
            f'Container image "{IMAGE}" is not present with pull policy of Never',
            f"the image {IMAGE} is not on the node, and the pull policy forbids to fetch it",
        ),
    ],
)
def test_an_image_that_does_not_come_is_named(reason: str, message: str, expected: str) -> None:
    assert said(told_by(waiting_pod(reason, message))) == (Reason.IMAGE_PULL_FAILED, expected)


def test_a_private_image_leads_to_pull_secrets() -> None:
    assert "pod.imagePullSecrets" in told_by(waiting_pod("ErrImagePull", DENIED)).hint


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('secret "hf-token" not found', "the secret hf-token does not exist"),
        ('configmap "rows" not found', "the configmap rows does not exist"),
        ("couldn't find key token in Secret team/hf-token", "the Secret hf-token has no key token"),
        ("couldn't find key a.b in ConfigMap team/rows", "the ConfigMap rows has no key a.b"),
        ("something new", "the container cannot be configured: something new"),
    ],
)
def test_missing_configuration_is_named(message: str, expected: str) -> None:
    assert said(told_by(waiting_pod("CreateContainerConfigError", message))) == (
        Reason.CONFIGURATION_MISSING,
        expected,
    )


def test_an_image_of_root_is_a_matter_of_pod_security() -> None:
    message = 'container has runAsNonRoot and image will run as root (pod: "demo_team(1)", container: main)'
    assert told_by(waiting_pod("CreateContainerConfigError", message)).reason is Reason.POD_SECURITY_VIOLATION


@pytest.mark.parametrize("reason", ["CreateContainerError", "RunContainerError", "StartError"])
def test_a_container_that_cannot_be_started_is_told_in_the_node_s_words(reason: str) -> None:
    message = 'exec: "python9": executable file not found in $PATH'
    assert said(told_by(waiting_pod(reason, message))) == (
        Reason.CONTAINER_START_FAILED,
        f"the container cannot be started ({reason}): {message}",
    )


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing", ""])
def test_a_container_that_is_being_made_is_no_failure(reason: str) -> None:
    assert explain_pod(read_pod(waiting_pod(reason))) is None


@pytest.mark.parametrize(
    ("message", "reason", "sentence", "hint"),
    [
        (
            "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint(s).",
            Reason.UNSCHEDULABLE,
            "no node has enough nvidia.com/gpu left: 0/3",
            "Wait until other pods give theirs back, add nodes that have nvidia.com/gpu, or ask for fewer",
        ),
        (
            "0/1 nodes are available: 1 Insufficient amd.com/gpu.",
            Reason.UNSCHEDULABLE,
            "no node has enough amd.com/gpu left: 0/1",
            "Wait until other pods give theirs back, add nodes that have amd.com/gpu",
        ),
        (
            "0/2 nodes are available: 2 Insufficient memory.",
            Reason.UNSCHEDULABLE,
            "no node has enough memory left: 0/2",
            "Ask for less in resources",
        ),
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: present}.",
            Reason.UNSCHEDULABLE,
            "the pod does not tolerate the taints of the nodes: 0/1",
            "Add what it may tolerate to pod.tolerations",
        ),
        (
            "0/4 nodes are available: 4 node(s) didn't match Pod's node affinity/selector.",
            Reason.UNSCHEDULABLE,
            "no node has the labels that the pod asks for: 0/4",
            "Correct pod.nodeSelector",
        ),
        (
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match PersistentVolume's node affinity.",
            Reason.UNSCHEDULABLE,
            "the nodes that can take the pod do not reach its volumes: 0/2",
            "A volume is tied to a node or a zone",
        ),
        (
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match pod affinity rules.",
            Reason.UNSCHEDULABLE,
            "the node that holds the pod's volumes has no room for it: 0/2",
            "Wait until it has, or use a StorageClass with ReadWriteMany",
        ),
        (
            "0/1 nodes are available: 1 node(s) were unschedulable.",
            Reason.UNSCHEDULABLE,
            "the nodes are closed for new pods (cordoned): 0/1",
            "Open one with kubectl uncordon",
        ),
        ("no nodes available to schedule pods", Reason.UNSCHEDULABLE, "the cluster has no node", "Add one"),
        (
            "0/1 nodes are available: 1 Too many pods.",
            Reason.UNSCHEDULABLE,
            "no node can take the pod: 0/1",
            "Ask for less",
        ),
        (
            'persistentvolumeclaim "rows" not found',
            Reason.VOLUME_UNAVAILABLE,
            "the claim rows does not exist or is being deleted",
            "A claim of a source pvc:// is yours to create",
        ),
        (
            'persistentvolumeclaim "rows" bound to non-existent persistentvolume "pv-1"',
            Reason.VOLUME_UNAVAILABLE,
            "the volume behind a claim is gone: persistentvolumeclaim",
            "Delete the claim",
        ),
        (
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
            Reason.VOLUME_UNAVAILABLE,
            "a claim of the pod has no volume yet (rows, model)",
            "Events of the claims say why",
        ),
        (
            "0/1 nodes are available: 1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod [...]",
            Reason.VOLUME_CONFLICT,
            "a claim of the pod is in use by another pod that has it alone: 0/1",
            "Wait until the other pod is done",
        ),
    ],
)
def test_a_pod_without_a_place_is_told_what_is_missing(message: str, reason: Reason, sentence: str, hint: str) -> None:
    words = told_by(unschedulable(message))
    assert words.reason is reason
    assert words.message.startswith(sentence)
    assert words.hint.startswith(hint)


def test_the_scheduler_s_thoughts_about_preemption_are_left_out() -> None:
    told = unschedulable(
        "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/2 nodes are"
        " available: 2 Preemption is not helpful for scheduling."
    )
    assert said(told_by(told))[1] == (
        "no node has enough nvidia.com/gpu left: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    )


def test_a_scheduling_gate_is_a_queue() -> None:
    gated = unschedulable("Scheduling is blocked due to non-empty scheduling gates", "SchedulingGated")
    assert told_by(gated).reason is Reason.QUEUED


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        (
            "Evicted",
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 52Mi. ",
            (Reason.EVICTED, "its node ended the pod because it ran short of memory: The node was low on resource"),
        ),
        (
            "Evicted",
            'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". ',
            (Reason.EVICTED, "its node ended the pod because it used more disk than it may: Usage of EmptyDir volume"),
        ),
        (
            "Evicted",
            "The node had condition: [DiskPressure]. ",
            (Reason.EVICTED, "its node ended the pod: The node had condition: [DiskPressure]."),
        ),
        (
            "Terminated",
            "Pod was terminated in response to imminent node shutdown.",
            (Reason.NODE_LOST, "its node was shut down"),
        ),
        (
            "NodeLost",
            "Node node-1 which was running pod demo is unresponsive",
            (Reason.NODE_LOST, "the node node-1 does not answer"),
        ),
        (
            "UnexpectedAdmissionError",
            "Allocate failed due to no healthy devices",
            (Reason.UNSCHEDULABLE, "the node node-1 refused the pod (UnexpectedAdmissionError): Allocate failed"),
        ),
        (
            "OutOfcpu",
            "Pod was rejected: Node didn't have enough resource: cpu",
            (Reason.UNSCHEDULABLE, "the node node-1 refused the pod (OutOfcpu): Pod was rejected"),
        ),
    ],
)
def test_what_a_node_does_to_a_pod_is_told(reason: str, message: str, expected: tuple[Reason, str]) -> None:
    found, sentence = said(left_by(pod(phase="Failed", reason=reason, message=message)))
    assert found is expected[0]
    assert sentence.startswith(expected[1])


@pytest.mark.parametrize(
    ("disruption", "message", "expected"),
    [
        ("PreemptionByScheduler", "", Reason.PREEMPTED),
        ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", Reason.NODE_LOST),
        ("DeletionByPodGC", "PodGC: node no longer exists", Reason.NODE_LOST),
        ("EvictionByEvictionAPI", "Eviction API: evicting", Reason.EVICTED),
        ("TerminationByKubelet", "The node was low on resource: ephemeral-storage.", Reason.EVICTED),
        ("TerminationByKubelet", "Pod was terminated in response to imminent node shutdown.", Reason.NODE_LOST),
        ("SomethingNew", "by an operator of nodes", Reason.EVICTED),
    ],
)
@pytest.mark.parametrize("exit_code", [137, 143])
def test_a_pod_that_was_taken_away_tells_by_what(
    disruption: str, message: str, expected: Reason, exit_code: int
) -> None:
    saved = LastWords(reason=Reason.INTERRUPTED, message="saved at step 5")
    taken = condition("DisruptionTarget", reason=disruption, message=message)
    found = ended_pod(exit_code=exit_code, words=saved if exit_code == 143 else "", conditions=[taken])
    assert left_by(found).reason is expected


def test_a_wrong_input_stays_one_though_the_pod_was_taken_away_as_well() -> None:
    words = LastWords(reason=Reason.DATASET_EMPTY, message="there is not one row")
    taken = condition("DisruptionTarget", reason="PreemptionByScheduler")
    assert left_by(ended_pod(exit_code=1, words=words, conditions=[taken])) == words


def test_a_program_that_gave_up_is_not_excused_by_what_happened_to_its_pod() -> None:
    taken = condition("DisruptionTarget", reason="PreemptionByScheduler")
    assert said(left_by(ended_pod(exit_code=1, conditions=[taken]))) == (
        Reason.INTERNAL,
        "the program ended with exit code 1 without a word",
    )


def test_the_main_container_speaks_for_the_pod() -> None:
    words = LastWords(reason=Reason.DISK_FULL, message="no space is left")
    both = ended_pod(exit_code=203, words=words)
    helper = {"name": "a-helper", "state": terminated(2, words="helper")}
    both["status"]["containerStatuses"].insert(0, helper)
    assert left_by(both) == words
    assert read_pod(both).container == "main"


@pytest.mark.parametrize(
    ("exit_code", "text", "expected"),
    [
        (1, "", (Reason.INTERNAL, "the program ended with exit code 1 without a word")),
        (203, "", (Reason.INTERNAL, "the program ended with exit code 203 without a word")),
        (2, "usage: train\n\n", (Reason.INTERNAL, "the program ended with exit code 2: usage: train")),
        (
            137,
            "",
            (
                Reason.CRASHED,
                "the container was killed (SIGKILL), and nothing says that its memory limit was reached",
            ),
        ),
        (139, "", (Reason.CRASHED, "the program was ended by SIGSEGV without a word")),
        (134, "Aborted", (Reason.CRASHED, "the program was ended by SIGABRT: Aborted")),
        (135, "", (Reason.CRASHED, "the program was ended by SIGBUS without a word")),
        (
            132,
            "",
            (Reason.CRASHED, "the program was ended by SIGILL: its processor does not know an instruction"),
        ),
        (143, "", (Reason.INTERRUPTED, "the program was stopped by SIGTERM before it could save")),
        (
            127,
            "sh: python9: not found",
            (
                Reason.CONTAINER_START_FAILED,
                "the command of the image cannot be run (exit code 127): sh: python9: not found",
            ),
        ),
        (190, "", (Reason.CRASHED, "the program was ended by signal 62 without a word")),
        (255, "", (Reason.INTERNAL, "the program ended with exit code 255 without a word")),
    ],
)
def test_a_program_without_last_words_is_explained_by_its_exit_code(
    exit_code: int, text: str, expected: tuple[Reason, str]
) -> None:
    assert said(left_by(ended_pod(exit_code=exit_code, words=text))) == expected


def test_memory_that_ran_out_names_the_limit() -> None:
    found = ended_pod(exit_code=137, reason="OOMKilled", limits={"memory": "4Gi"})
    assert said(left_by(found)) == (
        Reason.OUT_OF_MEMORY,
        "the container was killed because it used more memory than its limit of 4Gi",
    )


def test_words_that_were_left_before_memory_ran_out_do_not_hide_it() -> None:
    words = LastWords(reason=Reason.INTERNAL, message="?")
    assert left_by(ended_pod(exit_code=203, reason="OOMKilled", words=words)).reason is Reason.OUT_OF_MEMORY


def test_a_pod_that_failed_without_a_trace_was_lost() -> None:
    assert left_by(pod(phase="Failed")).reason is Reason.NODE_LOST
    assert left_by(pod(phase="Failed", state=terminated(0))).reason is Reason.NODE_LOST


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("DeadlineExceeded", "Job was active longer than specified deadline", Reason.DEADLINE_EXCEEDED),
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit", Reason.BACKOFF_LIMIT_EXCEEDED),
        ("FailedIndexes", "Job has failed indexes", Reason.BACKOFF_LIMIT_EXCEEDED),
        (
            "PodFailurePolicy",
            "Container main for pod team/a failed with exit code 1 matching FailJob rule at index 0",
            Reason.INTERNAL,
        ),
        ("SomethingNew", "said the controller", Reason.INTERNAL),
    ],
)
def test_a_failed_job_has_a_reason(reason: str, message: str, expected: Reason) -> None:
    told = explain_job(read_job(batch_job(condition("Failed", reason=reason, message=message))))
    assert said(told)[0] is expected


def test_a_job_that_did_not_fail_has_none() -> None:
    assert explain_job(read_job(batch_job(condition("Complete")))) is None


QUOTA = "exceeded quota: small, requested: pods=1,requests.cpu=2, used: pods=3,requests.cpu=7, limited: pods=3"
NO_ROOM = "the quota small has no room: asked for pods=1,requests.cpu=2, used pods=3,requests.cpu=7, limit pods=3"
ROOT = 'runAsNonRoot != true (pod or container "main" must set securityContext.runAsNonRoot=true)'
TOO_LARGE = "maximum memory usage per Container is 1Gi, but limit is 4Gi"
MAY_NOT = (
    'jobs.batch is forbidden: User "system:serviceaccount:operator" cannot create resource "jobs" in API group "batch"'
)
UNUSED = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor a, 1 more needed"
)
NEVER = "couldn't assign flavors to pod set main: insufficient quota for cpu in a, request > maximum capacity (10 > 9)"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            QUOTA,
            (
                Reason.QUOTA_EXCEEDED,
                NO_ROOM,
            ),
        ),
        (
            "failed quota: small: must specify limits.cpu for: main; limits.memory for: main",
            (
                Reason.QUOTA_EXCEEDED,
                "the quota small wants every pod to say limits.cpu for: main; limits.memory for: main",
            ),
        ),
        (
            f'violates PodSecurity "restricted:latest": {ROOT}',
            (
                Reason.POD_SECURITY_VIOLATION,
                f"the namespace enforces Pod Security restricted:latest, which the pod violates: {ROOT}",
            ),
        ),
        (
            "unable to create new content in namespace team because it is being terminated",
            (Reason.NAMESPACE_TERMINATING, "the namespace is being deleted"),
        ),
        (
            'error looking up service account team/trainer: serviceaccount "trainer" not found',
            (Reason.CONFIGURATION_MISSING, "the ServiceAccount trainer does not exist"),
        ),
        (
            "no PriorityClass with name urgent was found",
            (Reason.CONFIGURATION_MISSING, "the PriorityClass urgent does not exist"),
        ),
        (
            'pod rejected: RuntimeClass "nvidia" not found',
            (Reason.CONFIGURATION_MISSING, "the RuntimeClass nvidia does not exist"),
        ),
        (
            TOO_LARGE,
            (
                Reason.REJECTED,
                f'a LimitRange of the namespace refuses it: pods "demo-1" is forbidden: {TOO_LARGE}',
            ),
        ),
    ],
)
def test_a_refused_pod_is_explained_alike_by_the_job_s_event_and_by_the_api(
    message: str, expected: tuple[Reason, str]
) -> None:
    answer = f'pods "demo-1" is forbidden: {message}'
    refusal = errors.error_of(403, _status(answer), {})
    by_event, by_api = explain_event("FailedCreate", f"Error creating: {answer}"), explain_api_error(refusal)
    assert said(by_api) == expected
    assert by_event is not None
    assert by_event.message.replace("Error creating: ", "") == expected[1]
    assert by_event.model_copy(update={"message": ""}) == by_api.model_copy(update={"message": ""})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            errors.Forbidden(MAY_NOT),
            (Reason.FORBIDDEN, "the operator may not create jobs: jobs.batch is forbidden"),
        ),
        (
            errors.Invalid(
                'Job.batch "demo-train" is invalid: spec.template.spec.containers[0].resources.requests: Invalid value'
            ),
            (Reason.REJECTED, 'the API server does not accept it: Job.batch "demo-train" is invalid'),
        ),
        (
            errors.Invalid("strict decoding error"),
            (Reason.REJECTED, "the API server does not accept it: strict decoding error"),
        ),
        (
            errors.Forbidden('admission webhook "policy.example" denied the request: no latest tags'),
            (Reason.REJECTED, "the admission webhook policy.example refuses it: no latest tags"),
        ),
        (
            errors.ApiError('admission webhook "policy.example" denied the request: teapot', status=418),
            (Reason.REJECTED, "the admission webhook policy.example refuses it: teapot"),
        ),
        (errors.QuotaExceeded(f'pods "a" is forbidden: {QUOTA}'), (Reason.QUOTA_EXCEEDED, "the quota small")),
        (
            errors.QuotaExceeded("status unknown for quota: small"),
            (Reason.QUOTA_EXCEEDED, "a quota of the namespace has no room: status unknown"),
        ),
        (errors.NamespaceTerminating("x"), (Reason.NAMESPACE_TERMINATING, "the namespace is being deleted")),
        (errors.AlreadyExists('jobs.batch "a" already exists'), (Reason.NAME_CONFLICT, "something of this name")),
        (errors.NotServed("404 page not found"), (Reason.API_UNAVAILABLE, "this cluster does not serve")),
        (errors.Unauthorized("Unauthorized"), (Reason.FORBIDDEN, "the API server does not know the operator")),
        (errors.Throttled("too many requests"), (Reason.API_UNAVAILABLE, "the API server is busy")),
        (errors.Unavailable("timed out"), (Reason.API_UNAVAILABLE, "the API server did not answer: timed out")),
        (errors.Conflict("changed"), (Reason.API_UNAVAILABLE, "the API server answered: changed")),
        (errors.ApiError(""), (Reason.API_UNAVAILABLE, "the API server answered")),
    ],
)
def test_answers_of_the_api_server_are_explained(error: errors.ApiError, expected: tuple[Reason, str]) -> None:
    words = explain_api_error(error)
    assert words.reason is expected[0]
    assert words.message.startswith(expected[1])


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        (
            "FailedAttachVolume",
            'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) demo-train-x',
            (Reason.VOLUME_CONFLICT, "a volume is in use on another node: Multi-Attach error"),
        ),
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "rows" : configmap "rows" not found',
            (Reason.CONFIGURATION_MISSING, "the configmap rows does not exist"),
        ),
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "s" : references non-existent secret key: ca.crt',
            (Reason.CONFIGURATION_MISSING, "a mounted Secret or ConfigMap has no key ca.crt"),
        ),
        (
            "FailedMount",
            'MountVolume.MountDevice failed for volume "pvc-1" : rpc error: code = Internal',
            (Reason.VOLUME_UNAVAILABLE, "a volume cannot be attached or mounted: MountVolume.MountDevice"),
        ),
        (
            "FailedCreatePodSandBox",
            'Failed to create pod sandbox: no runtime for "nvidia" is configured',
            (Reason.CONTAINER_START_FAILED, "the node cannot set up the pod: Failed to create pod sandbox"),
        ),
        (
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
            (Reason.VOLUME_UNAVAILABLE, "the claim rows has no StorageClass, and the cluster has no default one"),
        ),
        (
            "ProvisioningFailed",
            'storageclass.storage.k8s.io "fast" not found',
            (Reason.VOLUME_UNAVAILABLE, "the claim rows names the StorageClass fast, which does not exist"),
        ),
        (
            "ProvisioningFailed",
            'failed to provision volume with StorageClass "fast": rpc error: code = ResourceExhausted',
            (Reason.VOLUME_UNAVAILABLE, "the claim rows cannot get a volume: failed to provision"),
        ),
        (
            "ExternalProvisioning",
            "Waiting for a volume to be created either by the external provisioner 'csi.example'",
            (Reason.VOLUME_UNAVAILABLE, "the claim rows waits for its provisioner"),
        ),
        ("Pulling", 'Pulling image "trainer:1"', (Reason.PENDING, "the node fetches the image")),
        (
            "FailedCreate",
            'Error creating: Post "https://10.0.0.1": dial tcp: connection refused',
            (Reason.API_UNAVAILABLE, "the Job cannot make its pods: Error creating"),
        ),
    ],
)
def test_events_are_explained(reason: str, message: str, expected: tuple[Reason, str]) -> None:
    found, sentence = said(explain_event(reason, message, about="rows"))
    assert found is expected[0]
    assert sentence.startswith(expected[1])


@pytest.mark.parametrize("reason", ["Scheduled", "Pulled", "WaitForFirstConsumer", "SuccessfulCreate", ""])
def test_ordinary_events_hinder_nothing(reason: str) -> None:
    assert explain_event(reason, "x") is None


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        (
            "Pending",
            UNUSED,
            (Reason.QUEUED, "waits in the queue gpus: couldn't assign flavors"),
        ),
        (
            "Pending",
            NEVER,
            (Reason.QUEUE_INADMISSIBLE, "the queue gpus can never admit this: couldn't assign flavors"),
        ),
        (
            "Pending",
            f"{NEVER}, insufficient unused quota for cpu in flavor b, 1 more needed",
            (Reason.QUEUED, "waits in the queue gpus: couldn't assign flavors"),
        ),
        (
            "Pending",
            "couldn't assign flavors to pod set main: resource memory unavailable in ClusterQueue",
            (Reason.QUEUE_INADMISSIBLE, "the queue gpus does not admit: couldn't assign flavors"),
        ),
        (
            "Pending",
            "Workload namespace doesn't match ClusterQueue selector",
            (Reason.QUEUE_INADMISSIBLE, "the queue gpus does not admit: Workload namespace doesn't match"),
        ),
        (
            "Inadmissible",
            "LocalQueue gpus doesn't exist",
            (Reason.QUEUE_INADMISSIBLE, "the queue gpus does not admit: LocalQueue gpus doesn't exist"),
        ),
    ],
)
def test_the_word_of_a_queue_is_passed_on(reason: str, message: str, expected: tuple[Reason, str]) -> None:
    found, sentence = said(explain_queue(Told(reason, message), queue="gpus"))
    assert found is expected[0]
    assert sentence.startswith(expected[1])


class TestLastWords:
    WHOLE = LastWords(reason=Reason.DISK_FULL, message="no space is left", hint="Free some.")

    def read(self, message: str) -> LastWords | None:
        return read_last_words(message, unknown=Reason.INTERNAL)

    def test_words_are_read(self) -> None:
        assert self.read(self.WHOLE.model_dump_json()) == self.WHOLE

    def test_words_that_were_cut_off_give_what_is_left(self) -> None:
        assert self.read('{"reason":"DiskFull","message":"no space is l') == LastWords(
            reason=Reason.DISK_FULL, message="no space is l"
        )

    def test_a_reason_of_another_release_keeps_its_message(self) -> None:
        assert self.read('{"reason":"Bewitched","message":"by the moon"}') == LastWords(
            reason=Reason.INTERNAL, message="by the moon"
        )

    def test_fields_of_wrong_types_are_left_out(self) -> None:
        assert self.read('{"reason":"DiskFull","message":7,"hint":["x"],"result":{"kind":"train"}}') == LastWords(
            reason=Reason.DISK_FULL
        )

    def test_fields_that_this_release_does_not_know_are_ignored(self) -> None:
        assert self.read('{"reason":"DiskFull","node":"a"}') == LastWords(reason=Reason.DISK_FULL)

    @pytest.mark.parametrize(
        "message",
        [
            f'{{"reason":"DiskFull","message":"{"x" * 20_000}"}}',
            "",
            "Traceback",
            "[1]",
            "7",
            "null",
            "{}",
            '{"reason":7}',
            "[" * 5000,
            '{"a":' * 3000,
            "\ud800",
            "\x00",
        ],
    )
    def test_what_is_no_last_words_is_none(self, message: str) -> None:
        assert self.read(message) is None

    def test_control_characters_are_removed(self) -> None:
        assert self.read('{"reason":"DiskFull","message":"\\u001b[31mred\\u0007\\n \\u202eline"}') == LastWords(
            reason=Reason.DISK_FULL, message="red line"
        )


def test_a_program_that_is_started_again_tells_why_it_ended() -> None:
    crashing = waiting_pod("CrashLoopBackOff", last_state=terminated(137, reason="OOMKilled"))
    assert said(explain_restart(read_pod(crashing)))[0] is Reason.OUT_OF_MEMORY
    assert said(explain_restart(read_pod(waiting_pod("CrashLoopBackOff", last_state=terminated(0))))) == (
        Reason.CRASHED,
        "the program ends by itself, and should go on",
    )
    assert explain_restart(read_pod(running_pod())) is None


def test_a_text_of_many_lines_becomes_one() -> None:
    assert clean("\x1b[1;31ma\x1b[0m\r\n\tb\x00\u200b c" + "d" * 5000, 20) == "a b cddddddddddd ..."


def test_a_log_tail_is_bounded_and_printable() -> None:
    log = "\n".join(f"line {number}" for number in range(100)) + "\n 10%\r 50%\r100%\x1b[K\r\n\n" + "x" * 9000
    tail = log_tail(log)
    assert tail[0] == "line 82"
    assert tail[-2:] == ("100%", "x" * 508 + " ...")
    assert len(tail) == 20
    assert log_tail("\x00\xff\ufffd" * 10_000_000 + "\n")
    assert log_tail("") == ()
    assert sum(len(line.encode()) for line in log_tail(("ü" * 600 + "\n") * 40)) <= 8192


class TestTable:
    def test_every_sentence_can_be_filled_in(self) -> None:
        known = {"reason", "message", "node", "image", "pod", "claims", "code", "signal", "said", "limit", "job"}
        known |= {"about", "queue"}
        for rule in RULES:
            groups = set(rule.pattern.groupindex) if rule.pattern else set()
            used = set(re.findall(r"{(\w+)}", rule.sentence + rule.hint))
            assert used <= known | groups, rule

    def test_no_rule_is_hidden_by_an_earlier_one_that_accepts_everything(self) -> None:
        open_sources: set[Source] = set()
        for rule in RULES:
            assert not rule.sources <= open_sources, rule
            if not rule.reasons and not rule.exit_codes and (rule.pattern is None or not rule.pattern.pattern):
                open_sources |= rule.sources

    def test_what_goes_on_by_itself_is_of_ordinary_life_and_all_else_is_not(self) -> None:
        ordinary = {rule.means for rule in RULES} & LIFE_CYCLE_REASONS
        assert ordinary == {Reason.QUEUED, Reason.PENDING}

    def test_sentences_begin_small_and_hints_end_with_a_full_stop(self) -> None:
        for rule in RULES:
            assert not rule.sentence.endswith("."), rule
            assert not rule.hint or rule.hint.endswith("."), rule

    def test_braces_in_messages_are_just_text(self) -> None:
        words = explain([Fact(Source.SCHEDULER, "Unschedulable", "{0} {claims} {message.__class__} {}")])
        assert said(words) == (
            Reason.UNSCHEDULABLE,
            "no node can take the pod: {0} {claims} {message.__class__} {}",
        )


def _status(message: str) -> str:
    return f'{{"kind":"Status","reason":"Forbidden","message":{_json(message)}}}'


def _json(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
