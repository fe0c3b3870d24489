"""What a program is told, and what it says at its end: the contract between the operator and the pods.

A program reads one RunConfig (JSON) from the file that ``FINETUNING_RUN_CONFIG`` names. Every path in it is a path that
the program sees. Secrets are never in it: they are environment variables that start with ``SECRET_ENV_PREFIX``.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

from finetuning_api.dataset import RowFormat
from finetuning_api.finetuningjob import GenerationSpec, MethodSpec, ParallelismSpec, TrainingSpec
from finetuning_api.metrics import EvaluationRow, GateResult, GateRule, Metric, OwnName, TaskName, Verdict
from finetuning_api.notification import NotificationEvent, NotificationType
from finetuning_api.reasons import Reason
from finetuning_api.sources import SourceRef
from finetuning_api.tuning import HalvingSpec, TuningSpec

RUN_CONFIG_ENV = "FINETUNING_RUN_CONFIG"
TERMINATION_LOG_ENV = "FINETUNING_TERMINATION_LOG"
DEFAULT_TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LOG_BYTES = 4096
PROGRESS_URL_ENV = "KUBEFLOW_TRAINER_SERVER_URL"
PROGRESS_TOKEN_ENV = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105  (a variable's name: it holds the path of a file)
EXTRA_CA_ENV = "FINETUNING_EXTRA_CA"
"""PEM file with authorities that a program trusts besides those of its image."""
PROGRESS_CA_ENV = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
SECRET_ENV_PREFIX = "SOURCE_SECRET_"  # noqa: S105  (a prefix of variable names)
WORKER_ENV = "FINETUNING_WORKER"
"""Which of the workers of a step a pod is, counted from 0."""
MASTER_ADDRESS_ENV, MASTER_PORT_ENV = "MASTER_ADDR", "MASTER_PORT"
"""Where the workers meet: names of torch.distributed."""
MANIFEST_NAME = "manifest.json"
HISTORY_NAME = "metrics.jsonl"
"""The course of a training, one JSON line a step, beside its checkpoints."""
PROVENANCE_NAME = "provenance.json"
"""What a result was made of, beside it."""


class ContractModel(BaseModel):
    """Base of the contract's types: camelCase JSON, unknown fields refused, because both sides are one release."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="forbid", frozen=True
    )

    def to_json(self) -> str:
        """Return the JSON that the other side reads."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2)


class JobIdentity(ContractModel):
    """The object that a program works for, for logs and provenance."""

    kind: str
    name: str
    namespace: str = "default"
    uid: str = ""


class Provenance(ContractModel):
    """Where an input came from, as it is recorded beside a result."""

    source: str
    resolved_revision: str | None = None
    digest: str


class ModelInput(ContractModel):
    """A relocated model with its tokenizer."""

    path: str
    tokenizer_path: str
    provenance: Provenance
    tokenizer_provenance: Provenance


class DatasetInput(ContractModel):
    """Relocated data and how its rows are rendered."""

    path: str
    rows: RowFormat
    provenance: Provenance


class ScriptInput(ContractModel):
    """A relocated program of the user, and how it is started."""

    path: str
    command: tuple[str, ...]
    provenance: Provenance


class RunConfigBase(ContractModel):
    """What every RunConfig holds."""

    job: JobIdentity


class MeasureConfig(RunConfigBase):
    """Ask a source how large it is, without a volume."""

    kind: Literal["measure"] = "measure"
    source: SourceRef
    source_mount: str | None = None
    """Folder where a configmap:// source is mounted."""
    stall_seconds: int = Field(default=60, ge=1)


class RelocateConfig(RunConfigBase):
    """Bring a source into a folder and make an artifact of it."""

    kind: Literal["relocate"] = "relocate"
    source: SourceRef
    source_mount: str | None = None
    """Folder where a configmap:// or pvc:// source is mounted."""
    destination: str
    """Folder of the artifact; for a conversion the folder of the raw bytes."""
    resolved_revision: str | None = None
    """Revision that the measurement resolved, so that both steps see the same bytes."""
    stall_seconds: int = Field(default=60, ge=1)
    """A transfer without one new byte for this long has stalled."""


