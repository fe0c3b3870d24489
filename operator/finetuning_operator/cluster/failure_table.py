"""What Kubernetes' own words mean to a user: one table from facts to a reason, a sentence and a hint.

A fact is what one part of Kubernetes tells. The first rule of the table that explains it gives the reason, and its
sentence and hint are filled with the fact's own details. Adding a failure is adding a rule.
"""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords
from finetuning_operator.cluster.texts import clean
from finetuning_operator.reconcile.conditions import shorten

SIGNAL_BASE = 128
"""The exit code of a program that a signal ended is this and the signal's number."""

_SEARCHED = 2048
"""Characters of a message that patterns are looked for in."""


class Source(StrEnum):
    """Which part of Kubernetes tells a fact."""

    POD = "the pod's status"
    DISRUPTION = "the pod's DisruptionTarget condition"
    WAITING = "a container that does not run yet"
    ENDED = "a container that ended"
    SCHEDULER = "the pod's PodScheduled condition"
    JOB = "the Job's conditions"
    EVENT = "an Event"
    API = "an answer of the API server"
    QUEUE = "a Workload of Kueue"


@dataclass(frozen=True, slots=True)
class Fact:
    """What one part of Kubernetes tells."""

    source: Source
    reason: str
    message: str = ""
    exit_code: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    """What else a sentence may name, such as image or node."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a fact means. Empty criteria accept everything; sentence and hint may name details and groups."""

    sources: frozenset[Source]
    means: Reason
    sentence: str
    hint: str = ""
    reasons: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None
    """Searched in the message; its named groups fill the sentence."""
    exit_codes: frozenset[int] = frozenset()

    def explain(self, fact: Fact) -> LastWords | None:
        """Return the fact in words, None when it is not of this rule."""
        if fact.source not in self.sources or (self.reasons and fact.reason not in self.reasons):
            return None
        if self.exit_codes and fact.exit_code not in self.exit_codes:
            return None
        found = self.pattern.search(fact.message[:_SEARCHED]) if self.pattern else None
        if self.pattern and found is None:
            return None
        groups = {name: clean(text or "") for name, text in found.groupdict().items()} if found else {}
        values = _Details({"reason": clean(fact.reason), "message": clean(fact.message), **fact.details, **groups})
        return LastWords(
            reason=self.means,
            message=shorten(self.sentence.format_map(values).rstrip(": ")),
            hint=self.hint.format_map(values),
        )


class _Details(dict[str, str]):
    """Details of a fact; one that is not known is empty."""

    def __missing__(self, key: str) -> str:
        return ""


def _of(*sources: Source) -> frozenset[Source]:
    return frozenset(sources)


def _any(*reasons: str) -> frozenset[str]:
    return frozenset(reasons)


