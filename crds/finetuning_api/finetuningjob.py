"""FineTuningJob: one object from data to a served, evaluated adapter."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetuning_api import patterns
from finetuning_api.base import (
    A_SET,
    INT32_MAX,
    SHORT_NAME,
    ApiModel,
    CelRule,
    Digest,
    LabelKey,
    LabelValue,
    Mutability,
    Name,
    ObjectName,
    Quantity,
    Resource,
    ResourceRequirements,
    SecretRef,
    StagedStatus,
    Url,
    keyed_by,
)
from finetuning_api.custom import CustomMetricSpec, TaskSpec
from finetuning_api.dataset import DatasetSpec, OverlongPolicy, learned_prompt_rule
from finetuning_api.deepspeed import DeepSpeedSpec
from finetuning_api.export import MOST_EXPORTS, ExportSpec, ExportStatus
from finetuning_api.metrics import GROUPS, EvaluationRow, GateRule, Metric, RequestedMetric, Verdict
from finetuning_api.notification import MOST_NOTIFICATIONS, NotificationSpec, NotificationStatus
from finetuning_api.pod import Affinity, ExtraVolume
from finetuning_api.script import ScriptSpec
from finetuning_api.sources import SourceRef
from finetuning_api.tensorboard import TensorBoardSpec, TensorBoardStatus
from finetuning_api.tracking import TrackingSpec, TrackingStatus
from finetuning_api.tuning import TuningSpec, TuningStatus


class MethodType(StrEnum):
    """How the weights are adapted."""

    LORA = "lora"
    QLORA = "qlora"
    FULL = "full"


class MethodSpec(ApiModel):
    """Which parameters are trained."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.type != 'full' || (!self.dora && !self.rslora)",
            message="dora and rslora are variants of lora; type full trains all weights",
            field="type",
        ),
    )

    type: MethodType = Field(default=MethodType.LORA, description="lora, qlora (4-bit base, needs a GPU) or full.")
    rank: int = Field(default=16, ge=1, le=1024, description="Rank r of the LoRA matrices.")
    alpha: float = Field(default=32, gt=0, le=8192, description="LoRA scaling numerator: the update is alpha/r * BA.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the input of the LoRA matrices.")
    target_modules: str = Field(
        default="all-linear",
        min_length=1,
        max_length=1024,
        pattern=patterns.MODULES.regex,
        description="all-linear, or names of modules separated by commas, for example q_proj,v_proj.",
    )
    dora: bool = Field(default=False, description="Weight-decomposed LoRA (DoRA).")
    rslora: bool = Field(default=False, description="Rank-stabilised scaling alpha/sqrt(r) (rsLoRA).")


class Schedule(StrEnum):
    """Course of the learning rate after warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


class Objective(StrEnum):
    """What is learned from the rows."""

    SUPERVISED = "supervised"
    DPO = "dpo"


class Precision(StrEnum):
    """Number format of the frozen weights and the activations."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class EarlyStoppingSpec(ApiModel):
    """When a training ends before its last step; the weights with the lowest held-out loss are its result then."""

    patience: int = Field(
        default=3, ge=1, le=10_000, description="Evaluations of the held-out loss in a row that find no better one."
    )
    min_delta: float = Field(
        default=0.0, ge=0, le=1000, description="A loss is better when it is lower by more than this (nats a token)."
    )


