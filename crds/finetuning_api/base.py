"""What every kind shares: the base model, object metadata, conditions, references and cross-field rules."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema
from pydantic.alias_generators import to_camel

from finetuning_api import patterns
from finetuning_api.reasons import Reason

GROUP = "finetuning.dev"
VERSION = "v1alpha1"
API_VERSION: Literal["finetuning.dev/v1alpha1"] = "finetuning.dev/v1alpha1"

LONGEST_MESSAGE = 4096
"""Characters of a message in status; a longer one is clipped, because a status must always be writable."""
INT32_MAX = 2**31 - 1

LIST_TYPE = "x-kubernetes-list-type"
LIST_KEYS = "x-kubernetes-list-map-keys"
A_SET: dict[str, JsonValue] = {LIST_TYPE: "set"}
"""Schema of a list whose values are different; server-side apply merges it by value."""


def keyed_by(field: str) -> dict[str, JsonValue]:
    """Return the schema of a list whose items differ in one field; server-side apply merges it by that field."""
    return {LIST_TYPE: "map", LIST_KEYS: [field]}


def _clip(text: object) -> object:
    """Cut a text that is longer than status may hold, and say so with an ellipsis."""
    if isinstance(text, str) and len(text) > LONGEST_MESSAGE:
        return text[: LONGEST_MESSAGE - 1] + "…"
    return text


def _quantity_text(value: object) -> object:
    """Write a whole number as text: ``cpu: 2`` and ``cpu: "2"`` are the same quantity."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Name = Annotated[str, Field(min_length=1, max_length=63, pattern=patterns.LABEL.regex)]
"""A DNS label: what Kubernetes accepts as the name of a Service, a Job's pods or a claim."""
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=patterns.SUBDOMAIN.regex)]
"""A DNS subdomain: the name of somebody else's object (Secret, ConfigMap, StorageClass)."""
Quantity = Annotated[
    str,
    BeforeValidator(_quantity_text),
    Field(min_length=1, max_length=32, pattern=patterns.QUANTITY.regex),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "minimum": 0,
            "maxLength": 32,
            "pattern": patterns.QUANTITY.regex,
        }
    ),
]
"""A Kubernetes quantity, for example 500m, 16Gi or 1."""
Digest = Annotated[str, Field(max_length=71, pattern=patterns.DIGEST.regex)]
"""A content digest: sha256 in hex with its algorithm in front."""
Message = Annotated[str, BeforeValidator(_clip), Field(max_length=LONGEST_MESSAGE)]
"""A sentence of the operator for a person; clipped where it is too long."""
LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
"""Key of a label, a taint or a resource: an optional DNS subdomain, a slash, and a name."""
LabelValue = Annotated[str, Field(max_length=63)]
"""Value of a label."""
Url = Annotated[str, Field(max_length=2048)]


class CelRule(BaseModel):
    """One cross-field rule, enforced by the API server and, through a CEL library, by local runs as well.

    ``rule`` is CEL over ``self`` (and ``oldSelf`` for a transition rule) at the level of the model that carries it;
    ``field`` is the field, relative to that model, that the message is about. ``message_expression`` is CEL for a
    message that quotes what the rule found; ``message`` stands in for it where it cannot be evaluated.
    """

    model_config = ConfigDict(frozen=True)

    rule: str
    message: str
    field: str = ""
    message_expression: str = ""

    @property
    def is_transition(self) -> bool:
        """Whether the rule compares an update with the stored object."""
        return "oldSelf" in self.rule


class Mutability(BaseModel):
    """Which fields of a spec may change after the object was created.

    Either ``changeable`` lists the fields that may change (``serving.replicas`` names a field of a field) and every
    other one is fixed, or ``fixed`` lists the fields that may not and every other one may change.
    """

    model_config = ConfigDict(frozen=True)

    changeable: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    advice: str
    """What to do instead of changing a fixed field."""


class ApiModel(BaseModel):
    """Base of every type of the API: camelCase on the wire, snake_case in Python, immutable once parsed.

    Unknown fields are ignored, because an object may have been stored by a newer version; authoring passes
    ``extra="forbid"`` to ``model_validate``.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="ignore", frozen=True
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = ()
    mutability: ClassVar[Mutability | None] = None
    """On a spec: which of its fields may change after creation; None lets all of them change."""

    def to_wire(self) -> dict[str, object]:
        """Return the JSON-ready form with the names of the API, without fields that are unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ConditionStatus(StrEnum):
    """Status of a condition, as in metav1.Condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ConditionType(StrEnum):
    """Every condition type that the operator writes."""

    ACCEPTED = "Accepted"
    RELOCATED = "Relocated"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    PREDICTED = "Predicted"
    GATE_PASSED = "GatePassed"
    EXPORTED = "Exported"
    TRACKED = "Tracked"
    SERVING = "Serving"
    READY = "Ready"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Condition(ApiModel):
    """One aspect of the state of an object, as in metav1.Condition."""

    type: ConditionType = Field(description="Aspect that the condition is about.")
    status: ConditionStatus = Field(description="Whether the aspect holds.")
    reason: Reason = Field(description="Machine-readable reason of the last transition.")
    message: Message = Field(default="", description="Sentence for a person.")
    last_transition_time: datetime = Field(description="When the status last changed.")
    observed_generation: int = Field(default=0, ge=0, description="Generation that the condition was set for.")


class OwnerReference(ApiModel):
    """The object that an object belongs to and is deleted with."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = True
    block_owner_deletion: bool = True