class VerifyConfig(RunConfigBase):
    """Verify a user's own claim in place: its manifest where it has one, else hash the files once."""

    kind: Literal["verify"] = "verify"
    source: SourceRef
    path: str


class ConvertConfig(RunConfigBase):
    """Turn a relocated GGUF file into an artifact of safetensors, without network."""

    kind: Literal["convert"] = "convert"
    source: str
    """Artifact folder that holds the GGUF file; removed when the new artifact is complete."""
    destination: str
    provenance: Provenance


class ExportConfig(RunConfigBase):
    """Add an adapter to its base model and make one model of both, without network."""

    kind: Literal["export"] = "export"
    model: ModelInput
    adapter_path: str
    adapter_digest: str
    output_path: str
    """Folder of the merged model."""


class PushConfig(RunConfigBase):
    """Bring an artifact to a registry or a hub."""

    kind: Literal["push"] = "push"
    path: str
    digest: str
    """What the artifact must be; another one is not pushed."""
    destination: SourceRef
    """The source that it is afterwards."""
    stall_seconds: int = Field(default=60, ge=1)


class TrackConfig(RunConfigBase):
    """Write a job that has ended to an MLflow server, as one run."""

    kind: Literal["track"] = "track"
    uri: str
    experiment: str | None = None
    """None is the experiment that MLflow has from the beginning."""
    run_name: str
    secret: str | None = None
    """Name of the Secret, for messages."""
    failed: bool
    started_at: datetime
    finished_at: datetime
    parameters: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    checkpoint_path: str | None = None
    """Folder with the course of the training. Like the folders below it may be missing: a job can fail at any time."""
    adapter_path: str | None = None
    """Folder of the finished adapter artifact, and of its provenance."""
    report_path: str | None = None
    """Folder of the evaluation's results."""
    weights: bool = False
    """Whether the adapter artifact is stored as a whole."""


class TrainingInputs(RunConfigBase):
    """What preflight and training share: both must see exactly the same."""

    model: ModelInput
    dataset: DatasetInput
    method: MethodSpec
    training: TrainingSpec
    parallelism: ParallelismSpec = Field(default_factory=ParallelismSpec)
    script: ScriptInput | None = None
    """What trains; None is the built-in training."""
    cache_path: str
    """Folder for tokenised data, written by preflight, read by training."""


class CandidateInput(ContractModel):
    """One model to evaluate, with an optional adapter on it."""

    name: str
    model: ModelInput
    adapter_path: str | None = None
    adapter_digest: str | None = None


class CustomMetricInput(ContractModel):
    """The relocated file of a metric of the user's own, and the function in it."""

    name: OwnName
    path: str
    file: str
    function: str
    lower_is_better: bool = False
    provenance: Provenance


class TaskInput(ContractModel):
    """The relocated folder with a task of the user's own."""

    name: TaskName
    path: str
    provenance: Provenance


class EvaluationInputs(ContractModel):
    """What preflight and evaluation share: preflight finds what the evaluation could not compute."""

    candidates: tuple[CandidateInput, ...]
    metrics: tuple[Metric, ...]
    gate: tuple[GateRule, ...] = ()
    limit: int | None = None
    custom: tuple[CustomMetricInput, ...] = ()
    """What ``custom`` among the metrics stands for."""
    tasks: tuple[TaskInput, ...] = ()
    """What ``tasks`` among the metrics stands for."""


class PreflightConfig(TrainingInputs):
    """Check on the CPU everything that can be wrong before an accelerator is taken."""

    kind: Literal["preflight"] = "preflight"
    evaluation: EvaluationInputs | None = None
    """The evaluation that follows; the tuned candidate has its base model and no adapter yet. None without one."""
    tuning: TuningSpec | None = None
    """What trials will differ in: they are drawn here, and the dearest of them is checked."""
    output_path: str
    """Folder that training will write to; its free space is checked."""