class TrainingSpec(ApiModel):
    """The optimisation."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!has(self.microBatchSize) || self.microBatchSize <= self.batchSize",
            message="microBatchSize is a part of batchSize and cannot be larger",
            field="microBatchSize",
        ),
    )

    objective: Objective = Field(
        default=Objective.SUPERVISED,
        description="supervised: to write the completion; dpo: to prefer it to dataset.rejected (direct preference"
        " optimisation, through TRL).",
    )
    preference_beta: float = Field(
        default=0.1,
        gt=0,
        le=100,
        description="beta of dpo: the greater it is, the nearer the result stays to the base model.",
    )
    epochs: float = Field(default=3, gt=0, le=1000, description="Passes over the training rows.")
    max_steps: int | None = Field(
        default=None, ge=1, le=100_000_000, description="Optimizer steps at most; unset follows epochs."
    )
    learning_rate: float = Field(default=2.0e-4, gt=0, le=1, description="Peak learning rate of AdamW.")
    schedule: Schedule = Field(default=Schedule.COSINE, description="Course of the learning rate after warm-up.")
    warmup_ratio: float = Field(default=0.03, ge=0, le=1, description="Share of the steps with a rising learning rate.")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled weight decay of AdamW.")
    max_grad_norm: float = Field(default=1.0, gt=0, le=1_000_000, description="Gradients are clipped to this L2 norm.")
    batch_size: int = Field(default=16, ge=1, le=65536, description="Samples per optimizer step, over all workers.")
    micro_batch_size: int | None = Field(
        default=None, ge=1, le=65536, description="Samples per forward pass; unset is planned from memory."
    )
    max_length: int = Field(default=1024, ge=8, le=1_048_576, description="Tokens per sample at most.")
    overlong: OverlongPolicy = Field(
        default=OverlongPolicy.TRUNCATE, description="What happens to rows with more than maxLength tokens."
    )
    max_lost_rows: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Greatest share of rows that may be dropped or left without a supervised token.",
    )
    seed: int = Field(default=42, ge=0, le=INT32_MAX, description="Seed of initialisation and data order.")
    precision: Precision = Field(
        default=Precision.AUTO, description="fp32, bf16, or auto: bf16 where the hardware is measured to be faster."
    )
    evaluate_every_steps: int | None = Field(
        default=None,
        ge=1,
        le=INT32_MAX,
        description="Steps between evaluations of the held-out loss; unset is once an epoch.",
    )
    early_stopping: EarlyStoppingSpec | None = Field(
        default=None,
        description="Stop when the held-out loss falls no more, and keep the weights of its lowest; unset trains to the"
        " last step and keeps the last.",
    )
    checkpoint_every_steps: int = Field(
        default=100, ge=1, le=INT32_MAX, description="Optimizer steps between checkpoints."
    )
    keep_checkpoints: int = Field(default=2, ge=1, le=100, description="Checkpoints that are kept.")


class ParallelStrategy(StrEnum):
    """How workers share the work."""

    AUTO = "auto"
    DDP = "ddp"
    FSDP = "fsdp"
    DEEPSPEED = "deepspeed"


class ParallelismSpec(ApiModel):
    """How many processes train together."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!has(self.deepspeed) || self.strategy == 'deepspeed'",
            message="parallelism.deepspeed has settings of the strategy deepspeed: set strategy to deepspeed, or remove"
            " them",
            field="strategy",
        ),
        CelRule(
            rule="!has(self.deepspeed) || self.deepspeed.offload == 'none'"
            " || self.workers * self.processesPerWorker > 1",
            message="one process trains without DeepSpeed, which would offload: set workers or processesPerWorker to 2"
            " or more, or remove offload",
            field="deepspeed.offload",
        ),
    )

    workers: int = Field(
        default=1, ge=1, le=1024, description="Pods that train together; one machine (finetune run) is one worker."
    )
    processes_per_worker: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes in each pod, one an accelerator; without accelerators they share the cores.",
    )
    strategy: ParallelStrategy = Field(
        default=ParallelStrategy.AUTO,
        description="ddp (also auto): each process has the whole model; fsdp: weights and moments are divided;"
        " deepspeed: what its stage says is divided, and can lie in the memory of the host.",
    )
    deepspeed: DeepSpeedSpec | None = Field(
        default=None, description="Settings of the strategy deepspeed; unset is its stage 2."
    )


class AccessMode(StrEnum):
    """Access modes of a persistent volume."""

    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_ONLY_MANY = "ReadOnlyMany"
    READ_WRITE_MANY = "ReadWriteMany"
    READ_WRITE_ONCE_POD = "ReadWriteOncePod"


