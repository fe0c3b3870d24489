"""What Kubernetes says of a pod and of a Job, read from plain objects whose shape is not trusted.

Of a pod, these fields are read, and a cache that keeps slim objects keeps them: ``metadata`` (name, namespace, uid,
labels, annotations, creationTimestamp, deletionTimestamp), ``spec`` (nodeName, containers[].name, .image and
.resources.limits.memory, volumes[].persistentVolumeClaim.claimName) and ``status`` (phase, reason, message, conditions,
initContainerStatuses, containerStatuses). Of a Job: ``metadata`` (the same), ``spec`` (suspend, completionMode,
completions, parallelism) and ``status`` without its uncounted pods.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from finetuning_operator.reconcile import labels

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

_NOBODY: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True)
class Told:
    """A reason with a message, as a part of Kubernetes tells it."""

    reason: str
    message: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a container does not run yet."""

    told: Told
    image: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """How a container ended."""

    exit_code: int
    reason: str = ""
    message: str = ""
    """Its termination message, as it is: of any length and content."""
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What matters of a pod."""

    name: str
    uid: str
    namespace: str = ""
    node: str = ""
    index: int = 0
    """Which worker it is."""
    phase: str = ""
    created_at: datetime | None = None
    deleted_at: datetime | None = None
    """When it is to be gone; a moment in the past means that its node does not answer."""
    status: Told | None = None
    disruption: Told | None = None
    unscheduled: Told | None = None
    waits: tuple[Wait, ...] = ()
    end: End | None = None
    """Of its main container, or of the one that failed."""
    last_end: End | None = None
    """Of the main container's run before this one, where it was started again."""
    started_at: datetime | None = None
    ready: bool = False
    container: str = ""
    image: str = ""
    memory_limit: str = ""
    claims: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it ended for good."""
        return self.phase in {"Succeeded", "Failed"}

    @property
    def succeeded(self) -> bool:
        """Whether all its containers ended with 0."""
        return self.phase == "Succeeded"

    @property
    def running(self) -> bool:
        """Whether its main container runs."""
        return self.phase == "Running" and self.started_at is not None

    @property
    def ended_at(self) -> datetime | None:
        """When it ended, as exactly as that is known."""
        if not self.ended:
            return None
        disrupted = self.disruption.at if self.disruption else None
        return (self.end.finished_at if self.end else None) or disrupted or self.deleted_at or self.created_at


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What matters of a batch Job."""

    name: str
    uid: str
    namespace: str = ""
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    deleted: bool = False
    suspended: bool = False
    queue: str = ""
    indexed: bool = False
    workers: int = 1
    earlier_attempts: int = 0
    """How often its step was started by Jobs before it."""
    failed: int = 0
    succeeded: int = 0
    conditions: tuple[tuple[str, Told], ...] = ()
    """Those that hold, by type."""

    def condition(self, *types: str) -> Told | None:
        """Return the first condition of one of the types that holds."""
        return next((told for kind, told in self.conditions if kind in types), None)


def read_pod(pod: Mapping[str, object]) -> PodFacts:
    """Return what matters of a pod; what is missing or of a wrong type counts as not told."""
    metadata, spec, status = part(pod, "metadata"), part(pod, "spec"), part(pod, "status")
    conditions = parts(status, "conditions")
    containers = parts(spec, "containers")
    main = containers[0] if containers else _NOBODY
    statuses = _main_first(parts(status, "containerStatuses"), text(main, "name"))
    inits = parts(status, "initContainerStatuses")
    state = part(statuses[0], "state") if statuses else _NOBODY
    return PodFacts(
        name=text(metadata, "name"),
        uid=text(metadata, "uid"),
        namespace=text(metadata, "namespace"),
        node=text(spec, "nodeName"),
        index=_index(metadata),
        phase=text(status, "phase"),
        created_at=moment(metadata, "creationTimestamp"),
        deleted_at=moment(metadata, "deletionTimestamp"),
        status=_told(status) if text(status, "reason") else None,
        disruption=find_condition(conditions, "DisruptionTarget", status="True"),
        unscheduled=find_condition(conditions, "PodScheduled", status="False"),
        waits=tuple(_waits((*inits, *statuses))),
        end=_end((*statuses, *inits), "state"),
        last_end=_end(statuses[:1], "lastState"),
        started_at=moment(part(state, "running"), "startedAt") or moment(part(state, "terminated"), "startedAt"),
        ready=find_condition(conditions, "Ready", status="True") is not None,
        container=text(main, "name") or (text(statuses[0], "name") if statuses else ""),
        image=text(main, "image"),
        memory_limit=text(part(part(main, "resources"), "limits"), "memory"),
        claims=tuple(_claims(spec)),
    )


