"""What reconciling yields, and what it is told: plain values, realised by a cluster or by one machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from finetuning_api.base import ApiModel, Resource, ResourceRequirements
from finetuning_api.finetuningjob import EnvVar, PodOptions, Preset, RetentionPolicy, VolumeSpec
from finetuning_api.inferenceserver import HealthCheck, ServerVariant
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords, RunConfig, ServeConfig, TrainerStatus
from finetuning_api.scaling import AutoscalingSpec, DisruptionSpec
from finetuning_operator.reconcile.policy import Bounds, SourcePolicy


class ImageRole(StrEnum):
    """Which program a step runs; the realiser knows its image or its module."""

    RELOCATOR = "relocator"
    TRAINER = "trainer"
    EVALUATOR = "evaluator"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class ClaimMount:
    """A claim as a step sees it."""

    claim: str
    path: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class ConfigMapMount:
    """A ConfigMap as a step sees it, read-only."""

    config_map: str
    path: str


@dataclass(frozen=True, slots=True)
class Step:
    """A program to run until it succeeds or its retries are used up. Its name is unique within its owner."""

    name: str
    image: ImageRole
    config: RunConfig
    mounts: tuple[ClaimMount | ConfigMapMount, ...] = ()
    secret: str | None = None
    """Secret whose keys become environment variables with the prefix of the contract."""
    network: bool = False
    """Whether the step may leave the machine; only relocation may."""
    resources: ResourceRequirements = field(default_factory=ResourceRequirements)
    pod: PodOptions = field(default_factory=PodOptions)
    workers: int = 1
    processes_per_worker: int = 1
    retries: int = 3
    deadline_seconds: int | None = None
    priority_class: str | None = None
    queue: str | None = None
    """Kueue LocalQueue that decides when the step starts; None starts it at once."""
    own_image: str | None = None
    """Image of the user's in place of the installation's."""
    earlier_attempts: int = 0
    """How often its stage was started before. What runs a step counts on from there when it knows of none itself."""


class StepPhase(StrEnum):
    """Where a step stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class StepState:
    """What is known of a step that was started. FAILED means that it will not be tried again."""

    phase: StepPhase
    attempts: int = 1
    started_at: datetime | None = None
    """When its last attempt started to run; of a pending step, since when this attempt waits for its pod to run."""
    finished_at: datetime | None = None
    last_words: LastWords | None = None
    """Of the last attempt that left any."""
    progress: TrainerStatus | None = None
    hindrance: LastWords | None = None
    """What keeps a pending step from running, for example a quota or a full cluster."""
    log_tail: tuple[str, ...] = ()
    """Last lines of a failed attempt's log, bounded and free of control characters."""
    leaving_claims: tuple[str, ...] = ()
    """Claims that it mounts and that somebody deleted: they go, with everything on them, when it ends."""


