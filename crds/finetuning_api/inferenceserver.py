"""InferenceServer: a base model and its adapters behind an OpenAI-compatible endpoint."""

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from finetuning_api import patterns
from finetuning_api.base import (
    ApiModel,
    CelRule,
    ClaimRef,
    Condition,
    Message,
    Mutability,
    Name,
    ObjectName,
    Resource,
    ResourceRequirements,
    SecretRef,
    Url,
    keyed_by,
)
from finetuning_api.finetuningjob import CanaryShare, EnvVar, PodOptions, StorageSpec
from finetuning_api.pod import Command, CommandWord
from finetuning_api.reasons import Reason
from finetuning_api.scaling import AutoscalingSpec, DisruptionSpec
from finetuning_api.sources import SourceRef

LONGEST_WAKE = 256
"""Characters of the annotation that wakes a server which was shut down."""


class ServerVariant(StrEnum):
    """Which program serves."""

    BUILTIN = "builtin"
    COMMAND = "command"
    VLLM = "vllm"
    NIM = "nim"


class AdapterRef(ApiModel):
    """An adapter to serve under a name of its own."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="has(self.claim) != has(self.jobRef)",
            message="an adapter is on a claim or comes from a jobRef: set exactly one",
            field="claim",
        ),
    )

    name: Name = Field(description="Model name that requests use.")
    claim: ClaimRef | None = Field(default=None, description="Folder that holds the adapter.")
    job_ref: Name | None = Field(
        default=None,
        description="FineTuningJob whose adapter is served once the job is complete and has passed its gate, if any.",
    )
    awaited: bool = Field(
        default=False,
        description="Serve the rest now, and the adapter from the moment that it is complete, whatever its gate says,"
        " without a restart; false waits for it. Variant builtin only.",
    )


class CanarySpec(CanaryShare):
    """A model name that stands for two models, so that few requests try the one before all get it."""

    adapter: Name = Field(description="Adapter that answers the share.")
    stable: Name | None = Field(
        default=None, description="Adapter that answers the other requests; unset is the base model."
    )


class HealthCheck(ApiModel):
    """When a replica is healthy."""

    path: str | None = Field(
        default=None,
        max_length=256,
        pattern=patterns.HTTP_PATH.regex,
        description="HTTP path that is asked; unset is the variant's own: builtin /readyz before it gets requests and"
        " /healthz else, command /healthz, vllm /health, nim /v1/health/ready.",
    )
    initial_delay_seconds: int = Field(default=0, ge=0, le=3600, description="Seconds before the first check.")
    period_seconds: int = Field(default=10, ge=1, le=3600, description="Seconds between checks.")
    timeout_seconds: int = Field(default=5, ge=1, le=300, description="Seconds that an answer may take.")
    failure_threshold: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Failed checks after which a replica gets no requests and is started again.",
    )
    expected_status: int | None = Field(
        default=None,
        ge=200,
        le=599,
        description="HTTP status that a healthy replica answers, and no other; the image needs python3 to tell it."
        " Unset is any from 200 to 399.",
    )
    startup_seconds: int = Field(
        default=1800,
        ge=1,
        le=86400,
        description="Seconds that a replica may take to load; a rollout without progress for twice as long failed.",
    )


class InferenceServerSpec(ApiModel):
    """What to serve, and how."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.variant == 'builtin' || has(self.image)",
            message="variants command, vllm and nim need image",
            field="image",
        ),
        CelRule(
            rule="self.variant != 'command' || self.command.size() > 0",
            message="variant command needs command",
            field="command",
        ),
        CelRule(
            rule="self.variant == 'builtin' || self.adapters.all(one, !one.awaited)",
            message="only variant builtin takes up an adapter later: remove awaited, or set variant to builtin",
            field="adapters",
        ),
        CelRule(
            rule="!has(self.idleShutdownMinutes) || self.variant == 'builtin'",
            message="only variant builtin tells when it was last asked: remove idleShutdownMinutes, or set variant to"
            " builtin",
            field="idleShutdownMinutes",
        ),
        CelRule(
            rule="!has(self.canary) || self.variant == 'builtin'",
            message="only variant builtin draws who answers: remove canary, or set variant to builtin",
            field="canary",
        ),
        CelRule(
            rule="!has(self.canary) || self.adapters.exists(one, one.name == self.canary.adapter)",
            message="canary.adapter is none of adapters: name one of them",
            field="canary.adapter",
        ),
        CelRule(
            rule="!has(self.canary) || !has(self.canary.stable) || (self.canary.stable != self.canary.adapter"
            " && self.adapters.exists(one, one.name == self.canary.stable))",
            message="canary.stable is another one of adapters, or unset for the base model",
            field="canary.stable",
        ),
        CelRule(
            rule="!has(self.canary) || !self.adapters.exists(one, one.name == self.canary.name)",
            message="canary.name is the name of one of adapters: choose a name of its own",
            field="canary.name",
        ),
        CelRule(
            rule="!has(self.autoscaling) || self.replicas <= 1",
            message="autoscaling decides how many replicas there are: change its minReplicas and maxReplicas and leave"
            " replicas at 1, or at 0 to switch the server off",
            field="replicas",
        ),
    )

    mutability: ClassVar[Mutability | None] = Mutability(
        fixed=("model", "port"),
        advice="create a new InferenceServer: adapters fit one base model, and clients know one address",
    )

    model: SourceRef = Field(description="Base model.")
    tokenizer: SourceRef | None = Field(default=None, description="Tokenizer; unset is the model's own.")
    adapters: list[AdapterRef] = Field(
        default_factory=list,
        max_length=64,
        description="Adapters of the base model.",
        json_schema_extra=keyed_by("name"),
    )
    canary: CanarySpec | None = Field(
        default=None, description="A model name that stands for two models, by weight. Variant builtin only."
    )
    variant: ServerVariant = Field(default=ServerVariant.BUILTIN, description="builtin, command, vllm or nim.")
    image: str | None = Field(default=None, min_length=1, max_length=512, description="Container image of the server.")
    command: list[CommandWord] = Field(
        default_factory=list, max_length=64, description="Start command of variant command."
    )
    pre_start: list[Command] = Field(
        default_factory=list,
        max_length=8,
        description="Commands that each pod runs before the server, in order, with its image, volumes and environment.",
    )
    env: list[EnvVar] = Field(
        default_factory=list,
        max_length=64,
        description="Extra environment variables.",
        json_schema_extra=keyed_by("name"),
    )
    port: int = Field(default=8000, ge=1, le=65535, description="Port that the server listens on.")
    replicas: int = Field(
        default=1, ge=0, le=1024, description="Server pods; with autoscaling 1, or 0 to switch the server off."
    )
    autoscaling: AutoscalingSpec | None = Field(default=None, description="Let the number of pods follow the load.")
    disruption: DisruptionSpec | None = Field(
        default=None,
        description="What a drain must leave; unset allows one pod to be taken away where there can be several.",
    )
    idle_shutdown_minutes: int | None = Field(
        default=None,
        ge=1,
        le=10080,
        description="Minutes without a request after which all pods go, until the annotation finetuning.dev/wake gets"
        " another value or the specification changes; unset never. Variant builtin only.",
    )
    revision_history_limit: int = Field(
        default=2, ge=0, le=100, description="Former revisions of the Deployment that are kept."
    )
    health: HealthCheck = Field(default_factory=HealthCheck, description="When a replica is healthy.")
    auth_secret_ref: SecretRef | None = Field(default=None, description="Secret with tokens; unset is public.")
    expose: bool = Field(
        default=False,
        description="Answer outside the cluster as well, under <name>.<namespace>.<domain of the installation>.",
    )
    resources: ResourceRequirements = Field(default_factory=ResourceRequirements, description="Compute resources.")
    pod: PodOptions = Field(default_factory=PodOptions, description="Placement and environment of the pods.")
    storage: StorageSpec = Field(default_factory=StorageSpec, description="Volumes of model and tokenizer.")
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.")