class VolumeSpec(ApiModel):
    """What a claim looks like; unset fields come from the storage profile."""

    size: Quantity | None = Field(default=None, description="Size of the claim; unset is measured or planned.")
    storage_class_name: ObjectName | None = Field(default=None, description="Storage class of the claim.")
    access_modes: list[AccessMode] = Field(
        default_factory=list,
        max_length=4,
        description="Access modes of the claim.",
        json_schema_extra=A_SET,
    )


class RetentionPolicy(StrEnum):
    """What happens to the adapter's claim when the job is deleted."""

    DELETE = "Delete"
    RETAIN = "Retain"
    TRASH = "Trash"


class StorageSpec(ApiModel):
    """Volumes of the job."""

    profile: Name = Field(default="default", description="Storage profile of the installation.")
    dataset: VolumeSpec = Field(default_factory=VolumeSpec, description="Claim of the data set.")
    model: VolumeSpec = Field(default_factory=VolumeSpec, description="Claims of base model, tokenizer and reference.")
    adapter: VolumeSpec = Field(default_factory=VolumeSpec, description="Claim of adapter, checkpoints and report.")
    retention: RetentionPolicy = Field(
        default=RetentionPolicy.DELETE, description="What happens to the adapter when the job is deleted."
    )


StopText = Annotated[str, Field(min_length=1, max_length=256)]
"""A text that ends a completion."""


class GenerationSpec(ApiModel):
    """Greedy decoding for metrics on generated text."""

    max_new_tokens: int | None = Field(
        default=None, ge=1, le=32768, description="Tokens per completion at most; unset is planned from the references."
    )
    stop: list[StopText] = Field(default_factory=list, max_length=16, description="Texts that end a completion.")


class EvaluationOptions(ApiModel):
    """What is measured and what decides; shared by FineTuningJob and EvaluationJob."""

    metrics: list[RequestedMetric] = Field(
        default=[RequestedMetric.PERPLEXITY, RequestedMetric.COMPLETION_PERPLEXITY],
        min_length=1,
        max_length=32,
        description="Metrics to compute on the held-out rows.",
        json_schema_extra=A_SET,
    )
    gate: list[GateRule] = Field(
        default_factory=list, max_length=16, description="Rules that the tuned candidate must pass."
    )
    limit: int | None = Field(
        default=None, ge=1, le=1_000_000_000, description="Evaluate at most this many held-out rows."
    )
    max_length: int = Field(default=1024, ge=8, le=1_048_576, description="Tokens per scoring window at most.")
    generation: GenerationSpec = Field(default_factory=GenerationSpec, description="Decoding.")
    bootstrap_samples: int = Field(
        default=10_000, ge=100, le=1_000_000, description="Resamples behind each 95 % interval."
    )
    seed: int = Field(default=42, ge=0, le=INT32_MAX, description="Seed of the resampling.")
    custom: list[CustomMetricSpec] = Field(
        default_factory=list,
        max_length=8,
        description="Metrics of your own, each a function in a Python file; custom in metrics stands for all of them.",
        json_schema_extra=keyed_by("name"),
    )
    tasks: list[TaskSpec] = Field(
        default_factory=list,
        max_length=8,
        description="Tasks of your own in the format of lm-evaluation-harness, their data in the same folder; tasks in"
        " metrics stands for all of them.",
        json_schema_extra=keyed_by("name"),
    )


_ROUGE = [metric.value for metric in RequestedMetric.ROUGE.metrics()]


def custom_metric_rule(*, unless: str = "false") -> CelRule:
    """Return the rule that metrics of one's own and what computes them come together."""
    return CelRule(
        rule=f"{unless} || ('custom' in self.metrics) == (self.custom.size() > 0)",
        message="custom needs both: the word in metrics, and under custom the files that compute such metrics",
        field="custom",
    )


