"""What an EvaluationJob of mode predict runs, where that writes, and what the status tells of it."""

from finetuning_api.base import ClaimRef
from finetuning_api.evaluationjob import EvaluationJob, EvaluationJobSpec, PredictionsArtifact
from finetuning_api.runconfig import (
    DEFAULT_PREDICTED_TOKENS,
    CandidateInput,
    DatasetInput,
    JobIdentity,
    PredictConfig,
    PredictResult,
)
from finetuning_operator.reconcile.plan import Volume

_COMPLETIONS_BYTES = 2**30
_MARGIN = 2
"""A prompt is longer than the columns that are put into it: templates and JSON add to them."""


def predict_config(
    job: EvaluationJob, *, candidates: tuple[CandidateInput, ...], dataset: DatasetInput, output_path: str
) -> PredictConfig:
    """Return what the program is told."""
    spec, metadata = job.spec, job.metadata
    return PredictConfig(
        job=JobIdentity(kind=job.kind, name=metadata.name, namespace=metadata.namespace, uid=metadata.uid),
        candidates=candidates,
        dataset=dataset,
        limit=spec.limit,
        max_new_tokens=spec.generation.max_new_tokens or DEFAULT_PREDICTED_TOKENS,
        stop=tuple(spec.generation.stop),
        output_path=output_path,
    )


def predictions_volume(name: str, spec: EvaluationJobSpec, *, dataset_bytes: int) -> Volume:
    """Return the claim for predictions: as large as the user says, else by the prompts, which each candidate repeats.

    How many completions there will be is not known before the data is read, so a gigabyte is added for them; at the end
    they lie there twice, as they were kept and as they are told.
    """
    return Volume(
        name=name,
        spec=spec.storage.adapter,
        profile=spec.storage.profile,
        size_bytes=_COMPLETIONS_BYTES + _MARGIN * len(spec.candidates) * dataset_bytes,
    )


def predictions_artifact(place: ClaimRef, result: PredictResult) -> PredictionsArtifact:
    """Return what the status tells of finished predictions."""
    return PredictionsArtifact(
        claim_name=place.claim_name,
        path=place.path,
        rows=result.rows,
        tokens=result.tokens,
        digest=result.digest,
        size_bytes=result.size_bytes,
    )


def idle_in_predict(spec: EvaluationJobSpec) -> tuple[str, ...]:
    """Return a warning of metrics that were asked for where none is computed."""
    if spec.metrics == EvaluationJobSpec.model_fields["metrics"].get_default(call_default_factory=True):
        return ()
    return ("spec.metrics: without effect in mode predict, which computes none",)