class InferenceServerPhase(StrEnum):
    """Summary of a server for display only."""

    PENDING = "Pending"
    READY = "Ready"
    DEGRADED = "Degraded"
    FAILED = "Failed"


class IdleStatus(ApiModel):
    """A shutdown because nobody asked, and what ends it when it changes."""

    since: datetime = Field(description="When the server was shut down.")
    generation: int = Field(ge=0, description="Generation of the specification then.")
    wake: str = Field(default="", max_length=LONGEST_WAKE, description="Annotation finetuning.dev/wake then.")


class InferenceServerStatus(ApiModel):
    """What became of the server."""

    observed_generation: int = Field(default=0, ge=0, description="Generation that the status is about.")
    phase: InferenceServerPhase = Field(default=InferenceServerPhase.PENDING, description="Summary for display.")
    reason: Reason | None = Field(
        default=None, description="Why not all replicas answer, for display; unset while they do."
    )
    replicas: int = Field(default=0, ge=0, description="Server pods that exist.")
    ready_replicas: int = Field(default=0, ge=0, description="Server pods that answer.")
    selector: str = Field(
        default="", max_length=512, description="Label selector of the pods, for the scale subresource."
    )
    url: Url = Field(
        default="", description="Address inside the cluster; it stays the same for the life of the object."
    )
    external_url: Url = Field(default="", description="Address outside the cluster; empty where there is none.")
    revision: int = Field(
        default=0, ge=0, description="Revision of the Deployment; it grows with every change of the pods."
    )
    idle: IdleStatus | None = Field(default=None, description="Set while the server is shut down for being idle.")
    warnings: list[Message] = Field(
        default_factory=list, max_length=32, description="What does not work as it was asked for, and what to do."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=16,
        description="Conditions.",
        json_schema_extra=keyed_by("type"),
    )


class InferenceServer(Resource):
    """Serve a base model and its adapters."""

    kind: Literal["InferenceServer"] = "InferenceServer"
    spec: InferenceServerSpec = Field(description="What to serve.")
    status: InferenceServerStatus = Field(default_factory=InferenceServerStatus, description="What became of it.")