def tasks_rule(*, unless: str = "false") -> CelRule:
    """Return the rule that tasks of one's own and the folders that hold them come together."""
    return CelRule(
        rule=f"{unless} || ('tasks' in self.metrics) == (self.tasks.size() > 0)",
        message="tasks needs both: the word in metrics, and under tasks the folders with their files",
        field="tasks",
    )


def gated_metrics_rule(*, unless: str = "false") -> CelRule:
    """Return the rule that a gate decides by what is evaluated."""
    names, what_to_do = "gate names a metric that is not evaluated", "add it to metrics, or your own to custom or tasks"
    told = f"'one after gate[{_TOLD_RULES - 1}]'"
    for place in reversed(range(_TOLD_RULES)):
        metric = f"self.gate[{place}].metric"
        wrong = f"self.gate.size() > {place} && !({_evaluated(metric)})"
        told = f"{wrong} ? 'gate[{place}] is ' + {metric} : {told}"
    return CelRule(
        rule=f"{unless} || self.gate.all(g, {_evaluated('g.metric')})",
        message=f"{names}; {what_to_do}",
        message_expression=f"'{names}: ' + ({told}) + '; {what_to_do}'",
        field="gate",
    )


_TOLD_RULES = 4
"""Of a gate, those that a message can name. CEL does not know where in a list it is, and what looks for the first of
all would cost an API server more than it allows."""


def _evaluated(metric: str) -> str:
    """Return in CEL whether a metric is evaluated."""
    return (
        f"({metric} in self.metrics && !({metric} in {list(GROUPS)}))"
        f" || ({metric} in {_ROUGE} && 'rouge' in self.metrics) || self.custom.exists(c, c.name == {metric})"
        f" || self.tasks.exists(t, {metric}.startsWith(t.name + '.'))"
    )


_METRICS_OF_PLAIN_TEXT = [metric.value for metric in Metric if not metric.facts.needs_completions]
"""In CEL: a list of strings in single quotes, as Python writes it too."""


def completions_rule(metrics: str, *, unless: str) -> CelRule:
    """Return the rule that metrics on completions need data that has some; ``metrics`` is their place in CEL."""
    return CelRule(
        rule=f"{unless} || has(self.dataset.prompt) || has(self.dataset.messages)"
        f" || {metrics}.all(m, m in {_METRICS_OF_PLAIN_TEXT})",
        message="plain text has no completions to compare: set metrics to perplexity and bits-per-byte, or give"
        " dataset.prompt and dataset.completion",
        field=metrics.removeprefix("self."),
    )


