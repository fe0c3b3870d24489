"""What an object needs relocated: sources by role, the Relocations that stand for them, and where their bytes lie."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from posixpath import join

from finetuning_api.base import ConditionStatus, ConditionType, ObjectMeta, ProgressStatus, StageState
from finetuning_api.custom import CustomMetricSpec, TaskSpec
from finetuning_api.dataset import DatasetSpec
from finetuning_api.finetuningjob import EvaluationOptions, FineTuningJobSpec, StorageSpec, VolumeSpec
from finetuning_api.inferenceserver import InferenceServerSpec
from finetuning_api.reasons import LIFE_CYCLE_REASONS, Reason
from finetuning_api.relocation import (
    Relocation,
    RelocationArtifact,
    RelocationPhase,
    RelocationSpec,
)
from finetuning_api.runconfig import (
    CustomMetricInput,
    DatasetInput,
    LastWords,
    ModelInput,
    Provenance,
    TaskInput,
)
from finetuning_api.sources import Conversion, Scheme, SourceRef, relocation_name
from finetuning_operator.reconcile.conditions import find_condition, headline, is_true
from finetuning_operator.reconcile.labels import MANAGED_BY, OPERATOR
from finetuning_operator.reconcile.plan import ClaimMount, Observed, Settings
from finetuning_operator.reconcile.stages import Outcome, is_running, sentences


class Role(StrEnum):
    """What a relocated artifact is for."""

    MODEL = "model"
    TOKENIZER = "tokenizer"
    DATASET = "dataset"
    REFERENCE = "reference"
    SCRIPT = "script"
    METRIC = "metric"
    TASK = "task"


_SHARED_RETRIES = 3
"""The least retries of what others may wait for as well."""
_TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_TAKEN: Mapping[Role, tuple[str, ...]] = {
    Role.TOKENIZER: _TOKENIZER_FILES,
    Role.SCRIPT: ("*",),
    Role.METRIC: ("*",),
    Role.TASK: ("*",),
}
"""Files of a folder, for roles that want others than those of a model."""
_FOLDER_SCHEMES = frozenset({Scheme.HF, Scheme.S3, Scheme.GS, Scheme.GIT_HTTPS, Scheme.FILE})
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
_UNPINNED_SCHEMES = frozenset(
    {Scheme.HF, Scheme.HTTPS, Scheme.HTTP, Scheme.S3, Scheme.GS, Scheme.GIT_HTTPS, Scheme.OCI}
)


def role_ref(ref: SourceRef, role: Role) -> SourceRef:
    """Return a reference that takes what the role needs, where the user did not choose files.

    Every owner asks through this function: the same need has the same identity, so its bytes are shared. Of a model the
    relocator takes what models need by itself; a tokenizer alone must not bring weights along, and programs are what is
    left out of models.
    """
    plain = SourceRef.model_validate(ref.model_dump(include=set(SourceRef.model_fields)))
    if plain.include or role not in _TAKEN or not _is_folder(plain):
        return plain
    return plain.model_copy(update={"include": list(_TAKEN[role])})


def _is_folder(ref: SourceRef) -> bool:
    parsed = ref.parsed
    whole = parsed.scheme in _FOLDER_SCHEMES and not parsed.member and ref.conversion is Conversion.NONE
    return whole and not parsed.location.lower().endswith(ARCHIVES)


def is_pinned(ref: SourceRef) -> bool:
    """Return whether a reference will always name the same bytes."""
    if ref.revision is not None or ref.checksum is not None:
        return True
    return ref.parsed.scheme not in _UNPINNED_SCHEMES or "@sha256:" in ref.parsed.location


@dataclass(frozen=True, slots=True)
class Need:
    """One artifact that an object needs."""

    role: Role
    ref: SourceRef
    """Already with the defaults of its role."""
    volume: VolumeSpec

    @property
    def name(self) -> str:
        """Name of the Relocation that brings it."""
        return relocation_name(self.ref)

    def find(self, observed: Observed) -> Relocation | None:
        """Return the Relocation as it is observed."""
        found = observed.resources.get(("Relocation", self.name))
        return found if isinstance(found, Relocation) else None

    def artifact(self, observed: Observed) -> RelocationArtifact | None:
        """Return the finished artifact, None until the Relocation is ready."""
        found = self.find(observed)
        if found is None or not is_true(found.status.conditions, ConditionType.READY):
            return None
        return found.status.artifact


def need(ref: SourceRef, role: Role, storage: StorageSpec) -> Need:
    """Return what a reference needs in a role."""
    return Need(role, role_ref(ref, role), storage.dataset if role is Role.DATASET else storage.model)


def dataset_need(dataset: DatasetSpec, storage: StorageSpec) -> Need:
    """Return the need of a data set."""
    return need(dataset.source_ref(), Role.DATASET, storage)


def job_needs(spec: FineTuningJobSpec) -> tuple[Need, ...]:
    """Return everything that a fine-tuning job relocates."""
    needs = [dataset_need(spec.dataset, spec.storage), need(spec.model, Role.MODEL, spec.storage)]
    if spec.tokenizer is not None:
        needs.append(need(spec.tokenizer, Role.TOKENIZER, spec.storage))
    if spec.evaluation.enabled and spec.evaluation.reference is not None:
        needs.append(need(spec.evaluation.reference, Role.REFERENCE, spec.storage))
    if spec.script is not None:
        needs.append(need(spec.script, Role.SCRIPT, spec.storage))
    return (*needs, *(own_needs(spec.evaluation, spec.storage) if spec.evaluation.enabled else ()))


def own_needs(options: EvaluationOptions, storage: StorageSpec) -> tuple[Need, ...]:
    """Return what metrics and tasks of the user's own need: each source once, however many of them are in it."""
    metrics = [_custom_need(each, storage) for each in options.custom]
    tasks = [_task_need(each, storage) for each in options.tasks]
    return tuple({wanted.name: wanted for wanted in (*metrics, *tasks)}.values())


