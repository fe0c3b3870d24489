"""What reconciling yields, and what it is told: plain values, realised by a cluster or by one machine."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from finetuning_api.base import ApiModel, Resource, ResourceRequirements
from finetuning_api.finetuningjob import PodOptions, VolumeSpec
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords, RunConfig, TrainerStatus


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
    finished_at: datetime | None = None
    last_words: LastWords | None = None
    """Of the last attempt that left any."""
    progress: TrainerStatus | None = None


@dataclass(frozen=True, slots=True)
class Volume:
    """A claim that must exist. ``spec.size`` None leaves the size to the realiser's default."""

    name: str
    spec: VolumeSpec
    profile: str = "default"
    size_bytes: int | None = None
    """Measured need, already with its margin; a size in ``spec`` goes first."""


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
    volumes: tuple[Volume, ...] = ()
    children: tuple[Resource, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds until the clock alone can change the plan; None waits for an event."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that a plan may depend on besides the object itself."""

    steps: dict[str, StepState] = field(default_factory=dict)
    """By step name, of this object's own steps."""
    resources: dict[tuple[str, str], Resource] = field(default_factory=dict)
    """Other objects of the namespace by (kind, name): children and what the object refers to."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the installation decides."""

    volumes_root: str = "/volumes"
    """Claims are mounted at <volumes_root>/<claim>, on a cluster and on one machine alike."""
    config_maps_root: str = "/configmaps"
    local: bool = False
    """Whether the realiser is one machine: local paths are allowed, servers are not run."""
    size_margin: float = 1.15
    conversion_factor: float = 9.0
    """Greatest growth of a quantised GGUF file that becomes 32-bit safetensors."""
    stall_seconds: int = 60