class EvaluationSpec(EvaluationOptions):
    """Evaluation of a fine-tuning job."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        gated_metrics_rule(),
        custom_metric_rule(),
        tasks_rule(),
        CelRule(
            rule="self.gate.all(g, !has(g.against) || g.against == 'base'"
            " || (g.against == 'reference' && has(self.reference)) || g.against in self.jobRefs)",
            message="a gate rule's against is base, reference when evaluation.reference is set, or one of"
            " evaluation.jobRefs",
            field="gate",
        ),
        CelRule(
            rule="!self.jobRefs.exists(j, j in ['base', 'tuned', 'reference'])",
            message="a job is compared with under its own name, and base, tuned and reference are candidates already",
            field="jobRefs",
        ),
        CelRule(
            rule="self.enabled || self.jobRefs.size() == 0",
            message="the results of other jobs are compared by the evaluation; set enabled to true or remove jobRefs",
            field="jobRefs",
        ),
        CelRule(
            rule="self.enabled || self.gate.size() == 0",
            message="a gate is decided by the evaluation; set enabled to true or remove the gate",
            field="gate",
        ),
    )

    enabled: bool = Field(default=True, description="Evaluate after training.")
    reference: SourceRef | None = Field(
        default=None, description="A model to compare with, for example a larger one of the same family."
    )
    job_refs: list[Name] = Field(
        default_factory=list,
        max_length=4,
        description="Finished FineTuningJobs to compare with, each a candidate of its own name, on the same rows: is"
        " this result better than the last one? The job starts when they have ended.",
        json_schema_extra=A_SET,
    )


class CanaryShare(ApiModel):
    """The share of requests for a name that a tuned model answers; the base model, or another one, answers the rest."""

    name: Name = Field(description="Model name that requests use.")
    weight: int = Field(ge=0, le=100, description="Percent of its requests that the tuned model answers.")


class ServingSpec(ApiModel):
    """Serving of the result."""

    replicas: int = Field(default=1, ge=0, le=1024, description="Server pods.")
    after_gate: bool = Field(
        default=True,
        description="Serve only what passed the gate; false serves the base model as soon as it is there, and the"
        " adapter under the job's name as soon as it is trained.",
    )
    resources: ResourceRequirements | None = Field(
        default=None, description="Compute resources of each server pod; unset is the job's."
    )
    auth_secret_ref: SecretRef | None = Field(default=None, description="Secret with tokens; unset is public.")
    canary: CanaryShare | None = Field(
        default=None,
        description="A model name for which the adapter answers a share of the requests, and the base model the rest.",
    )
    expose: bool = Field(default=False, description="Answer outside the cluster as well, as an InferenceServer.")


class Toleration(ApiModel):
    """A toleration, as in a pod."""

    key: LabelKey | None = Field(default=None, description="Taint key; unset matches all.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How the value is compared.")
    value: LabelValue | None = Field(default=None, description="Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect; unset matches all."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, le=INT32_MAX, description="Seconds that NoExecute is tolerated."
    )


RESERVED_VARIABLES = ("HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
RESERVED_VARIABLE_PREFIXES = ("FINETUNING_", "KUBEFLOW_", "SOURCE_SECRET_")


class EnvVar(ApiModel):
    """An environment variable of a workload pod."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule=f"!self.name.matches('^({'|'.join(RESERVED_VARIABLE_PREFIXES)})')"
            f" && !(self.name in [{', '.join(map(repr, RESERVED_VARIABLES))}])",
            message=f"{', '.join(RESERVED_VARIABLES)} and names that begin with"
            f" {', '.join(RESERVED_VARIABLE_PREFIXES)} are set by the operator; remove the variable",
            field="name",
        ),
    )

    name: str = Field(min_length=1, max_length=256, pattern=patterns.VARIABLE.regex, description="Name.")
    value: str = Field(default="", max_length=32768, description="Value; never a secret.")


Annotation = Annotated[str, Field(max_length=4096)]
"""Value of an annotation."""


def _own_keys_rule(field: str) -> CelRule:
    """Return the rule that labels or annotations leave those of the operator and of Jobs alone."""
    return CelRule(
        rule=f"self.{field}.all(key, !key.matches("
        "'^([^/]*[.])?finetuning[.]dev/|^app[.]kubernetes[.]io/managed-by$|^batch[.]kubernetes[.]io/'))",
        message=f"{field} of finetuning.dev and batch.kubernetes.io, and app.kubernetes.io/managed-by, are set by the"
        " operator; choose another name",
        field=field,
    )