def _custom_need(metric: CustomMetricSpec, storage: StorageSpec) -> Need:
    return need(metric, Role.METRIC, storage)


def _task_need(task: TaskSpec, storage: StorageSpec) -> Need:
    return need(task, Role.TASK, storage)


def server_needs(spec: InferenceServerSpec) -> tuple[Need, ...]:
    """Return everything that a server relocates: adapters lie on claims already."""
    model = need(spec.model, Role.MODEL, spec.storage)
    return (model,) if spec.tokenizer is None else (model, need(spec.tokenizer, Role.TOKENIZER, spec.storage))


def relocation(wanted: Need, *, namespace: str, storage: StorageSpec, backoff_limit: int) -> Relocation:
    """Return the Relocation of a need. It has no owner: whoever needs the same bytes shares it.

    So who wants no retries gets the usual ones here: giving up would be for everybody.
    """
    retries = max(backoff_limit, _SHARED_RETRIES)
    spec = RelocationSpec(
        **wanted.ref.model_dump(), profile=storage.profile, volume=wanted.volume, backoff_limit=retries
    )
    metadata = ObjectMeta(name=wanted.name, namespace=namespace, labels={MANAGED_BY: OPERATOR})
    return Relocation(metadata=metadata, spec=spec)


def made_for_jobs(found: Relocation) -> bool:
    """Return whether a Relocation was made because somebody needed it, not by a user."""
    return found.metadata.labels.get(MANAGED_BY) == OPERATOR


def relocations(
    needs: Sequence[Need], *, namespace: str, storage: StorageSpec, backoff_limit: int = 0
) -> tuple[Relocation, ...]:
    """Return the Relocations of all needs, each once."""
    distinct = {wanted.name: wanted for wanted in needs}
    return tuple(
        relocation(wanted, namespace=namespace, storage=storage, backoff_limit=backoff_limit)
        for wanted in distinct.values()
    )