class TrialInput(ContractModel):
    """Which of several trainings this is, and when it is given up for others."""

    number: int = Field(ge=0)
    folder: str
    """Folder of all trials: each has one of its own in it, named after its number."""
    halving: HalvingSpec | None = None
    """None trains to the end."""


class TrainConfig(TrainingInputs):
    """Train an adapter."""

    kind: Literal["train"] = "train"
    output_path: str
    """Folder of the finished adapter artifact."""
    checkpoint_path: str
    """Folder of checkpoints."""
    tensorboard_path: str | None = None
    """Folder of TensorBoard's event files; None writes none."""
    trial: TrialInput | None = None
    """Set where this training is one of several to choose from."""


class ChooseConfig(RunConfigBase):
    """Make the adapter of one trial that of the job, and remove all trials."""

    kind: Literal["choose"] = "choose"
    folder: str
    """Folder of all trials."""
    number: int = Field(ge=0)
    """The trial that was chosen."""
    digest: str
    """Of its adapter."""
    output_path: str
    """Folder that its adapter is moved to."""
    checkpoint_path: str
    """Folder that its course is moved to."""


class EvaluateConfig(RunConfigBase, EvaluationInputs):
    """Evaluate candidates on the held-out rows and decide the gate."""

    kind: Literal["evaluate"] = "evaluate"
    dataset: DatasetInput
    max_length: int = 1024
    generation: GenerationSpec = Field(default_factory=GenerationSpec)
    bootstrap_samples: int = 10_000
    seed: int = 42
    output_path: str
    """Folder of results.json, report.md, report.html and samples."""
    cache_path: str | None = None
    """Folder of scores that evaluations share and that stays; None keeps finished parts until the report is made."""


DEFAULT_PREDICTED_TOKENS = 256
"""Tokens of a predicted completion at most, where nobody says otherwise: there need not be references to plan from."""


class PredictConfig(RunConfigBase):
    """Write what every candidate makes of every row, in the order of the rows."""

    kind: Literal["predict"] = "predict"
    candidates: tuple[CandidateInput, ...]
    dataset: DatasetInput
    """Its split is not looked at: all rows are predicted, also where they hold no completion."""
    limit: int | None = None
    """Only the first rows, of those that the data set's own limit leaves."""
    max_new_tokens: int = Field(default=DEFAULT_PREDICTED_TOKENS, ge=1)
    stop: tuple[str, ...] = ()
    max_running: int = Field(default=16, ge=1, le=1024)
    """Completions that are generated at the same time."""
    output_path: str
    """Folder of predictions.jsonl."""


class PromptConfig(RunConfigBase):
    """Answer one prompt with every candidate, side by side."""

    kind: Literal["prompt"] = "prompt"
    candidates: tuple[CandidateInput, ...]
    prompt: str
    chat: bool = False
    """Render the prompt as one user message with the tokenizer's chat template."""
    max_new_tokens: int = Field(default=128, ge=1)
    stop: tuple[str, ...] = ()


class AdapterInput(ContractModel):
    """An adapter to serve under a name of its own."""

    name: str
    path: str
    digest: str | None = None
    awaited: bool = False
    """Whether the folder may be incomplete when a server starts: it is served from the moment that it is complete."""


class CanaryInput(ContractModel):
    """A name that stands for two served models: an adapter gets a share of its requests, the stable one the rest."""

    name: str
    stable: str
    """Served name of the base model or of an adapter."""
    adapter: str
    weight: int = Field(ge=0, le=100)
    """Percent of the requests that the adapter answers."""