class PodOptions(ApiModel):
    """Placement and environment of the pods that train, evaluate and serve."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        _own_keys_rule("labels"),
        _own_keys_rule("annotations"),
        CelRule(
            rule="self.volumes.all(one, self.volumes.exists_one(other, other.mountPath == one.mountPath))",
            message="two volumes cannot have the same mountPath",
            field="volumes",
        ),
    )

    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, max_length=32, description="Extra labels of the pods."
    )
    annotations: dict[LabelKey, Annotation] = Field(
        default_factory=dict, max_length=32, description="Extra annotations of the pods."
    )
    node_selector: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, max_length=32, description="Labels of suitable nodes."
    )
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32, description="Tolerated taints.")
    affinity: Affinity | None = Field(default=None, description="Affinity of the pods.")
    runtime_class_name: ObjectName | None = Field(default=None, description="RuntimeClass of the pods.")
    image_pull_secrets: list[SecretRef] = Field(
        default_factory=list,
        max_length=8,
        description="Secrets for private image registries.",
        json_schema_extra=keyed_by("name"),
    )
    env: list[EnvVar] = Field(
        default_factory=list,
        max_length=64,
        description="Extra environment variables.",
        json_schema_extra=keyed_by("name"),
    )
    volumes: list[ExtraVolume] = Field(
        default_factory=list,
        max_length=16,
        description="Extra volumes.",
        json_schema_extra=keyed_by("name"),
    )
    shared_memory_size: Quantity | None = Field(
        default=None, description="Size of /dev/shm, which counts as memory; unset is 2Gi at most."
    )


class RunOptions(ApiModel):
    """When a job runs, how long it may, and what becomes of it; shared by FineTuningJob and EvaluationJob."""

    suspend: bool = Field(default=False, description="Do not start, or stop after saving; false goes on.")
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=INT32_MAX,
        description="Seconds that the job may be active; it saves before it is stopped.",
    )
    pending_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=INT32_MAX,
        description="Seconds that a stage may wait for its pod to run; waiting its turn in a queue does not count.",
    )
    backoff_limit: int = Field(default=3, ge=0, le=100, description="Retries of a stage after an environment fault.")
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=INT32_MAX,
        description="Seconds after which a finished job is deleted with everything that it owns; unset keeps it.",
    )
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.")
    queue_name: Name | None = Field(default=None, description="Kueue LocalQueue that admits the job.")


MUTABLE_FINETUNINGJOB_FIELDS = (
    "suspend",
    "ttlSecondsAfterFinished",
    "serving.replicas",
    "serving.canary",
    "notifications",
    "exports",
    "tracking",
)
"""Fields of a FineTuningJob's spec that may change; every other one is fixed at creation."""