def relocation_outcome(
    needs: Sequence[Need],
    observed: Observed,
    children: tuple[Relocation, ...],
    *,
    since: datetime | None,
    born: datetime | None = None,
    told: str = "",
) -> Outcome:
    """Return where the stage stands that waits for all needs.

    What failed before ``since`` failed for others; None where such failures were cleared away already. What was asked
    for before ``born`` came for others; None where nobody asks. ``told`` is what the stage said of its success before.
    """
    distinct = {wanted.name: wanted for wanted in needs}
    found = [(wanted, wanted.find(observed)) for wanted in distinct.values()]
    for wanted, child in found:
        message, reason = _failure(child, since)
        if reason is not None:
            return Outcome(StageState.FAILED, reason, f"{wanted.role}: {message}", children=children)
    ready = sum(wanted.artifact(observed) is not None for wanted, _ in found)
    if ready == len(found):
        message = told or _brought(found, born)
        return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, message, percent=100, attempts=1, children=children)
    percent = sum(_percent(child) for _, child in found) // len(found)
    runs = any(child is not None and is_running(child.status) for _, child in found)
    refused = {wanted.name: observed.hindrances.get((Relocation.__name__, wanted.name)) for wanted, _ in found}
    troubles = (_trouble(child, refused[wanted.name]) for wanted, child in found)
    return Outcome(
        StageState.RUNNING if runs else StageState.PENDING,
        next(filter(None, troubles), Reason.RELOCATING if runs else Reason.PENDING),
        _listed(f"{wanted.role} {_where(child, refused[wanted.name])}" for wanted, child in found),
        percent=percent,
        attempts=1 if runs else 0,
        progress=ProgressStatus(percent=percent) if runs or percent else None,
        children=children,
        pending_since=min(filter(None, (_pending_since(child) for _, child in found)), default=None),
    )


def _brought(found: Sequence[tuple[Need, Relocation | None]], born: datetime | None) -> str:
    """Return how many bytes were relocated for this object, and how many were there for others before."""
    if born is None:
        return ""
    return ", ".join(f"{wanted.role} {_transfer(child, born)}" for wanted, child in found if child is not None)


def _transfer(child: Relocation, born: datetime) -> str:
    """Both times are the API server's: those in a status are of the operator's clock, which may be wrong."""
    size = child.status.artifact.size_bytes if child.status.artifact else 0
    asked = child.metadata.creation_timestamp
    if asked is not None and asked < born:
        return f"shared (0 of {size} bytes relocated)"
    moved = size if child.status.transferred_bytes is None else child.status.transferred_bytes
    return f"relocated ({moved} bytes)"


def _failure(child: Relocation | None, since: datetime | None) -> tuple[str, Reason | None]:
    """Return what failed and why; a failure of before ``since`` only where nobody will try again."""
    failed = find_condition(child.status.conditions, ConditionType.FAILED) if child else None
    if child is None or failed is None or failed.status is not ConditionStatus.TRUE:
        return "", None
    if since is None or failed.last_transition_time >= since:
        return failed.message, failed.reason
    if made_for_jobs(child):
        return "", None
    hint = f"That was before this job; delete Relocation {child.metadata.name} to have it tried again"
    return sentences(headline(failed.message), hint), failed.reason


def _percent(child: Relocation | None) -> int:
    if child is None:
        return 0
    if is_true(child.status.conditions, ConditionType.READY):
        return 100
    return child.status.progress.percent if child.status.progress else 0


def _trouble(child: Relocation | None, refused: LastWords | None) -> Reason | None:
    """Return what keeps a Relocation from getting on, None where it goes its way or is about to be tried again."""
    if child is None:
        return refused.reason if refused else None
    if is_true(child.status.conditions, ConditionType.FAILED):
        return None
    ready = find_condition(child.status.conditions, ConditionType.READY)
    return ready.reason if ready and ready.reason not in LIFE_CYCLE_REASONS else None


def _listed(parts: Iterable[str]) -> str:
    """Return parts one after the other; a comma never follows a full stop."""
    return ", ".join(parts).replace("., ", ", ")


def _where(child: Relocation | None, refused: LastWords | None) -> str:
    if child is None:
        return f"pending: {sentences(refused.message, refused.hint)}" if refused else "pending"
    ready = find_condition(child.status.conditions, ConditionType.READY)
    if ready is not None and ready.status is ConditionStatus.TRUE:
        return "ready"
    if is_true(child.status.conditions, ConditionType.FAILED):
        return "failed earlier and is tried again"
    message = ready.message if ready is not None and ready.reason is not Reason.PENDING else ""
    done = f" ({percent} %)" if (percent := _percent(child)) else ""
    return f"{child.status.phase.value.lower()}{done}{f': {message}' if message else ''}"


