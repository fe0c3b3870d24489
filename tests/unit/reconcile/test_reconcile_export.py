"""Exports follow the end of a job, whenever they are asked for, and change nothing else of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.support.objects import World, failed, job

from finetuning_api.base import ConditionType
from finetuning_api.export import ExportFormat, ExportState, ExportStatus
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.metrics import EvaluationRow, GateResult, Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation
from finetuning_api.runconfig import (
    ArtifactResult,
    EvaluateResult,
    ExportConfig,
    LastWords,
    PushConfig,
    PushResult,
)
from finetuning_operator.reconcile import references
from finetuning_operator.reconcile.conditions import find_condition
from finetuning_operator.reconcile.export import is_exporting
from finetuning_operator.reconcile.plan import ClaimMount, ImageRole, Settings, Step, StepPhase, StepState
from finetuning_operator.reconcile.policy import SourcePolicy

KEY = ("FineTuningJob", "demo")
GATED = {"metrics": ["exact-match"], "gate": [{"metric": "exact-match", "min": 0.5}]}
TO_REGISTRY: dict[str, object] = {
    "name": "registry",
    "to": "oci://registry.example/team/demo:v1",
    "secretRef": {"name": "login"},
}
ADAPTER_TO_HUB: dict[str, object] = {"name": "hub", "format": "adapter", "to": "hf://acme/demo"}
MERGED_DIGEST, REVISION = f"sha256:{'e' * 64}", f"sha256:{'f' * 64}"
MERGED = StepState(
    StepPhase.SUCCEEDED,
    last_words=LastWords(
        reason=Reason.SUCCEEDED,
        result=ArtifactResult(digest=MERGED_DIGEST, size_bytes=2000, files=3, format="safetensors"),
    ),
)
PUSHED = StepState(
    StepPhase.SUCCEEDED, last_words=LastWords(reason=Reason.SUCCEEDED, result=PushResult(revision=REVISION))
)
MISSED = StepState(
    StepPhase.SUCCEEDED,
    last_words=LastWords(
        reason=Reason.SUCCEEDED,
        result=EvaluateResult(
            rows=(EvaluationRow(metric=Metric.EXACT_MATCH, base=0.1, tuned=0.2, delta=0.1, samples=2),),
            gates=(GateResult(metric=Metric.EXACT_MATCH, verdict=Verdict.FAIL, message="0.2 < 0.5"),),
            verdict=Verdict.FAIL,
        ),
    ),
)


def world(*exports: Mapping[str, object], settings: Settings | None = None, **spec: Any) -> World:  # noqa: ANN401  (fields of the specification)
    made = World(settings or Settings())
    made.add(job(exports=list(exports), **({"evaluation": GATED} | spec)))
    made.settle()
    return made


def complete(made: World, *, evaluated: StepState | None = None) -> World:
    made.finish_relocations()
    made.finish(KEY, "preflight")
    made.finish(KEY, "train")
    if made.job().spec.evaluation.enabled:
        made.finish(("EvaluationJob", "demo-evaluation"), "evaluate", evaluated)
    return made


def steps(made: World) -> list[Step]:
    return list(made.plans[KEY].steps)


def record(made: World, name: str) -> ExportStatus:
    return next(each for each in made.job().status.exports if each.name == name)


def exported(made: World) -> tuple[str, Reason]:
    found = find_condition(made.job().status.conditions, ConditionType.EXPORTED)
    assert found is not None
    return found.status.value, found.reason


def edit(made: World, *exports: Mapping[str, object]) -> None:
    """Change the exports as a user would."""
    old = made.job()
    fields = old.spec.model_dump(by_alias=True, exclude_none=True) | {"exports": list(exports)}
    metadata = old.metadata.model_copy(update={"generation": old.metadata.generation + 1})
    new = FineTuningJob.model_validate({"metadata": metadata, "spec": fields})
    made.objects[KEY] = new.model_copy(update={"status": old.status})
    made.settle()


def test_nothing_is_exported_before_the_end() -> None:
    made = world(TO_REGISTRY)
    made.finish_relocations()
    made.finish(KEY, "preflight")
    made.finish(KEY, "train")

    assert [step.name for step in steps(made)] == []
    assert made.job().status.exports == []
    assert not is_exporting(made.job())


def test_a_merge_has_no_network_and_a_claim_of_its_own_and_a_push_only_reads() -> None:
    made = complete(world(TO_REGISTRY))

    (merge,) = steps(made)
    assert isinstance(merge.config, ExportConfig)
    assert (merge.image, merge.network, merge.secret) == (ImageRole.TRAINER, False, None)
    writable = [mount for mount in merge.mounts if isinstance(mount, ClaimMount) and not mount.read_only]
    assert [mount.claim for mount in writable] == ["demo-export"]
    assert merge.config.output_path == "/volumes/demo-export/merged"
    assert merge.config.adapter_path == "/volumes/demo-adapter/adapter"
    (volume,) = made.plans[KEY].volumes
    assert (volume.name, volume.size_bytes) == ("demo-export", 2**30)

    made.finish(KEY, merge.name, MERGED)
    (push,) = steps(made)
    assert isinstance(push.config, PushConfig)
    assert (push.image, push.network, push.secret) == (ImageRole.RELOCATOR, True, "login")
    assert push.mounts == (ClaimMount(claim="demo-export", path="/volumes/demo-export", read_only=True),)
    assert (push.config.path, push.config.digest) == ("/volumes/demo-export/merged", MERGED_DIGEST)

    made.finish(KEY, push.name, PUSHED)
    assert steps(made) == []
    assert record(made, "registry") == ExportStatus(
        name="registry",
        format=ExportFormat.MERGED,
        to="oci://registry.example/team/demo:v1",
        state=ExportState.DONE,
        claim_name="demo-export",
        path="merged",
        digest=MERGED_DIGEST,
        size_bytes=2000,
        pushed_revision=REVISION,
    )
    assert exported(made) == ("True", Reason.SUCCEEDED)


def test_an_adapter_is_pushed_from_where_it_lies() -> None:
    made = complete(world(ADAPTER_TO_HUB))

    (push,) = steps(made)
    assert isinstance(push.config, PushConfig)
    assert push.config.path == "/volumes/demo-adapter/adapter"
    assert push.mounts == (ClaimMount(claim="demo-adapter", path="/volumes/demo-adapter", read_only=True),)


def test_what_method_full_makes_is_merged_already() -> None:
    made = complete(world({"name": "merged"}, method={"type": "full"}, evaluation={"enabled": False}))

    assert steps(made) == []
    assert (record(made, "merged").state, record(made, "merged").claim_name) == (ExportState.DONE, "demo-adapter")


def test_a_job_that_ended_long_ago_exports_what_it_is_asked_for_and_brings_its_base_model_back() -> None:
    made = complete(world())
    for key, found in list(made.objects.items()):
        if isinstance(found, Relocation):
            del made.objects[key], made.steps[key], made.plans[key]
    made.steps[KEY].clear()
    before = made.job().status

    edit(made, {"name": "merged"})

    assert steps(made) == []
    assert record(made, "merged").message == "waits for its base model"
    wanted = references(made.job(), lambda _kind, _name: None)
    assert {kind for kind, _ in wanted} == {"Relocation"}
    assert wanted <= set(made.objects)
    made.finish_relocations()
    (merge,) = steps(made)
    made.finish(KEY, merge.name, MERGED)
    assert record(made, "merged").state is ExportState.DONE
    assert made.job().status.stages == before.stages
    assert made.holds(ConditionType.COMPLETE)


def test_a_base_model_that_cannot_be_brought_again_fails_the_export() -> None:
    made = complete(world())
    for key, found in list(made.objects.items()):
        if isinstance(found, Relocation):
            del made.objects[key], made.steps[key], made.plans[key]
    edit(made, {"name": "merged"})
    (relocation,) = [key for key in made.objects if key[0] == "Relocation"]

    made.finish(relocation, "measure", failed(Reason.SOURCE_NOT_FOUND, "hf://acme/tiny was not found"))

    assert record(made, "merged").state is ExportState.FAILED
    assert "model: " in record(made, "merged").message
    assert "hf://acme/tiny was not found" in record(made, "merged").message


def test_another_base_model_than_that_of_the_training_is_never_merged() -> None:
    made = complete(world())
    artifacts = made.job().status.artifacts
    assert artifacts.model is not None
    other = artifacts.model.model_copy(update={"digest": f"sha256:{'9' * 64}"})
    status = made.job().status.model_copy(update={"artifacts": artifacts.model_copy(update={"model": other})})
    made.objects[KEY] = made.job().model_copy(update={"status": status})

    edit(made, {"name": "merged"})

    assert steps(made) == []
    assert record(made, "merged").state is ExportState.FAILED
    assert "not the one of the training" in record(made, "merged").message


def test_what_missed_its_gate_is_exported_only_where_that_was_asked_for() -> None:
    made = complete(world(ADAPTER_TO_HUB, ADAPTER_TO_HUB | {"name": "anyway", "afterGate": False}), evaluated=MISSED)

    assert record(made, "hub").state is ExportState.SKIPPED
    assert "afterGate" in record(made, "hub").message
    assert len(steps(made)) == 1
    made.finish(KEY, steps(made)[0].name, PUSHED)
    assert exported(made) == ("False", Reason.NOT_REQUESTED)


def test_a_job_that_made_nothing_exports_nothing() -> None:
    made = world(ADAPTER_TO_HUB)
    made.finish_relocations()
    made.finish(KEY, "preflight", failed(Reason.COLUMN_NOT_FOUND))

    assert steps(made) == []
    assert record(made, "hub").state is ExportState.SKIPPED


def test_a_failed_export_is_told_once_and_changes_nothing_else_of_the_job() -> None:
    made = complete(world(ADAPTER_TO_HUB))
    before = made.job().status
    (push,) = steps(made)
    made.steps[KEY][push.name] = failed(Reason.AUTHENTICATION_REQUIRED, "hub.example asks for credentials", "Set one.")

    plan = made.apply(KEY)

    assert [(event.reason, event.warning, event.message) for event in plan.events] == [
        (Reason.EXPORT_FAILED, True, "export hub: hub.example asks for credentials. Set one.")
    ]
    made.settle()
    assert made.plans[KEY].events == ()
    after = made.job().status
    assert exported(made) == ("False", Reason.EXPORT_FAILED)
    told: dict[str, list[object]] = {"exports": [], "conditions": []}
    assert after.model_copy(update=told) == before.model_copy(update=told)
    assert made.holds(ConditionType.COMPLETE)


def test_what_was_done_is_not_done_again_when_its_jobs_are_gone() -> None:
    made = complete(world(TO_REGISTRY))
    made.finish(KEY, steps(made)[0].name, MERGED)
    made.steps[KEY].clear()
    made.settle()
    (push,) = steps(made)
    assert isinstance(push.config, PushConfig)

    made.finish(KEY, push.name, PUSHED)
    made.steps[KEY].clear()
    made.settle()
    assert steps(made) == []


def test_the_same_name_with_another_place_is_another_export() -> None:
    made = complete(world(ADAPTER_TO_HUB))
    (first,) = steps(made)
    made.finish(KEY, first.name, failed())

    edit(made, ADAPTER_TO_HUB | {"to": "hf://acme/other"})

    (second,) = steps(made)
    assert second.name != first.name
    assert record(made, "hub").state is ExportState.PENDING


def test_a_finished_job_with_a_time_to_live_waits_for_its_exports() -> None:
    made = complete(world(ADAPTER_TO_HUB, ttl_seconds_after_finished=0))
    assert not made.plans[KEY].expired

    made.finish(KEY, steps(made)[0].name, PUSHED)
    made.settle()
    assert made.plans[KEY].expired


def test_a_pod_that_never_runs_is_given_up() -> None:
    made = complete(world(ADAPTER_TO_HUB, pending_deadline_seconds=60))
    (push,) = steps(made)
    hindrance = LastWords(reason=Reason.CONFIGURATION_MISSING, message="the Secret login is not there")
    waiting = StepState(StepPhase.PENDING, attempts=0, started_at=made.now, hindrance=hindrance)
    made.steps[KEY][push.name] = waiting
    made.apply(KEY)
    assert record(made, "hub").message == "the Secret login is not there"

    made.steps[KEY][push.name] = replace(waiting, started_at=made.now.replace(year=made.now.year - 1))
    made.settle()
    assert record(made, "hub").state is ExportState.FAILED
    assert steps(made) == []


def test_a_place_that_an_administrator_does_not_allow_is_not_reached() -> None:
    policy = SourcePolicy(allowed_sources=("hf://acme/", "s3://bucket/"))
    made = complete(world(TO_REGISTRY | {"format": "adapter"}, settings=Settings(sources=policy)))

    assert steps(made) == []
    assert record(made, "registry").state is ExportState.FAILED
    assert "relocation.allowedSources" in record(made, "registry").message


def test_exports_that_are_taken_out_are_stopped_and_forgotten() -> None:
    made = complete(world(TO_REGISTRY))
    made.finish(KEY, steps(made)[0].name, StepState(StepPhase.RUNNING))

    edit(made)

    assert steps(made) == []
    assert made.job().status.exports == []
