"""Relocation: bytes brought onto a volume once, for every job that needs them."""

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from finetuning_api.base import (
    INT32_MAX,
    ApiModel,
    ClaimRef,
    Digest,
    Mutability,
    Name,
    Resource,
    StagedStatus,
)
from finetuning_api.finetuningjob import VolumeSpec
from finetuning_api.sources import SourceRef


class RelocationSpec(SourceRef):
    """What to bring. The object is named after the identity of these bytes."""

    mutability: ClassVar[Mutability | None] = Mutability(
        changeable=("ttlSecondsAfterUnused",),
        advice="create a new Relocation: its name is the identity of its bytes",
    )

    profile: Name = Field(default="default", description="Storage profile of the installation.")
    volume: VolumeSpec = Field(default_factory=VolumeSpec, description="Claim of the artifact.")
    ttl_seconds_after_unused: int | None = Field(
        default=None,
        ge=0,
        le=INT32_MAX,
        description="Seconds after the last use when the artifact may be deleted; unset keeps it.",
    )
    backoff_limit: int = Field(default=3, ge=0, le=100, description="Retries after an environment fault.")


class RelocationPhase(StrEnum):
    """Summary of a relocation for display only."""

    PENDING = "Pending"
    MEASURING = "Measuring"
    RELOCATING = "Relocating"
    CONVERTING = "Converting"
    READY = "Ready"
    FAILED = "Failed"


class RelocationArtifact(ApiModel):
    """The finished artifact."""

    claim: ClaimRef = Field(description="Folder that holds it.")
    digest: Digest = Field(description="Digest over the sorted (path, sha256) list of its files.")
    size_bytes: int = Field(ge=0, alias="bytes", description="Size in bytes.")
    files: int = Field(ge=0, description="Number of files.")
    format: str = Field(default="", max_length=63, description="What it is, for example safetensors or files.")
    resolved_revision: str | None = Field(default=None, max_length=256, description="Revision that was brought.")


class RelocationStatus(StagedStatus):
    """What became of the relocation."""

    phase: RelocationPhase = Field(default=RelocationPhase.PENDING, description="Summary for display.")
    measured_bytes: int | None = Field(default=None, ge=0, description="Bytes that the source announces.")
    resolved_revision: str | None = Field(
        default=None, max_length=256, description="Revision that was measured; every attempt brings this one."
    )
    transferred_bytes: int | None = Field(default=None, ge=0, description="Bytes that came over the network.")
    artifact: RelocationArtifact | None = Field(default=None, description="The finished artifact.")
    last_used_time: datetime | None = Field(
        default=None, description="Since when nothing uses it; set only where ttlSecondsAfterUnused is."
    )


class Relocation(Resource):
    """Bring bytes onto a volume once, verified, for every job that needs them."""

    kind: Literal["Relocation"] = "Relocation"
    spec: RelocationSpec = Field(description="What to bring.")
    status: RelocationStatus = Field(default_factory=RelocationStatus, description="What became of it.")