def _pending_since(child: Relocation | None) -> datetime | None:
    """Return since when a Relocation waits for a pod: since its last stage ended, or since it was met."""
    if child is None or child.status.phase is not RelocationPhase.PENDING:
        return None
    ends = [stage.completion_time for stage in child.status.stages if stage.completion_time]
    return max(ends, default=child.status.start_time)


def warnings(needs: Sequence[Need], observed: Observed) -> tuple[str, ...]:
    """Return what the Relocations warn about."""
    found = [wanted.find(observed) for wanted in needs]
    return tuple(warning for child in found if child is not None for warning in child.status.warnings)


def artifact_path(artifact: RelocationArtifact, settings: Settings) -> str:
    """Return where a step sees an artifact."""
    return join(settings.volumes_root, artifact.claim.claim_name, artifact.claim.path).rstrip("/")


def claim_mount(claim: str, settings: Settings, *, read_only: bool = True) -> ClaimMount:
    """Return the mount of a whole claim at its place."""
    return ClaimMount(claim=claim, path=join(settings.volumes_root, claim), read_only=read_only)


def provenance(wanted: Need, artifact: RelocationArtifact) -> Provenance:
    """Return where an artifact came from."""
    return Provenance(
        source=wanted.ref.parsed.canonical, resolved_revision=artifact.resolved_revision, digest=artifact.digest
    )


def model_input(model: Need, tokenizer: Need | None, *, observed: Observed, settings: Settings) -> ModelInput | None:
    """Return a relocated model with its tokenizer; None until both are ready. Without one the model's own is used."""
    of_tokenizer = tokenizer or model
    artifact, tokenizer_artifact = model.artifact(observed), of_tokenizer.artifact(observed)
    if artifact is None or tokenizer_artifact is None:
        return None
    return ModelInput(
        path=artifact_path(artifact, settings),
        tokenizer_path=artifact_path(tokenizer_artifact, settings),
        provenance=provenance(model, artifact),
        tokenizer_provenance=provenance(of_tokenizer, tokenizer_artifact),
    )


def dataset_input(dataset: DatasetSpec, wanted: Need, *, observed: Observed, settings: Settings) -> DatasetInput | None:
    """Return relocated data and how its rows are rendered; None until it is ready."""
    artifact = wanted.artifact(observed)
    if artifact is None:
        return None
    return DatasetInput(
        path=artifact_path(artifact, settings), rows=dataset.row_format(), provenance=provenance(wanted, artifact)
    )


def custom_inputs(
    options: EvaluationOptions, *, storage: StorageSpec, observed: Observed, settings: Settings
) -> tuple[CustomMetricInput, ...]:
    """Return the files of metrics of the user's own, as far as they are ready."""
    wanted = [(metric, _custom_need(metric, storage)) for metric in options.custom]
    return tuple(
        CustomMetricInput(
            name=metric.name,
            path=artifact_path(artifact, settings),
            file=metric.file,
            function=metric.function,
            lower_is_better=metric.lower_is_better,
            provenance=provenance(needed, artifact),
        )
        for metric, needed in wanted
        if (artifact := needed.artifact(observed)) is not None
    )


def task_inputs(
    options: EvaluationOptions, *, storage: StorageSpec, observed: Observed, settings: Settings
) -> tuple[TaskInput, ...]:
    """Return the folders of tasks of the user's own, as far as they are ready."""
    wanted = [(task, _task_need(task, storage)) for task in options.tasks]
    return tuple(
        TaskInput(name=task.name, path=artifact_path(artifact, settings), provenance=provenance(needed, artifact))
        for task, needed in wanted
        if (artifact := needed.artifact(observed)) is not None
    )


def input_mounts(needs: Sequence[Need], observed: Observed, settings: Settings) -> tuple[ClaimMount, ...]:
    """Return the read-only mounts of all needs that are ready, each claim once."""
    artifacts = [artifact for wanted in needs if (artifact := wanted.artifact(observed)) is not None]
    claims = dict.fromkeys(artifact.claim.claim_name for artifact in artifacts)
    return tuple(claim_mount(claim, settings) for claim in claims)