@dataclass(frozen=True, slots=True)
class Server:
    """Replicas of a program that answers requests, behind one stable address."""

    name: str
    variant: ServerVariant
    port: int
    replicas: int | None
    """None leaves them to what scales the server."""
    health: HealthCheck
    image: str | None = None
    """None is the installation's own image of its role."""
    role: ImageRole = ImageRole.SERVER
    component: str = ""
    """What it is among the pods of its owner, which then has others; empty where all of them are its replicas."""
    command: tuple[str, ...] = ()
    pre_start: tuple[tuple[str, ...], ...] = ()
    """Commands that every replica runs before it starts, with the same image, volumes and environment."""
    config: ServeConfig | None = None
    """What the installation's own server is told; None for other variants."""
    model_path: str = ""
    model_name: str = ""
    adapters: tuple[tuple[str, str], ...] = ()
    """(name, path) of each adapter."""
    env: tuple[EnvVar, ...] = ()
    mounts: tuple[ClaimMount, ...] = ()
    auth_secret: str | None = None
    resources: ResourceRequirements = field(default_factory=ResourceRequirements)
    pod: PodOptions = field(default_factory=PodOptions)
    priority_class: str | None = None
    autoscaling: AutoscalingSpec | None = None
    disruption: DisruptionSpec | None = None
    """What may be taken away at the same time; None for a server that is one pod at most."""
    doorway: bool = False
    """Whether the operator answers for it, because no replica does."""
    host: str | None = None
    """Name under which it answers outside the cluster; None keeps it inside."""
    former_revisions: int = 2
    """How many are kept, for whoever looks."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """What is known of a server that was started."""

    replicas: int = 0
    ready: int = 0
    wanted: int | None = None
    """Replicas that it is to have, by whoever decides that; None where nobody knows."""
    current: bool = False
    """Whether every replica runs the newest description."""
    revision: int = 0
    """Of the newest description; 0 where none has a number yet."""
    idle_since: datetime | None = None
    """Since when no replica was asked anything; None where nobody watched all of them."""
    asked_at: datetime | None = None
    """When it was last asked something while it had no replica; None where nobody noticed."""
    hindrance: LastWords | None = None


@dataclass(frozen=True, slots=True)
class Volume:
    """A claim that must exist. ``spec.size`` None leaves the size to the realiser's default."""

    name: str
    spec: VolumeSpec
    profile: str = "default"
    size_bytes: int | None = None
    """Measured need, already with its margin; a size in ``spec`` goes first."""
    retention: RetentionPolicy = RetentionPolicy.DELETE
    """What becomes of the claim when its owner is deleted."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth telling once."""

    reason: Reason
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The desired state of one object: what must run and exist, and what to say about it.

    A step that runs but is not in ``steps`` must be stopped. A step that already ended is never started again.
    """

    status: ApiModel
    steps: tuple[Step, ...] = ()
    servers: tuple[Server, ...] = ()
    kept_servers: tuple[str, ...] = ()
    """Names of servers that are left as they run, where they run."""
    volumes: tuple[Volume, ...] = ()
    children: tuple[Resource, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds until the clock alone can change the plan; None waits for an event."""
    expired: bool = False
    """Whether the object itself has outlived its time and is to be deleted."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that a plan may depend on besides the object itself."""

    steps: dict[str, StepState] = field(default_factory=dict)
    """By step name, of this object's own steps."""
    resources: dict[tuple[str, str], Resource] = field(default_factory=dict)
    """Other objects of the namespace by (kind, name): children and what the object refers to."""
    servers: dict[str, ServerState] = field(default_factory=dict)
    """By server name, of this object's own servers."""
    users: tuple[str, ...] = ()
    """Unfinished objects that refer to this one, as Kind/name."""
    hindrances: dict[tuple[str, str], LastWords] = field(default_factory=dict)
    """What keeps objects other than steps and servers from being made, by (kind, name)."""
    lost: frozenset[str] = frozenset()
    """Claims of which the status tells that something lies there, and that are gone."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the installation decides."""

    volumes_root: str = "/volumes"
    """Claims are mounted at <volumes_root>/<claim>, on a cluster and on one machine alike."""
    config_maps_root: str = "/configmaps"
    tokens_path: str = "/var/run/secrets/finetuning.dev/tokens"
    """Where a server sees the tokens that it accepts."""
    serving_domain: str | None = None
    """Domain below which servers answer outside the cluster; None where none do."""
    serving_scheme: str = "https"
    wake_by_request: bool = False
    """Whether a request starts a server that was shut down when idle."""
    scores_path: str | None = None
    """Folder of scores that all evaluations share; None where there is no place that all of them reach."""
    local: bool = False
    """Whether the realiser is one machine: local paths are allowed, servers are not run."""
    size_margin: float = 1.15
    conversion_factor: float = 9.0
    """Greatest growth of a quantised GGUF file that becomes 32-bit safetensors."""
    stall_seconds: int = 60
    """A transfer without one new byte for this long has stalled."""
    stalled_after_seconds: int = 600
    """A running stage that reported before and then keeps silent for this long is called stalled."""
    presets: Mapping[str, Preset] = field(default_factory=dict)
    """What jobs may pick by name."""
    bounds: Bounds = field(default_factory=Bounds)
    sources: SourcePolicy = field(default_factory=SourcePolicy)
