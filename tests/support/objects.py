"""Small factories of objects and observations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from finetuning_api.base import ConditionType, ObjectMeta, Resource
from finetuning_api.dataset import DatasetSpec
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob, FineTuningJobSpec
from finetuning_api.inferenceserver import InferenceServer
from finetuning_api.metrics import EvaluationRow, GateResult, Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation, RelocationSpec
from finetuning_api.runconfig import (
    ArtifactResult,
    DatasetCounts,
    EvaluateResult,
    LastWords,
    MeasureResult,
    NotifyResult,
    PredictResult,
    PreflightResult,
    Result,
    TrainResult,
)
from finetuning_api.sources import SourceRef
from finetuning_operator.reconcile import reconcile
from finetuning_operator.reconcile.conditions import is_true
from finetuning_operator.reconcile.plan import Observed, Plan, ServerState, Settings, StepPhase, StepState

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DIGEST = f"sha256:{'a' * 64}"
COUNTS = DatasetCounts(rows=10, train_rows=8, test_rows=2, columns=("message", "triage"))
RESULTS: Mapping[str, Result] = {
    "measure": MeasureResult(size_bytes=1000, files=3, resolved_revision="c0ffee"),
    "relocate": ArtifactResult(
        digest=DIGEST, size_bytes=1000, files=3, format="safetensors", resolved_revision="c0ffee", transferred_bytes=900
    ),
    "convert": ArtifactResult(digest=f"sha256:{'b' * 64}", size_bytes=4000, files=4, format="safetensors"),
    "verify": ArtifactResult(digest=DIGEST, size_bytes=1000, files=3, format="safetensors"),
    "preflight": PreflightResult(
        dataset=COUNTS,
        parameters=100,
        trainable_parameters=10,
        total_steps=5,
        memory_bytes=1000,
        warnings=("tight",),
        trials=((4,), (8,), (16,)),
    ),
    "train": TrainResult(digest=f"sha256:{'c' * 64}", size_bytes=50, steps=5, loss=1.0, dataset=COUNTS),
    "trial": TrainResult(
        digest=f"sha256:{'e' * 64}", size_bytes=50, steps=5, loss=1.0, evaluation_loss=2.0, dataset=COUNTS
    ),
    "evaluate": EvaluateResult(
        rows=(EvaluationRow(metric=Metric.EXACT_MATCH, base=0.1, tuned=0.9, delta=0.8, samples=2),),
        gates=(GateResult(metric=Metric.EXACT_MATCH, verdict=Verdict.PASS, message="0.8 >= 0.1"),),
        verdict=Verdict.PASS,
    ),
    "predict": PredictResult(rows=10, tokens=120, digest=f"sha256:{'d' * 64}", size_bytes=2000),
    "notify": NotifyResult(host="hooks.example"),
}
"""What each step reports when it succeeds; steps that there are several of are known by what their names begin with."""


def job(name: str = "demo", **spec: object) -> FineTuningJob:
    """Return a job with a small model and data set; ``spec`` in Python's names."""
    fields: dict[str, object] = {
        "model": SourceRef(source="hf://acme/tiny", revision="v1"),
        "dataset": DatasetSpec(
            source="s3://bucket/rows.jsonl", revision="7", prompt="{message}", completion="{triage}"
        ),
    }
    return FineTuningJob(
        metadata=ObjectMeta(name=name, uid="uid-1"), spec=FineTuningJobSpec.model_validate(fields | spec)
    )


def relocation(source: str, *, name: str = "reloc-0", **spec: object) -> Relocation:
    """Return a Relocation of a source."""
    return Relocation(metadata=ObjectMeta(name=name), spec=RelocationSpec.model_validate({"source": source} | spec))


def succeeded(step: str) -> StepState:
    """Return a step that ended well."""
    return StepState(
        StepPhase.SUCCEEDED, last_words=LastWords(reason=Reason.SUCCEEDED, result=RESULTS[step.partition("-")[0]])
    )


def failed(reason: Reason = Reason.NETWORK_UNREACHABLE, message: str = "no route", hint: str = "Wait.") -> StepState:
    """Return a step that will not be tried again."""
    return StepState(StepPhase.FAILED, attempts=4, last_words=LastWords(reason=reason, message=message, hint=hint))