def read_job(job: Mapping[str, object]) -> JobFacts:
    """Return what matters of a Job; what is missing or of a wrong type counts as not told."""
    metadata, spec, status = part(job, "metadata"), part(job, "spec"), part(job, "status")
    indexed = text(spec, "completionMode") == "Indexed"
    return JobFacts(
        name=text(metadata, "name"),
        uid=text(metadata, "uid"),
        namespace=text(metadata, "namespace"),
        created_at=moment(metadata, "creationTimestamp"),
        started_at=moment(status, "startTime"),
        completed_at=moment(status, "completionTime"),
        deleted=deleted(job),
        suspended=spec.get("suspend") is True,
        queue=text(part(metadata, "labels"), QUEUE_LABEL),
        indexed=indexed,
        workers=max(1, number(spec, "completions")) if indexed else 1,
        earlier_attempts=_count(part(metadata, "annotations"), labels.EARLIER_ATTEMPTS),
        failed=number(status, "failed"),
        succeeded=number(status, "succeeded"),
        conditions=tuple(read_conditions(status)),
    )


def read_conditions(status: Mapping[str, object]) -> Iterator[tuple[str, Told]]:
    """Return the conditions that hold, by type."""
    for condition in parts(status, "conditions"):
        if condition.get("status") == "True":
            yield text(condition, "type"), _told(condition)


def find_condition(conditions: Sequence[Mapping[str, object]], kind: str, *, status: str) -> Told | None:
    """Return the condition of a type and a status."""
    found = (item for item in conditions if item.get("type") == kind and item.get("status") == status)
    return next((_told(item) for item in found), None)


def deleted(manifest: Mapping[str, object]) -> bool:
    """Return whether an object is on its way out."""
    return moment(part(manifest, "metadata"), "deletionTimestamp") is not None


def part(value: Mapping[str, object], key: str) -> Mapping[str, object]:
    """Return a field that is an object, an empty one otherwise."""
    found = value.get(key)
    return found if isinstance(found, Mapping) else _NOBODY


def parts(value: Mapping[str, object], key: str) -> tuple[Mapping[str, object], ...]:
    """Return the objects of a field that is a list, none otherwise."""
    found = value.get(key)
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        return ()
    return tuple(item for item in found if isinstance(item, Mapping))


def text(value: Mapping[str, object], key: str) -> str:
    """Return a field that is a text, an empty one otherwise."""
    found = value.get(key)
    return found if isinstance(found, str) else ""


def number(value: Mapping[str, object], key: str) -> int:
    """Return a field that is a whole number, 0 otherwise."""
    found = value.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def moment(value: Mapping[str, object], key: str) -> datetime | None:
    """Return a field that is a time, None otherwise."""
    found = value.get(key)
    if isinstance(found, str):
        try:
            found = datetime.fromisoformat(found)
        except ValueError:
            return None
    if not isinstance(found, datetime):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _told(value: Mapping[str, object]) -> Told:
    return Told(text(value, "reason"), text(value, "message"), moment(value, "lastTransitionTime"))


def _main_first(statuses: tuple[Mapping[str, object], ...], main: str) -> tuple[Mapping[str, object], ...]:
    # The kubelet sorts statuses by name; the main container is the first of the spec.
    return tuple(sorted(statuses, key=lambda status: text(status, "name") != main))


def _waits(statuses: Sequence[Mapping[str, object]]) -> Iterator[Wait]:
    for status in statuses:
        waiting = part(part(status, "state"), "waiting")
        if waiting:
            yield Wait(_told(waiting), text(status, "image"))


def _end(statuses: Sequence[Mapping[str, object]], state: str) -> End | None:
    ends = [part(part(status, state), "terminated") for status in statuses]
    told = [end for end in ends if end]
    end = next((end for end in told if number(end, "exitCode")), told[0] if told else None)
    if end is None:
        return None
    return End(
        exit_code=number(end, "exitCode"),
        reason=text(end, "reason"),
        message=text(end, "message"),
        started_at=moment(end, "startedAt"),
        finished_at=moment(end, "finishedAt"),
    )


def _index(metadata: Mapping[str, object]) -> int:
    return _count(part(metadata, "labels"), INDEX_LABEL) or _count(part(metadata, "annotations"), INDEX_LABEL)


def _count(value: Mapping[str, object], key: str) -> int:
    return labels.count(text(value, key))


def _claims(spec: Mapping[str, object]) -> Iterator[str]:
    for volume in parts(spec, "volumes"):
        claim = text(part(volume, "persistentVolumeClaim"), "claimName")
        if claim:
            yield claim
