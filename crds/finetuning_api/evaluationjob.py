"""EvaluationJob: candidates compared on the same rows, with intervals and a gate."""

from typing import ClassVar, Literal

from pydantic import Field

from finetuning_api.base import (
    SHORT_NAME,
    ApiModel,
    CelRule,
    ClaimRef,
    Mutability,
    Name,
    Resource,
    ResourceRequirements,
    StagedStatus,
    keyed_by,
)
from finetuning_api.dataset import DatasetSpec
from finetuning_api.finetuningjob import (
    EvaluationOptions,
    JobPhase,
    PodOptions,
    RunOptions,
    StorageSpec,
    completions_rule,
)
from finetuning_api.metrics import EvaluationRow, GateResult, Verdict
from finetuning_api.sources import SourceRef


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
        *EvaluationOptions.cel_rules,
        CelRule(
            rule="self.gate.all(g, self.candidates.exists(c, c.name == (has(g.against) ? g.against : 'base')))",
            message="a gate rule's against names no candidate",
            field="gate",
        ),
        CelRule(
            rule="self.gate.size() == 0 || self.candidates.exists(c, c.name == 'tuned')",
            message="a gate judges the candidate named tuned; add one",
            field="gate",
        ),
        completions_rule("self.metrics", unless="false"),
    )

    mutability: ClassVar[Mutability | None] = Mutability(
        changeable=("suspend", "ttlSecondsAfterFinished"), advice="create a new EvaluationJob with another name"
    )

    candidates: list[CandidateSpec] = Field(
        min_length=1,
        max_length=8,
        description="Models to compare.",
        json_schema_extra=keyed_by("name"),
    )
    dataset: DatasetSpec = Field(description="Data; only its held-out rows are evaluated.")
    output: ClaimRef | None = Field(default=None, description="Where the report is written; unset makes a small claim.")
    resources: ResourceRequirements = Field(default_factory=ResourceRequirements, description="Compute resources.")
    pod: PodOptions = Field(default_factory=PodOptions, description="Placement and environment of the pod.")
    storage: StorageSpec = Field(default_factory=StorageSpec, description="Volumes.")


class EvaluationJobStatus(StagedStatus):
    """What became of the evaluation."""

    phase: JobPhase = Field(default=JobPhase.PENDING, description="Summary for display.")
    evaluation: list[EvaluationRow] = Field(
        default_factory=list,
        max_length=32,
        description="Results.",
        json_schema_extra=keyed_by("metric"),
    )
    verdict: Verdict | None = Field(default=None, description="Outcome of the gate; unset without rules.")
    gates: list[GateResult] = Field(default_factory=list, max_length=16, description="Outcome of each rule.")
    report: ClaimRef | None = Field(default=None, description="Folder of the report.")


class EvaluationJob(Resource):
    """Compare models on the same held-out rows."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (*Resource.cel_rules, SHORT_NAME)

    kind: Literal["EvaluationJob"] = "EvaluationJob"
    spec: EvaluationJobSpec = Field(description="What to do.")
    status: EvaluationJobStatus = Field(default_factory=EvaluationJobStatus, description="What became of it.")