class ObjectMeta(ApiModel):
    """The part of metav1.ObjectMeta that the operator reads."""

    name: Name
    namespace: Name = "default"
    uid: str = ""
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: list[str] = Field(default_factory=list)
    owner_references: list[OwnerReference] = Field(default_factory=list)


class Resource(ApiModel):
    """A custom resource of this API."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 63",
            message="the name needs at most 63 lower-case letters, digits and '-', and a letter first:"
            " Services and claims are named after it",
            field="metadata.name",
        ),
    )

    api_version: Literal["finetuning.dev/v1alpha1"] = API_VERSION
    kind: str
    metadata: ObjectMeta


SHORT_NAME = CelRule(
    rule="self.metadata.name.size() <= 52",
    message="the name needs at most 52 characters: its children add a suffix to it, and theirs end at 63",
    field="metadata.name",
)
"""For kinds whose children are named `<name>-<suffix>`."""


class SecretRef(ApiModel):
    """A Secret in the object's namespace. Its keys reach the relocation pod as environment variables only."""

    name: ObjectName = Field(description="Name of the Secret in the same namespace.")


class ClaimRef(ApiModel):
    """A folder on a persistent volume claim in the object's namespace."""

    claim_name: ObjectName = Field(description="Name of the PersistentVolumeClaim.")
    path: str = Field(default="", max_length=1024, description="Folder inside the claim; empty is its root.")


class ResourceRequirements(ApiModel):
    """Compute resources, as in a container's resources."""

    requests: dict[LabelKey, Quantity] = Field(
        default_factory=dict, max_length=16, description="Least amount of each resource, for example cpu: 500m."
    )
    limits: dict[LabelKey, Quantity] = Field(
        default_factory=dict, max_length=16, description="Greatest amount of each resource, for example memory: 16Gi."
    )


class StageState(StrEnum):
    """State of one stage of an object."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SKIPPED = "Skipped"


class Stage(ApiModel):
    """One stage of an object's life, as users follow it."""

    name: str = Field(max_length=63, description="Stage, for example relocate, train or evaluate.")
    state: StageState = Field(description="Where the stage stands.")
    start_time: datetime | None = Field(default=None, description="When the stage first ran.")
    completion_time: datetime | None = Field(default=None, description="When the stage ended.")
    percent: int = Field(default=0, ge=0, le=100, description="Progress in percent.")
    attempts: int = Field(default=0, ge=0, description="How often the stage was started.")
    message: Message = Field(default="", description="What the stage does or why it stopped.")


class ProgressStatus(ApiModel):
    """Progress of the running stage."""

    percent: int = Field(default=0, ge=0, le=100, description="Progress in percent.")
    step: int | None = Field(default=None, ge=0, description="Optimizer steps done.")
    total_steps: int | None = Field(default=None, ge=0, description="Optimizer steps in all.")
    eta_seconds: int | None = Field(default=None, ge=0, description="Estimated seconds to the end of the stage.")
    tokens_per_second: float | None = Field(default=None, ge=0, description="Training tokens per second.")
    loss: float | None = Field(default=None, description="Latest training loss (mean NLL per token, nats).")
    updated_at: datetime | None = Field(default=None, description="When the program last reported.")


class StagedStatus(ApiModel):
    """Status of an object that goes through stages."""

    observed_generation: int = Field(default=0, ge=0, description="Generation that the status is about.")
    phase: str = Field(default="", description="Summary for display.")
    reason: Reason | None = Field(
        default=None, description="Why it waits or has failed, for display; unset while all goes well."
    )
    start_time: datetime | None = Field(default=None, description="When the first stage started.")
    completion_time: datetime | None = Field(default=None, description="When the last stage ended.")
    progress: ProgressStatus | None = Field(default=None, description="Progress of the running stage.")
    stages: list[Stage] = Field(
        default_factory=list,
        max_length=16,
        description="Stages in order.",
        json_schema_extra=keyed_by("name"),
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=16,
        description="Conditions.",
        json_schema_extra=keyed_by("type"),
    )
    warnings: list[Message] = Field(
        default_factory=list,
        max_length=32,
        description="What a careful reader should know, for example an unpinned source.",
    )
