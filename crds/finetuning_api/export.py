"""Exports: what is made of the result of a job for others to use, and where it is pushed to."""

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from finetuning_api import patterns
from finetuning_api.base import ApiModel, CelRule, Digest, Message, Name, SecretRef
from finetuning_api.sources import SourceRef

MOST_EXPORTS = 16


class ExportFormat(StrEnum):
    """What an export holds."""

    MERGED = "merged"
    ADAPTER = "adapter"


class ExportSpec(ApiModel):
    """One export of the result of a job."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!has(self.format) || self.format != 'adapter' || has(self.to)",
            message="the adapter lies on its own claim already; set to, or use format merged",
            field="to",
        ),
        CelRule(
            rule="has(self.to) || (!has(self.revision) && !has(self.endpoint) && !has(self.secretRef))",
            message="revision, endpoint and secretRef are about where an export is pushed to; set to as well",
            field="to",
        ),
    )

    name: Name = Field(description="Name of the export; what failed is tried again under another one.")
    format: ExportFormat = Field(
        default=ExportFormat.MERGED,
        description="merged: one model, adapter and base model added up in 32 bits, which needs no PEFT; adapter: the"
        " adapter as it was trained. What method full makes is a model in both.",
    )
    to: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        pattern=patterns.DESTINATION.regex,
        description="Where it is pushed to: a registry, or a model hub; unset leaves it on a claim of the job.",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        pattern=patterns.REVISION.regex,
        description="Branch of the hub (unset is main), or tag of the registry (unset is that in to, or latest).",
    )
    endpoint: str | None = Field(
        default=None,
        max_length=512,
        pattern=patterns.HTTP_ADDRESS.regex,
        description="Address of a private hub or registry in place of the public one.",
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret that may write there: HF_TOKEN, or USERNAME and PASSWORD or .dockerconfigjson.",
    )
    after_gate: bool = Field(
        default=True, description="Export only what passed the gate, where there is one; false exports in any case."
    )

    @property
    def destination(self) -> SourceRef | None:
        """Where it is pushed to, as the source that it will be afterwards; None where it stays."""
        if self.to is None:
            return None
        return SourceRef(source=self.to, revision=self.revision, endpoint=self.endpoint, secret_ref=self.secret_ref)


class ExportState(StrEnum):
    """What became of an export."""

    PENDING = "Pending"
    DONE = "Done"
    FAILED = "Failed"
    SKIPPED = "Skipped"


class ExportStatus(ApiModel):
    """One export. It never changes anything else of its job."""

    name: Name = Field(description="The export.")
    format: ExportFormat = Field(description="What it holds.")
    to: str | None = Field(default=None, max_length=512, description="Where it is pushed to.")
    state: ExportState = Field(default=ExportState.PENDING, description="Where it stands.")
    claim_name: str | None = Field(default=None, max_length=253, description="Claim that holds it.")
    path: str | None = Field(default=None, max_length=1024, description="Folder inside the claim.")
    digest: Digest | None = Field(default=None, description="Digest of the folder.")
    size_bytes: int | None = Field(default=None, ge=0, alias="bytes", description="Size in bytes.")
    pushed_revision: str | None = Field(
        default=None, max_length=256, description="Digest of the manifest, or commit, that was pushed."
    )
    message: Message = Field(default="", description="Why it is not done, or not yet.")
