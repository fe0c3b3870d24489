"""EvaluationJob: candidates compared on the same rows, with intervals and a gate, or their completions written."""

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from finetuning_api.base import (
    SHORT_NAME,
    ApiModel,
    CelRule,
    ClaimRef,
    Digest,
    Mutability,
    Name,
    Resource,
    ResourceRequirements,
    StagedStatus,
    keyed_by,
)
from finetuning_api.dataset import DatasetSpec, learned_prompt_rule
from finetuning_api.finetuningjob import (
    EvaluationOptions,
    JobPhase,
    PodOptions,
    RunOptions,
    StorageSpec,
    completions_rule,
    custom_metric_rule,
    gated_metrics_rule,
    tasks_rule,
)
from finetuning_api.metrics import EvaluationRow, GateResult, Verdict
from finetuning_api.sources import SourceRef

_PREDICTS = "self.mode == 'predict'"
"""In CEL: what mode predict leaves out is refused by one rule, and judged by no other."""


class EvaluationMode(StrEnum):
    """What is done with the candidates."""

    EVALUATE = "evaluate"
    PREDICT = "predict"


class CandidateSpec(ApiModel):
    """One model to evaluate: a model, a model with an adapter, or the result of a job."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="has(self.model) != has(self.jobRef)",
            message="a candidate is either a model (with an optional adapter) or a jobRef",
            field="model",
        ),
        CelRule(
            rule="!has(self.adapter) || has(self.model)",
            message="an adapter needs the model that it was trained on",
            field="adapter",
        ),
    )

    name: Name = Field(description="Name in the table; base, tuned and reference have their own columns.")
    model: SourceRef | None = Field(default=None, description="Model to relocate.")
    tokenizer: SourceRef | None = Field(default=None, description="Tokenizer; unset is the model's own.")
    adapter: ClaimRef | None = Field(default=None, description="Adapter on a claim.")
    job_ref: Name | None = Field(default=None, description="Finished FineTuningJob whose result is the candidate.")


class EvaluationJobSpec(RunOptions, EvaluationOptions):
    """What to compare, on what."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        gated_metrics_rule(unless=_PREDICTS),
        custom_metric_rule(unless=_PREDICTS),
        tasks_rule(unless=_PREDICTS),
        CelRule(
            rule=f"{_PREDICTS}"
            " || self.gate.all(g, self.candidates.exists(c, c.name == (has(g.against) ? g.against : 'base')))",
            message="a gate rule's against names no candidate",
            field="gate",
        ),
        CelRule(
            rule=f"{_PREDICTS} || self.gate.size() == 0 || self.candidates.exists(c, c.name == 'tuned')",
            message="a gate judges the candidate named tuned; add one",
            field="gate",
        ),
        completions_rule("self.metrics", unless=_PREDICTS),
        learned_prompt_rule(unless=_PREDICTS),
        CelRule(
            rule="self.mode == 'evaluate' || self.gate.size() == 0",
            message="mode predict computes no metrics, so there is nothing to gate on; remove gate",
            field="gate",
        ),
        CelRule(
            rule="self.mode == 'evaluate' || has(self.dataset.prompt) || has(self.dataset.messages)",
            message="mode predict needs dataset.prompt or dataset.messages: what the candidates go on from",
            field="dataset",
        ),
    )

    mutability: ClassVar[Mutability | None] = Mutability(
        changeable=("suspend", "ttlSecondsAfterFinished"), advice="create a new EvaluationJob with another name"
    )

    mode: EvaluationMode = Field(
        default=EvaluationMode.EVALUATE,
        description="evaluate compares the candidates on the held-out rows; predict writes what every candidate makes"
        " of every row, held out or not, to a file: greedily, at most 256 tokens unless generation says otherwise.",
    )
    candidates: list[CandidateSpec] = Field(
        min_length=1,
        max_length=8,
        description="Models to compare.",
        json_schema_extra=keyed_by("name"),
    )
    dataset: DatasetSpec = Field(description="Data; only its held-out rows are evaluated, all of its rows predicted.")
    output: ClaimRef | None = Field(
        default=None, description="Where the report, or the predictions, are written; unset makes a claim for them."
    )
    resources: ResourceRequirements = Field(default_factory=ResourceRequirements, description="Compute resources.")
    pod: PodOptions = Field(default_factory=PodOptions, description="Placement and environment of the pod.")
    storage: StorageSpec = Field(default_factory=StorageSpec, description="Volumes.")


class PredictionsArtifact(ApiModel):
    """Where the predictions lie."""

    claim_name: str = Field(max_length=253, description="Claim that holds them.")
    path: str = Field(default="", max_length=1024, description="Folder inside the claim; predictions.jsonl is in it.")
    rows: int = Field(ge=0, description="Rows of the data; each has a line for every candidate.")
    tokens: int = Field(ge=0, description="Tokens that were generated.")
    digest: Digest = Field(description="Digest of the folder.")
    size_bytes: int = Field(ge=0, alias="bytes", description="Size in bytes.")


class EvaluationJobStatus(StagedStatus):
    """What became of the evaluation."""

    phase: JobPhase = Field(default=JobPhase.PENDING, description="Summary for display.")
    evaluation: list[EvaluationRow] = Field(
        default_factory=list,
        max_length=64,
        description="Results.",
        json_schema_extra=keyed_by("metric"),
    )
    verdict: Verdict | None = Field(default=None, description="Outcome of the gate; unset without rules.")
    gates: list[GateResult] = Field(default_factory=list, max_length=16, description="Outcome of each rule.")
    report: ClaimRef | None = Field(default=None, description="Folder of the report.")
    predictions: PredictionsArtifact | None = Field(default=None, description="What mode predict wrote.")


class EvaluationJob(Resource):
    """Compare models on the same held-out rows, or write what they make of every row."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (*Resource.cel_rules, SHORT_NAME)

    kind: Literal["EvaluationJob"] = "EvaluationJob"
    spec: EvaluationJobSpec = Field(description="What to do.")
    status: EvaluationJobStatus = Field(default_factory=EvaluationJobStatus, description="What became of it.")