class FineTuningJobSpec(RunOptions):
    """What to fine-tune, on what, how, and what decides."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.method.type != 'qlora' || self.parallelism.strategy != 'fsdp'",
            message="qlora cannot be sharded with fsdp; use strategy ddp or deepspeed, or method lora",
            field="parallelism.strategy",
        ),
        CelRule(
            rule="!has(self.serving) || !self.serving.afterGate || self.evaluation.enabled",
            message="serving.afterGate needs an evaluation; set serving.afterGate to false or enable evaluation",
            field="serving.afterGate",
        ),
        CelRule(
            rule="!has(self.serving) || !has(self.serving.canary) || self.method.type != 'full'",
            message="method full makes a model of its own, which shares no server with the base model: remove"
            " serving.canary",
            field="serving.canary",
        ),
        CelRule(
            rule="!has(self.script) || (self.parallelism.workers == 1 && self.parallelism.processesPerWorker == 1)",
            message="a script is started once: set parallelism.workers and processesPerWorker to 1; it may start"
            " processes of its own",
            field="parallelism",
        ),
        CelRule(
            rule="!has(self.script) || !has(self.tuning)",
            message="what a script makes of its settings is not known here: remove tuning, or train without a script",
            field="tuning",
        ),
        CelRule(
            rule="(self.training.objective == 'dpo') == has(self.dataset.rejected) || has(self.script)",
            message="training.objective dpo and dataset.rejected belong together: set both, or none",
            field="training.objective",
        ),
        CelRule(
            rule="!has(self.script) || self.training.objective == 'supervised'",
            message="a script decides itself what it learns: remove training.objective",
            field="training.objective",
        ),
        completions_rule("self.evaluation.metrics", unless="!self.evaluation.enabled"),
        learned_prompt_rule(),
    )

    mutability: ClassVar[Mutability | None] = Mutability(
        changeable=MUTABLE_FINETUNINGJOB_FIELDS, advice="create a new FineTuningJob with another name"
    )

    preset: Name | None = Field(
        default=None,
        description="Preset of the installation, which gives method, training, resources, placement and queue where"
        " this job leaves them at their defaults; what came of it stands in status.preset.",
    )
    model: SourceRef = Field(description="Base model.")
    tokenizer: SourceRef | None = Field(default=None, description="Tokenizer; unset is the model's own.")
    dataset: DatasetSpec = Field(description="Data to train on and to evaluate with.")
    method: MethodSpec = Field(default_factory=MethodSpec, description="Which parameters are trained.")
    training: TrainingSpec = Field(default_factory=TrainingSpec, description="The optimisation.")
    script: ScriptSpec | None = Field(
        default=None,
        description="A program of your own that trains, told method and training; unset is the built-in training.",
    )
    tuning: TuningSpec | None = Field(
        default=None, description="Train several times with other numbers and keep the best; unset trains once."
    )
    parallelism: ParallelismSpec = Field(default_factory=ParallelismSpec, description="Workers and strategy.")
    resources: ResourceRequirements = Field(
        default_factory=ResourceRequirements, description="Compute resources of each worker."
    )
    pod: PodOptions = Field(default_factory=PodOptions, description="Placement and environment of the pods.")
    storage: StorageSpec = Field(default_factory=StorageSpec, description="Volumes.")
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec, description="What is measured and what decides.")
    serving: ServingSpec | None = Field(default=None, description="Serve the result; unset does not serve.")
    notifications: list[NotificationSpec] = Field(default_factory=list, max_length=16, description="Who is told.")
    exports: list[ExportSpec] = Field(
        default_factory=list,
        max_length=MOST_EXPORTS,
        description="What is made of the result for others, also when it is asked for after the end.",
        json_schema_extra=keyed_by("name"),
    )
    tracking: TrackingSpec | None = Field(
        default=None, description="MLflow server that the job is written to when it has ended; unset writes nowhere."
    )
    tensorboard: TensorBoardSpec | None = Field(
        default=None, description="Show the course of the training; unset shows none."
    )


class PresetPod(ApiModel):
    """Where the pods of a preset run."""

    node_selector: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, max_length=32, description="Labels of suitable nodes."
    )
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32, description="Tolerated taints.")
    runtime_class_name: ObjectName | None = Field(default=None, description="RuntimeClass of the pods.")


class PresetStorage(ApiModel):
    """The volumes of a preset."""

    profile: Name = Field(default="default", description="Storage profile of the installation.")


class Preset(ApiModel):
    """What an installation offers under a name: fields of a job, in the places that they have in its spec."""

    method: MethodSpec = Field(default_factory=MethodSpec, description="Which parameters are trained.")
    training: TrainingSpec = Field(default_factory=TrainingSpec, description="The optimisation.")
    resources: ResourceRequirements = Field(
        default_factory=ResourceRequirements, description="Compute resources of each worker."
    )
    pod: PresetPod = Field(default_factory=PresetPod, description="Placement of the pods.")
    storage: PresetStorage = Field(default_factory=PresetStorage, description="Volumes.")
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.")
    queue_name: Name | None = Field(default=None, description="Kueue LocalQueue that admits the job.")


class AppliedPreset(Preset):
    """What a job with a preset runs with: fixed when it was accepted, whatever becomes of the preset."""

    name: Name = Field(description="The preset.")


class JobPhase(StrEnum):
    """Summary of a job for display only: nothing is ever decided by it."""

    PENDING = "Pending"
    RELOCATING = "Relocating"
    PREPARING = "Preparing"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    PREDICTING = "Predicting"
    SERVING = "Serving"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class AdapterArtifact(ApiModel):
    """Where the adapter (or, for full fine-tuning, the model) lies."""

    claim_name: str = Field(max_length=253, description="Claim that holds it.")
    path: str = Field(max_length=1024, description="Folder inside the claim.")
    digest: Digest = Field(description="Digest of the folder.")
    size_bytes: int = Field(ge=0, alias="bytes", description="Size in bytes.")


class ModelArtifact(ApiModel):
    """Which base model was used."""

    relocation: str = Field(max_length=63, description="Relocation that brought it.")
    resolved_revision: str | None = Field(default=None, max_length=256, description="Revision that was relocated.")
    digest: Digest = Field(description="Digest of the folder.")


ColumnName = Annotated[str, Field(max_length=256)]


class DatasetArtifact(ApiModel):
    """Which data was used."""

    relocation: str = Field(max_length=63, description="Relocation that brought it.")
    rows: int | None = Field(default=None, ge=0, description="Rows that were read; unset until they were.")
    train_rows: int | None = Field(default=None, ge=0, description="Rows trained on.")
    test_rows: int | None = Field(default=None, ge=0, description="Rows held out.")
    columns: list[ColumnName] = Field(default_factory=list, max_length=256, description="Columns.")
    digest: Digest = Field(description="Digest of the folder.")


class JobArtifacts(ApiModel):
    """What the job used and made."""

    adapter: AdapterArtifact | None = Field(default=None, description="The result.")
    model: ModelArtifact | None = Field(default=None, description="Base model.")
    dataset: DatasetArtifact | None = Field(default=None, description="Data set.")


class ServingStatus(ApiModel):
    """Where the result is served."""

    url: Url = Field(default="", description="Address inside the cluster.")
    replicas: int | None = Field(
        default=None,
        ge=0,
        description="Server pods that spec.serving.replicas last asked for; the server may have been scaled since.",
    )


class FineTuningJobStatus(StagedStatus):
    """What became of the job."""

    phase: JobPhase = Field(default=JobPhase.PENDING, description="Summary for display.")
    preset: AppliedPreset | None = Field(
        default=None, description="What the job runs with by its preset; unset where it names none."
    )
    artifacts: JobArtifacts = Field(default_factory=JobArtifacts, description="What the job used and made.")
    tuning: TuningStatus | None = Field(default=None, description="What became of the trials; unset without tuning.")
    evaluation: list[EvaluationRow] = Field(
        default_factory=list,
        max_length=64,
        description="Results.",
        json_schema_extra=keyed_by("metric"),
    )
    verdict: Verdict | None = Field(default=None, description="Outcome of the gate; unset without rules.")
    serving: ServingStatus | None = Field(default=None, description="Where the result is served.")
    tensorboard: TensorBoardStatus | None = Field(default=None, description="Where the training can be watched.")
    exports: list[ExportStatus] = Field(
        default_factory=list,
        max_length=MOST_EXPORTS,
        description="What became of the exports.",
        json_schema_extra=keyed_by("name"),
    )
    tracking: TrackingStatus | None = Field(default=None, description="What became of the run that tells of the job.")
    notifications: list[NotificationStatus] = Field(
        default_factory=list,
        max_length=MOST_NOTIFICATIONS,
        description="What was told to whom, or is about to be.",
        json_schema_extra=keyed_by("name"),
    )


class FineTuningJob(Resource):
    """Fine-tune a model on data, evaluate the result, and serve it."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        *Resource.cel_rules,
        SHORT_NAME,
        CelRule(
            rule="!has(self.spec.serving) || !has(self.spec.serving.canary)"
            " || self.spec.serving.canary.name != self.metadata.name",
            message="the adapter is served under the job's own name: choose another one for the canary",
            field="spec.serving.canary.name",
        ),
        CelRule(
            rule="!(self.metadata.name in self.spec.evaluation.jobRefs)",
            message="a job cannot be compared with itself: name an earlier one",
            field="spec.evaluation.jobRefs",
        ),
    )

    kind: Literal["FineTuningJob"] = "FineTuningJob"
    spec: FineTuningJobSpec = Field(description="What to do.")
    status: FineTuningJobStatus = Field(default_factory=FineTuningJobStatus, description="What became of it.")

    @property
    def trains_whole_model(self) -> bool:
        """Whether the result is a model and no adapter, by the job's own method or its preset's."""
        method = self.status.preset.method if self.status.preset else self.spec.method
        return method.type is MethodType.FULL
