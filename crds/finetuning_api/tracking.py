"""Tracking: a job as one run of an MLflow server, where runs of many jobs are compared."""

from enum import StrEnum

from pydantic import Field

from finetuning_api import patterns
from finetuning_api.base import ApiModel, Message, SecretRef, Url


class TrackingSpec(ApiModel):
    """The MLflow server that a job is written to, as one run, when it has ended."""

    mlflow_uri: str = Field(
        max_length=512, pattern=patterns.HTTP_ADDRESS.regex, description="Address of an MLflow server."
    )
    experiment: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Name of the experiment, which is made where it is not there; unset is MLflow's own, Default.",
    )
    run_name: str | None = Field(
        default=None, min_length=1, max_length=250, description="Name of the run; unset is the name of the job."
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret that may write there: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and"
        " MLFLOW_TRACKING_PASSWORD.",
    )
    weights: bool = Field(
        default=False,
        description="Store the adapter, or what else was trained, with the run; false stores reports and provenance.",
    )


class TrackingState(StrEnum):
    """What became of the run."""

    PENDING = "Pending"
    DONE = "Done"
    FAILED = "Failed"


class TrackingStatus(ApiModel):
    """The run of a job. It never changes anything else of its job."""

    name: str = Field(max_length=63, description="Name of its step, which follows from what spec.tracking asks for.")
    mlflow_uri: str = Field(max_length=512, description="Address of the MLflow server.")
    state: TrackingState = Field(default=TrackingState.PENDING, description="Where it stands.")
    experiment_id: str | None = Field(default=None, max_length=256, description="Experiment that the run is in.")
    run_id: str | None = Field(default=None, max_length=256, description="The run.")
    url: Url = Field(default="", description="Where a browser shows the run; empty until it is written.")
    message: Message = Field(default="", description="Why it is not written, or not yet, or what it lacks.")