class ServeConfig(RunConfigBase):
    """Answer requests with a base model and its adapters, each under its own name."""

    kind: Literal["serve"] = "serve"
    model: ModelInput
    served_name: str
    """Name by which requests ask for the base model without an adapter."""
    adapters: tuple[AdapterInput, ...] = ()
    canary: CanaryInput | None = None
    host: str = "0.0.0.0"  # noqa: S104  (in a pod; who may reach it is decided by the network policy)
    port: int = Field(default=8000, ge=1, le=65535)
    tokens_path: str | None = None
    """Folder with a file for each accepted token, named after its holder: the token in the first line and, optionally,
    ``expires: <RFC 3339 time>`` in the second. It is read again when it changes. None lets everybody ask."""
    max_running: int = Field(default=16, ge=1, le=1024)
    """Requests that generate at the same time."""
    max_waiting: int = Field(default=64, ge=0, le=65536)
    """Requests that wait for their turn; one more is refused with status 429."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    request_seconds: int = Field(default=600, ge=1)
    """How long one request may take, its wait included."""
    drain_seconds: int = Field(default=45, ge=0)
    """How long running requests may go on after the server was asked to end."""
    log_prompts: bool = False


class NotifyConfig(RunConfigBase):
    """Tell somebody what became of a job. Where they are reached is in the Secret alone."""

    kind: Literal["notify"] = "notify"
    type: NotificationType
    secret: str
    """Name of the Secret, for messages."""
    id: str
    """The same each time that this notification is sent: receivers can tell repetitions by it."""
    event: NotificationEvent
    time: datetime
    phase: str = ""
    reason: Reason | None = None
    """Why the job failed."""
    message: str = ""
    """What happened, and what to do, as sentences."""
    evaluation: tuple[EvaluationRow, ...] = ()
    verdict: Verdict | None = None
    gate: str = ""
    """The numbers behind the verdict, as a sentence."""
    url: str = ""
    """Where the result is served, inside the cluster."""


RunConfig = Annotated[
    MeasureConfig
    | RelocateConfig
    | VerifyConfig
    | ConvertConfig
    | ExportConfig
    | PushConfig
    | TrackConfig
    | PreflightConfig
    | TrainConfig
    | ChooseConfig
    | EvaluateConfig
    | PredictConfig
    | PromptConfig
    | ServeConfig
    | NotifyConfig,
    Field(discriminator="kind"),
]
RUN_CONFIG: TypeAdapter[RunConfig] = TypeAdapter(RunConfig)
"""Parses a RunConfig of any kind."""


class MeasureResult(ContractModel):
    """What a source announces."""

    kind: Literal["measure"] = "measure"
    size_bytes: int | None = Field(default=None, ge=0)
    """None where the source does not tell before it is read."""
    files: int | None = Field(default=None, ge=0)
    resolved_revision: str | None = None


class ArtifactResult(ContractModel):
    """A complete artifact: what relocate, verify and convert leave behind."""

    kind: Literal["artifact"] = "artifact"
    digest: str
    size_bytes: int = Field(ge=0)
    files: int = Field(ge=0)
    format: str
    resolved_revision: str | None = None
    transferred_bytes: int = Field(default=0, ge=0)
    """Bytes that came over the network in this run; 0 when everything was there."""


class PushResult(ContractModel):
    """An artifact that is at its destination."""

    kind: Literal["push"] = "push"
    revision: str
    """Digest of the manifest in a registry, commit in a hub: what pins the source that was made."""
    transferred_bytes: int = Field(default=0, ge=0)
    """Bytes that had to be sent; 0 when everything was there."""


class TrackResult(ContractModel):
    """A job that an MLflow server knows."""

    kind: Literal["track"] = "track"
    experiment_id: str
    run_id: str
    lacking: str = ""
    """What could not be stored there, and why; empty where nothing is missing."""


class DatasetCounts(ContractModel):
    """Rows and tokens, and what became of those that could not be used as they are."""

    rows: int = Field(ge=0)
    train_rows: int = Field(ge=0)
    test_rows: int = Field(ge=0)
    truncated_rows: int = Field(default=0, ge=0)
    dropped_rows: int = Field(default=0, ge=0)
    masked_rows: int = Field(default=0, ge=0)
    """Rows without one supervised token after truncation."""
    tokens: int = Field(default=0, ge=0)
    supervised_tokens: int = Field(default=0, ge=0)
    columns: tuple[str, ...] = ()


class PreflightResult(ContractModel):
    """What preflight found out."""

    kind: Literal["preflight"] = "preflight"
    dataset: DatasetCounts
    parameters: int = Field(ge=0)
    trainable_parameters: int = Field(ge=0)
    total_steps: int = Field(ge=0)
    memory_bytes: int | None = Field(default=None, ge=0)
    """Estimated peak memory of training; None where a script trains."""
    trials: tuple[tuple[float, ...], ...] = ()
    """Numbers of each trial, in the order of spec.tuning.parameters."""
    warnings: tuple[str, ...] = ()


class TrainResult(ContractModel):
    """A finished training."""

    kind: Literal["train"] = "train"
    digest: str
    size_bytes: int = Field(ge=0)
    steps: int = Field(ge=0)
    loss: float | None = None
    """Mean training loss of the last epoch (nats per supervised token)."""
    evaluation_loss: float | None = None
    dataset: DatasetCounts
    best_step: int | None = None
    """Step whose weights are the result, where spec.training.earlyStopping chose it."""
    stopped_early: bool = False
    """Whether the training ended before its last step because of its held-out loss."""
    given_up: bool = False
    """Whether this trial ended early because others were better."""
    resumed_from_step: int | None = None
    """Step of the checkpoint that the last attempt went on from."""
    resumptions: int = Field(default=0, ge=0)
    """How often a checkpoint was gone on from."""
    damaged_checkpoints: tuple[int, ...] = ()
    """Steps of the checkpoints that were found damaged on the way, and passed over."""


class EvaluateResult(ContractModel):
    """A finished evaluation."""

    kind: Literal["evaluate"] = "evaluate"
    rows: tuple[EvaluationRow, ...]
    gates: tuple[GateResult, ...] = ()
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()


class PredictResult(ContractModel):
    """Finished predictions."""

    kind: Literal["predict"] = "predict"
    rows: int = Field(ge=0)
    """Rows of the data; each has a line for every candidate."""
    unanswered: int = Field(default=0, ge=0)
    """Lines without a completion: the prompt was empty, or left no room in the model's context."""
    tokens: int = Field(ge=0)
    """Tokens generated, closing EOS included, by all candidates."""
    digest: str
    size_bytes: int = Field(ge=0)
    warnings: tuple[str, ...] = ()