@dataclass
class World:
    """Objects and steps as a realiser would keep them: plans are applied, steps do what a test says."""

    settings: Settings = field(default_factory=Settings)
    now: datetime = NOW
    objects: dict[tuple[str, str], Resource] = field(default_factory=dict)
    steps: dict[tuple[str, str], dict[str, StepState]] = field(default_factory=dict)
    plans: dict[tuple[str, str], Plan] = field(default_factory=dict)
    servers: dict[tuple[str, str], dict[str, ServerState]] = field(default_factory=dict)
    users: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    """Claims that are gone."""

    def add(self, resource: Resource) -> tuple[str, str]:
        """Store an object, and note when it came."""
        key = (resource.kind, resource.metadata.name)
        born = resource.metadata.creation_timestamp or self.now
        metadata = resource.metadata.model_copy(update={"creation_timestamp": born})
        self.objects[key] = resource.model_copy(update={"metadata": metadata})
        return key

    def settle(self) -> None:
        """Reconcile everything until nothing changes, a second apart."""
        for _ in range(20):
            before = dict(self.objects)
            for key in list(self.objects):
                self.apply(key)
            self.now += timedelta(seconds=1)
            if before == self.objects:
                return
        message = "the objects do not come to rest"
        raise AssertionError(message)

    def apply(self, key: tuple[str, str]) -> Plan:
        """Reconcile one object and keep what its plan says."""
        resource = self.objects[key]
        observed = Observed(
            steps=self.steps.get(key, {}),
            resources=dict(self.objects),
            servers=self.servers.get(key, {}),
            users=self.users.get(key, ()),
            lost=self.lost,
        )
        plan = reconcile(resource, observed=observed, now=self.now, settings=self.settings)
        self.plans[key] = plan
        self.objects[key] = resource.model_copy(update={"status": plan.status})
        for child in plan.children:
            child_key = (child.kind, child.metadata.name)
            existing = self.objects.get(child_key)
            if existing is None:
                self.add(child)
            elif isinstance(existing, EvaluationJob) and isinstance(child, EvaluationJob):
                self.objects[child_key] = existing.model_copy(update={"spec": child.spec})
            elif isinstance(existing, InferenceServer) and isinstance(child, InferenceServer):
                spec = existing.spec.model_copy(update={"replicas": child.spec.replicas})
                self.objects[child_key] = existing.model_copy(update={"spec": spec})
        return plan

    def wanted(self) -> dict[str, tuple[str, str]]:
        """Return the steps that plans ask for, with their owners; names of relocations' steps carry their owner's."""
        return {
            step.name if key[0] != "Relocation" else f"{key[1]}/{step.name}": key
            for key, plan in self.plans.items()
            for step in plan.steps
        }

    def finish(self, key: tuple[str, str], step: str, state: StepState | None = None) -> None:
        """Let a step end, well unless a state is given, and settle."""
        self.steps.setdefault(key, {})[step] = state or succeeded(step)
        self.settle()

    def finish_relocations(self) -> None:
        """Let every step of every relocation end well."""
        for _ in range(4):
            for key, plan in list(self.plans.items()):
                if key[0] == "Relocation":
                    for step in plan.steps:
                        self.steps.setdefault(key, {})[step.name] = succeeded(step.name)
            self.settle()

    def job(self, name: str = "demo") -> FineTuningJob:
        """Return a job as it is now."""
        found = self.objects["FineTuningJob", name]
        assert isinstance(found, FineTuningJob)
        return found

    def evaluation(self, name: str = "demo-evaluation") -> EvaluationJob:
        """Return an EvaluationJob as it is now."""
        found = self.objects["EvaluationJob", name]
        assert isinstance(found, EvaluationJob)
        return found

    def server(self, name: str = "demo") -> InferenceServer | None:
        """Return an InferenceServer, None where there is none."""
        found = self.objects.get(("InferenceServer", name))
        return found if isinstance(found, InferenceServer) else None

    def answer(self, name: str = "demo", *, replicas: int = 1) -> None:
        """Let this many replicas of a server answer, and settle."""
        state = ServerState(replicas=replicas, ready=replicas, current=True)
        self.servers["InferenceServer", name] = {name: state}
        self.settle()

    def holds(self, condition: ConditionType, name: str = "demo") -> bool:
        """Return whether a condition of a job is true."""
        return is_true(self.job(name).status.conditions, condition)