def _like(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


_IMAGE = _any(
    "ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed", "ImageInspectError"
)
_RESUMES = "It starts again by itself and goes on from what was saved; this does not count as a failure."
_CREATE = "Create it in the namespace of the object; the pod starts by itself then."
_PLACE_HINT = "Ask for less in resources, or wait until others finish."

_POD_RULES = (
    Rule(
        _of(Source.POD, Source.DISRUPTION),
        Reason.EVICTED,
        "its node ended the pod because it used more disk than it may: {message}",
        "Set ephemeral-storage in resources to what the stage needs, or write less.",
        _any("Evicted", "TerminationByKubelet"),
        _like(r"exceeded its local ephemeral|ephemeral local storage usage|usage of emptydir"),
    ),
    Rule(
        _of(Source.POD, Source.DISRUPTION),
        Reason.EVICTED,
        "its node ended the pod because it ran short of {what}: {message}",
        "Set requests in resources to what the stage uses. " + _RESUMES,
        _any("Evicted", "TerminationByKubelet"),
        _like(r"low on resource: (?P<what>[\w.-]*\w)"),
    ),
    Rule(
        _of(Source.POD, Source.DISRUPTION),
        Reason.NODE_LOST,
        "its node was shut down",
        _RESUMES,
        _any("Terminated", "NodeShutdown", "Shutdown", "TerminationByKubelet"),
        _like(r"shutdown|shutting down"),
    ),
    Rule(_of(Source.POD), Reason.EVICTED, "its node ended the pod: {message}", _RESUMES, _any("Evicted", "Preempting")),
    Rule(
        _of(Source.POD),
        Reason.UNSCHEDULABLE,
        "the node {node} refused the pod ({reason}): {message}",
        "It had less left than the scheduler thought. The pod is made again.",
        _any(
            "UnexpectedAdmissionError",
            "NodeAffinity",
            "OutOfcpu",
            "OutOfmemory",
            "OutOfephemeral-storage",
            "OutOfpods",
            "AdmissionRejected",
        ),
    ),
    Rule(
        _of(Source.POD),
        Reason.NODE_LOST,
        "the node {node} does not answer",
        "When the cluster has given the node up, the stage starts on another one and goes on from what was saved.",
        _any("NodeLost", "NodeUnreachable"),
    ),
    Rule(_of(Source.POD), Reason.DEADLINE_EXCEEDED, "the pod was active too long", reasons=_any("DeadlineExceeded")),
    Rule(
        _of(Source.DISRUPTION),
        Reason.PREEMPTED,
        "the pod made room for one of higher priority",
        "A higher priorityClassName protects it. " + _RESUMES,
        _any("PreemptionByScheduler"),
    ),
    Rule(
        _of(Source.DISRUPTION),
        Reason.NODE_LOST,
        "the pod was removed from the node {node}, which was tainted or does not answer",
        _RESUMES,
        _any("DeletionByTaintManager", "DeletionByDeviceTaintManager"),
    ),
    Rule(
        _of(Source.DISRUPTION),
        Reason.NODE_LOST,
        "the pod's node {node} is gone",
        _RESUMES,
        _any("DeletionByPodGC"),
    ),
    Rule(
        _of(Source.DISRUPTION),
        Reason.EVICTED,
        "the pod was evicted on request, as a drain of its node does",
        _RESUMES,
        _any("EvictionByEvictionAPI"),
    ),
    Rule(_of(Source.DISRUPTION), Reason.EVICTED, "the pod was taken away ({reason}): {message}", _RESUMES),
)

_WAITING_RULES = (
    Rule(
        _of(Source.WAITING),
        Reason.IMAGE_PULL_FAILED,
        "{image} is no valid name of an image",
        "Correct the name of the image.",
        _any("InvalidImageName"),
    ),
    Rule(
        _of(Source.WAITING),
        Reason.IMAGE_PULL_FAILED,
        "the image {image} is not on the node, and the pull policy forbids to fetch it",
        "Load it onto the node, or set the pull policy IfNotPresent.",
        _any("ErrImageNeverPull"),
    ),
    Rule(
        _of(Source.WAITING),
        Reason.IMAGE_PULL_FAILED,
        "the registry refuses the image {image}: {message}",
        "Name a Secret with the registry's credentials in pod.imagePullSecrets. Some registries answer the same for"
        " images that do not exist.",
        _IMAGE,
        _like(r"unauthorized|authorization failed|access denied|access to the resource is denied|forbidden|40[13]\b"),
    ),
    Rule(
        _of(Source.WAITING),
        Reason.IMAGE_PULL_FAILED,
        "the image {image} does not exist: {message}",
        "Check its name and tag.",
        _IMAGE,
        _like(r"not found|manifest unknown|does not exist|notfound"),
    ),
    Rule(
        _of(Source.WAITING),
        Reason.IMAGE_PULL_FAILED,
        "the image {image} cannot be pulled: {message}",
        "Check its name, and that the nodes reach the registry; credentials go into pod.imagePullSecrets.",
        _IMAGE,
    ),
    Rule(
        _of(Source.WAITING),
        Reason.CONFIGURATION_MISSING,
        "the {kind} {name} does not exist",
        _CREATE,
        _any("CreateContainerConfigError"),
        _like(r'(?P<kind>secret|configmap) "(?P<name>[^"]+)" not found'),
    ),
    Rule(
        _of(Source.WAITING),
        Reason.CONFIGURATION_MISSING,
        "the {kind} {name} has no key {key}",
        "Add the key; the pod starts by itself then.",
        _any("CreateContainerConfigError"),
        _like(r"find key (?P<key>\S+) in (?P<kind>secret|configmap) (?:\S*/)?(?P<name>\S+)"),
    ),
    Rule(
        _of(Source.WAITING),
        Reason.POD_SECURITY_VIOLATION,
        "the image {image} would run as root, and the pod forbids it: {message}",
        "Use an image that names a user by number which is not 0.",
        _any("CreateContainerConfigError"),
        _like(r"runAsNonRoot"),
    ),
    Rule(
        _of(Source.WAITING),
        Reason.CONFIGURATION_MISSING,
        "the container cannot be configured: {message}",
        reasons=_any("CreateContainerConfigError"),
    ),
    Rule(
        _of(Source.WAITING),
        Reason.CONTAINER_START_FAILED,
        "the container cannot be started ({reason}): {message}",
        "Check the RuntimeClass, the GPU runtime of the node {node}, and the command of the image {image}.",
        _any(
            "CreateContainerError",
            "RunContainerError",
            "StartError",
            "PreCreateHookError",
            "PreStartHookError",
            "PostStartHookError",
            "CreatePodSandboxError",
            "ConfigPodSandboxError",
        ),
    ),
    Rule(
        _of(Source.WAITING),
        Reason.CRASHED,
        "the program ends again and again: {message}",
        "Its log has the details.",
        _any("CrashLoopBackOff"),
    ),
)

_ENDED_RULES = (
    Rule(
        _of(Source.ENDED),
        Reason.OUT_OF_MEMORY,
        "the container was killed because it used more memory than its limit{limit}",
        "Raise the memory in resources, or lower training.batchSize, training.microBatchSize or training.maxLength.",
        _any("OOMKilled"),
    ),
    Rule(
        _of(Source.ENDED),
        Reason.CONTAINER_START_FAILED,
        "the container cannot be started ({reason}): {message}",
        "Check the RuntimeClass, the GPU runtime of the node, and the command of the image.",
        _any("ContainerCannotRun", "StartError"),
    ),
    Rule(
        _of(Source.ENDED),
        Reason.NODE_LOST,
        "the node lost track of the container, for example in a restart",
        "It starts again and goes on from what was saved.",
        _any("ContainerStatusUnknown"),
    ),
    Rule(
        _of(Source.ENDED),
        Reason.CONTAINER_START_FAILED,
        "the command of the image cannot be run (exit code {code}){said}",
        "Check that the image is the right one for its role and for the node's processor.",
        exit_codes=frozenset({126, 127}),
    ),
    Rule(
        _of(Source.ENDED),
        Reason.CRASHED,
        "the container was killed (SIGKILL), and nothing says that its memory limit was reached",
        "Either its node ran out of memory, or it did not stop in time when it was asked to.",
        exit_codes=frozenset({SIGNAL_BASE + signal.SIGKILL}),
    ),
    Rule(
        _of(Source.ENDED),
        Reason.CRASHED,
        "the program was ended by SIGBUS{said}",
        "Most often /dev/shm is full: raise pod.sharedMemorySize.",
        exit_codes=frozenset({SIGNAL_BASE + signal.SIGBUS}),
    ),
    Rule(
        _of(Source.ENDED),
        Reason.CRASHED,
        "the program was ended by {signal}: its processor does not know an instruction",
        "The image is made for another or a newer processor than the node has.",
        exit_codes=frozenset({SIGNAL_BASE + signal.SIGILL}),
    ),
    Rule(
        _of(Source.ENDED),
        Reason.INTERRUPTED,
        "the program was stopped by {signal} before it could save",
        "It starts again and goes on from its last checkpoint.",
        exit_codes=frozenset({SIGNAL_BASE + signal.SIGTERM, SIGNAL_BASE + signal.SIGINT}),
    ),
    Rule(
        _of(Source.ENDED),
        Reason.CRASHED,
        "the program was ended by {signal}{said}",
        "Native code failed: check that driver, GPU and image fit together; the log has the details.",
        exit_codes=frozenset(range(SIGNAL_BASE + 1, SIGNAL_BASE + 65)),
    ),
    Rule(
        _of(Source.ENDED),
        Reason.INTERNAL,
        "the program ended with exit code {code}{said}",
        "The log of this stage has the details.",
        exit_codes=frozenset(range(-256, 0)) | frozenset(range(1, 256)),
    ),
)

_SCHEDULER_RULES = tuple(
    Rule(_of(Source.SCHEDULER), means, sentence, hint, pattern=_like(pattern) if pattern else None)
    for pattern, means, sentence, hint in (
        (
            r'persistentvolumeclaim "(?P<claim>[^"]+)" (?:not found|is being deleted)',
            Reason.VOLUME_UNAVAILABLE,
            "the claim {claim} does not exist or is being deleted",
            "A claim of a source pvc:// is yours to create; others are made again by themselves.",
        ),
        (
            r'persistentvolumeclaim "(?P<claim>[^"]+)" bound to non-existent|non-existent pv',
            Reason.VOLUME_UNAVAILABLE,
            "the volume behind a claim is gone: {message}",
            "Delete the claim to have its content fetched again.",
        ),
        (
            r"unbound immediate PersistentVolumeClaims",
            Reason.VOLUME_UNAVAILABLE,
            "a claim of the pod has no volume yet ({claims})",
            "Events of the claims say why: kubectl describe pvc. storage.profile chooses another StorageClass.",
        ),
        (
            r"ReadWriteOncePod",
            Reason.VOLUME_CONFLICT,
            "a claim of the pod is in use by another pod that has it alone: {message}",
            "Wait until the other pod is done, or use the access mode ReadWriteOnce or ReadWriteMany.",
        ),
        (
            r"Insufficient (?P<resource>[\w.-]+/[\w.-]*\w)",
            Reason.UNSCHEDULABLE,
            "no node has enough {resource} left: {message}",
            "Wait until other pods give theirs back, add nodes that have {resource}, or ask for fewer in resources.",
        ),
        (
            r"PersistentVolume's node affinity|volume node affinity|no available volume zone",
            Reason.UNSCHEDULABLE,
            "the nodes that can take the pod do not reach its volumes: {message}",
            "A volume is tied to a node or a zone. Make room there, or use a StorageClass without such ties.",
        ),
        (
            r"pod affinity",
            Reason.UNSCHEDULABLE,
            "the node that holds the pod's volumes has no room for it: {message}",
            "Wait until it has, or use a StorageClass with ReadWriteMany.",
        ),
        (
            r"Insufficient (?P<resource>[\w.-]*\w)",
            Reason.UNSCHEDULABLE,
            "no node has enough {resource} left: {message}",
            _PLACE_HINT,
        ),
        (
            r"untolerated taint|taints that the pod didn't tolerate",
            Reason.UNSCHEDULABLE,
            "the pod does not tolerate the taints of the nodes: {message}",
            "Add what it may tolerate to pod.tolerations.",
        ),
        (
            r"node affinity/selector|node selector",
            Reason.UNSCHEDULABLE,
            "no node has the labels that the pod asks for: {message}",
            "Correct pod.nodeSelector, or label a node.",
        ),
        (
            r"were unschedulable",
            Reason.UNSCHEDULABLE,
            "the nodes are closed for new pods (cordoned): {message}",
            "Open one with kubectl uncordon, or wait.",
        ),
        (
            r"no nodes available",
            Reason.UNSCHEDULABLE,
            "the cluster has no node",
            "Add one; an autoscaler may be about to do it.",
        ),
        (r"", Reason.UNSCHEDULABLE, "no node can take the pod: {message}", _PLACE_HINT),
    )
)

_GATED_RULE = Rule(
    _of(Source.SCHEDULER),
    Reason.QUEUED,
    "a scheduling gate holds the pod back: {message}",
    reasons=_any("SchedulingGated"),
)

_JOB_RULES = (
    Rule(
        _of(Source.JOB),
        Reason.DEADLINE_EXCEEDED,
        "the step was active longer than it may be (activeDeadlineSeconds)",
        "What was saved is kept. A larger activeDeadlineSeconds gives it more time.",
        _any("DeadlineExceeded"),
    ),
    Rule(
        _of(Source.JOB),
        Reason.BACKOFF_LIMIT_EXCEEDED,
        "the step failed more often than backoffLimit allows, and its pods are gone",
        "The log that your cluster keeps, if it does, has the details.",
        _any("BackoffLimitExceeded", "MaxFailedIndexesExceeded", "FailedIndexes"),
    ),
    Rule(
        _of(Source.JOB),
        Reason.INTERNAL,
        "the step failed with exit code {code}, and its pods are gone",
        "The log that your cluster keeps, if it does, has the details.",
        _any("PodFailurePolicy"),
        _like(r"failed with exit code (?P<code>\d+)"),
    ),
    Rule(_of(Source.JOB), Reason.INTERNAL, "the Job {job} failed ({reason}): {message}"),
)

_REFUSAL_RULES = tuple(
    Rule(_of(Source.API, Source.EVENT), means, sentence, hint, _any("FailedCreate", *classes), _like(pattern))
    for classes, pattern, means, sentence, hint in (
        (
            ("QuotaExceeded",),
            r"exceeded quota: (?P<quota>[^,]+), requested: (?P<asked>.+), used: (?P<used>.+), limited: (?P<limit>.+)",
            Reason.QUOTA_EXCEEDED,
            "the quota {quota} has no room: asked for {asked}, used {used}, limit {limit}",
            "It goes on by itself when there is room. Ask for less, or have the quota raised.",
        ),
        (
            ("QuotaExceeded",),
            r"failed quota: (?P<quota>[^:]+): must specify (?P<what>[^\n]+)",
            Reason.QUOTA_EXCEEDED,
            "the quota {quota} wants every pod to say {what}",
            "Set it in resources.",
        ),
        (
            ("QuotaExceeded",),
            r"quota",
            Reason.QUOTA_EXCEEDED,
            "a quota of the namespace has no room: {message}",
            "It goes on by itself when there is room.",
        ),
        (
            ("Forbidden",),
            r'violates PodSecurity "(?P<level>[^"]+)": (?P<what>.+)',
            Reason.POD_SECURITY_VIOLATION,
            "the namespace enforces Pod Security {level}, which the pod violates: {what}",
            "Remove what violates it, or relax the label pod-security.kubernetes.io/enforce of the namespace.",
        ),
        (
            ("NamespaceTerminating", "Forbidden"),
            r"being terminated",
            Reason.NAMESPACE_TERMINATING,
            "the namespace is being deleted",
            "",
        ),
        (
            ("Forbidden",),
            r'serviceaccount "(?P<name>[^"]+)" not found',
            Reason.CONFIGURATION_MISSING,
            "the ServiceAccount {name} does not exist",
            "Create it in the namespace of the object.",
        ),
        (
            ("Forbidden", "Invalid"),
            r"no PriorityClass with name (?P<name>\S+) was found",
            Reason.CONFIGURATION_MISSING,
            "the PriorityClass {name} does not exist",
            "Create it, or correct priorityClassName.",
        ),
        (
            ("Forbidden", "Invalid"),
            r'RuntimeClass "(?P<name>[^"]+)" not found',
            Reason.CONFIGURATION_MISSING,
            "the RuntimeClass {name} does not exist",
            "Create it, or correct pod.runtimeClassName.",
        ),
        (
            ("Forbidden", "Invalid", "ApiError"),
            r'admission webhook "(?P<webhook>[^"]+)" denied the request:? ?(?P<what>.*)',
            Reason.REJECTED,
            "the admission webhook {webhook} refuses it: {what}",
            "Ask who runs this webhook, or change what it objects to.",
        ),
        (
            ("Forbidden",),
            r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"',
            Reason.FORBIDDEN,
            "the operator may not {verb} {resource}: {message}",
            "Restore the rights of the installation: run helm upgrade again.",
        ),
        (
            ("Forbidden",),
            r"(?:maximum|minimum) (?P<what>[\w.-]+) usage per|per (?:Container|Pod|PersistentVolumeClaim) is",
            Reason.REJECTED,
            "a LimitRange of the namespace refuses it: {message}",
            "Set resources or storage within its bounds.",
        ),
        (("Forbidden",), r"forbidden", Reason.FORBIDDEN, "the API server refuses it: {message}", ""),
        (("Invalid",), r"is invalid", Reason.REJECTED, "the API server does not accept it: {message}", ""),
    )
)

_API_RULES = (
    Rule(
        _of(Source.API),
        Reason.NAMESPACE_TERMINATING,
        "the namespace is being deleted",
        reasons=_any("NamespaceTerminating"),
    ),
    Rule(_of(Source.API), Reason.FORBIDDEN, "the API server refuses it: {message}", reasons=_any("Forbidden")),
    Rule(_of(Source.API), Reason.REJECTED, "the API server does not accept it: {message}", reasons=_any("Invalid")),
    Rule(
        _of(Source.API),
        Reason.NAME_CONFLICT,
        "something of this name exists already: {message}",
        "Remove it, or choose another name.",
        _any("AlreadyExists"),
    ),
    Rule(
        _of(Source.API),
        Reason.API_UNAVAILABLE,
        "this cluster does not serve what is needed: {message}",
        "Install the CustomResourceDefinition, or use a newer Kubernetes.",
        _any("NotServed"),
    ),
    Rule(
        _of(Source.API),
        Reason.FORBIDDEN,
        "the API server does not know the operator: {message}",
        "Its ServiceAccount or token is gone: run helm upgrade again.",
        _any("Unauthorized"),
    ),
    Rule(_of(Source.API), Reason.API_UNAVAILABLE, "the API server is busy: {message}", reasons=_any("Throttled")),
    Rule(
        _of(Source.API), Reason.API_UNAVAILABLE, "the API server did not answer: {message}", reasons=_any("Unavailable")
    ),
    Rule(_of(Source.API), Reason.API_UNAVAILABLE, "the API server answered: {message}", reasons=_any("ApiError")),
)

_EVENT_RULES = (
    Rule(
        _of(Source.EVENT),
        Reason.API_UNAVAILABLE,
        "the Job cannot make its pods: {message}",
        "It is tried again.",
        _any("FailedCreate"),
    ),
    Rule(
        _of(Source.EVENT),
        Reason.VOLUME_CONFLICT,
        "a volume is in use on another node: {message}",
        "Wait until the pod that holds it is done, or use a StorageClass with ReadWriteMany.",
        _any("FailedAttachVolume", "FailedMount"),
        _like(r"Multi-Attach"),
    ),
    Rule(
        _of(Source.EVENT),
        Reason.CONFIGURATION_MISSING,
        "the {kind} {name} does not exist",
        _CREATE,
        _any("FailedMount"),
        _like(r'(?P<kind>secret|configmap) "(?P<name>[^"]+)" not found'),
    ),
    Rule(
        _of(Source.EVENT),
        Reason.CONFIGURATION_MISSING,
        "a mounted Secret or ConfigMap has no key {key}",
        "Add the key; the pod starts by itself then.",
        _any("FailedMount"),
        _like(r"references non-existent (?:secret|config) key: (?P<key>\S+)"),
    ),
    Rule(
        _of(Source.EVENT),
        Reason.VOLUME_UNAVAILABLE,
        "a volume cannot be attached or mounted: {message}",
        "The storage of the cluster is at fault, or the claim: kubectl describe pvc tells more.",
        _any("FailedAttachVolume", "FailedMount", "FailedMapVolume"),
    ),
    Rule(
        _of(Source.EVENT),
        Reason.CONTAINER_START_FAILED,
        "the node cannot set up the pod: {message}",
        "Check the RuntimeClass and the network plugin of the node.",
        _any("FailedCreatePodSandBox", "NetworkNotReady", "FailedPrepareDynamicResources"),
    ),
    Rule(
        _of(Source.EVENT),
        Reason.VOLUME_UNAVAILABLE,
        "the claim {about} has no StorageClass, and the cluster has no default one",
        "Set storage.profile or a storageClassName in storage, or mark one StorageClass as the default.",
        _any("FailedBinding"),
        _like(r"no storage class is set"),
    ),
    Rule(
        _of(Source.EVENT),
        Reason.VOLUME_UNAVAILABLE,
        "the claim {about} names the StorageClass {name}, which does not exist",
        "Correct storage.profile or storageClassName, or create the StorageClass.",
        _any("ProvisioningFailed"),
        _like(r'storageclass\.storage\.k8s\.io "(?P<name>[^"]+)" not found'),
    ),
    Rule(
        _of(Source.EVENT),
        Reason.VOLUME_UNAVAILABLE,
        "the claim {about} cannot get a volume: {message}",
        "The storage of the cluster is at fault, or the claim asks for what it cannot give: size, access mode, class.",
        _any("ProvisioningFailed", "FailedBinding", "VolumeMismatch", "ClaimLost", "ClaimMisbound"),
    ),
    Rule(
        _of(Source.EVENT),
        Reason.VOLUME_UNAVAILABLE,
        "the claim {about} waits for its provisioner: {message}",
        "If this lasts, check that the storage driver runs.",
        _any("ExternalProvisioning"),
    ),
    Rule(_of(Source.EVENT), Reason.PENDING, "the node fetches the image: {message}", reasons=_any("Pulling")),
)

_QUEUE_RULES = (
    # Whatever other flavours lack: there is one that will have room.
    Rule(
        _of(Source.QUEUE),
        Reason.QUEUED,
        "waits in the queue {queue}: {message}",
        pattern=_like(r"insufficient unused quota"),
    ),
    Rule(
        _of(Source.QUEUE),
        Reason.QUEUE_INADMISSIBLE,
        "the queue {queue} can never admit this: {message}",
        "Ask for less in resources, or use another queueName.",
        pattern=_like(r"maximum capacity|exceeds"),
    ),
    Rule(
        _of(Source.QUEUE),
        Reason.QUEUE_INADMISSIBLE,
        "the queue {queue} does not admit: {message}",
        "Correct queueName, or have the ClusterQueue cover what the step asks for, cpu and memory included.",
        pattern=_like(r"unavailable in ClusterQueue|flavor \S+ not found|untolerated taint|doesn't match"),
    ),
    Rule(
        _of(Source.QUEUE),
        Reason.QUEUE_INADMISSIBLE,
        "the queue {queue} does not admit: {message}",
        "Correct queueName, or have the queue set up.",
        _any("Inadmissible"),
    ),
    Rule(_of(Source.QUEUE), Reason.QUEUED, "waits in the queue {queue}: {message}"),
)

RULES: tuple[Rule, ...] = (
    *_POD_RULES,
    *_WAITING_RULES,
    *_ENDED_RULES,
    _GATED_RULE,
    *_SCHEDULER_RULES,
    *_JOB_RULES,
    *_REFUSAL_RULES,
    *_API_RULES,
    *_EVENT_RULES,
    *_QUEUE_RULES,
)
"""The table, most telling first."""