class NotifyResult(ContractModel):
    """A notification that its receiver has taken."""

    kind: Literal["notify"] = "notify"
    host: str
    """Who took it; the rest of an address may be a secret."""


Result = Annotated[
    MeasureResult
    | ArtifactResult
    | PushResult
    | TrackResult
    | PreflightResult
    | TrainResult
    | EvaluateResult
    | PredictResult
    | NotifyResult,
    Field(discriminator="kind"),
]


class LastWords(ContractModel):
    """What a program leaves in the termination log; at most 4096 bytes of JSON."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, validate_by_name=True)

    reason: Reason
    message: str = ""
    hint: str = ""
    result: Result | None = None


class ProgressMetric(StrEnum):
    """Names of the metrics that our programs report with their progress."""

    BYTES = "bytes"
    TOTAL_BYTES = "total_bytes"
    FILES = "files"
    TOTAL_FILES = "total_files"
    BYTES_PER_SECOND = "bytes_per_second"
    STEP = "step"
    TOTAL_STEPS = "total_steps"
    LOSS = "loss"
    EVALUATION_LOSS = "eval_loss"
    LEARNING_RATE = "learning_rate"
    TOKENS_PER_SECOND = "tokens_per_second"
    ITEMS = "items"
    TOTAL_ITEMS = "total_items"


class TrainerMetric(ContractModel):
    """One named value of a progress report."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, validate_by_name=True)

    name: str = Field(max_length=128)
    value: str = Field(max_length=256)


class TrainerStatus(ContractModel):
    """Progress as Hugging Face Transformers' KubeflowCallback posts it."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, validate_by_name=True)

    last_updated_time: datetime
    progress_percentage: int | None = Field(default=None, ge=0, le=100)
    estimated_remaining_seconds: int | None = Field(default=None, ge=0)
    metrics: tuple[TrainerMetric, ...] = Field(default=(), max_length=256)


class ProgressReport(ContractModel):
    """Body of a POST to the progress endpoint."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, validate_by_name=True)

    trainer_status: TrainerStatus
