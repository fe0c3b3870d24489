"""TensorBoard: a look at the course of a training while it runs, and for some time afterwards."""

from pydantic import Field

from finetuning_api.base import INT32_MAX, ApiModel, Message, ResourceRequirements, Url


class TensorBoardSpec(ApiModel):
    """A TensorBoard on the event files of the job."""

    ttl_seconds_after_finished: int = Field(
        default=3600,
        ge=0,
        le=INT32_MAX,
        description="Seconds after the end of the job for which it stays; the event files stay with the adapter.",
    )
    resources: ResourceRequirements = Field(
        default_factory=ResourceRequirements, description="Compute resources of its pod."
    )


class TensorBoardStatus(ApiModel):
    """Where TensorBoard answers."""

    url: Url = Field(default="", description="Address inside the cluster; empty until it answers.")
    message: Message = Field(default="", description="What it waits for.")
