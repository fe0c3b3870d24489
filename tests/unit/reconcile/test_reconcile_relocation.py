from typing import Any

import pytest
from tests.support.objects import DIGEST, NOW, failed, relocation, succeeded

from finetuning_api.base import ClaimRef, ConditionType
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation, RelocationPhase, RelocationStatus
from finetuning_api.runconfig import ConvertConfig, MeasureConfig, RelocateConfig, VerifyConfig
from finetuning_operator.reconcile import reconcile
from finetuning_operator.reconcile.conditions import find_condition, is_true
from finetuning_operator.reconcile.plan import (
    ClaimMount,
    ConfigMapMount,
    ImageRole,
    Observed,
    Plan,
    Settings,
    StepState,
)

GGUF = "pypi://pkg==1#model.gguf"


def plan_of(resource: Relocation, *, local: bool = False, **steps: StepState) -> Plan:
    return reconcile(resource, observed=Observed(steps=steps), now=NOW, settings=Settings(local=local))


def status_of(plan: Plan) -> RelocationStatus:
    assert isinstance(plan.status, RelocationStatus)
    return plan.status


@pytest.mark.parametrize(
    ("source", "spec", "local", "done", "expected"),
    [
        ("hf://a/b", {}, False, (), "measure"),
        ("hf://a/b", {}, False, ("measure",), "relocate"),
        ("hf://a/b", {}, True, (), "relocate"),
        ("hf://a/b", {"size": "5Gi"}, False, (), "relocate"),
        ("hf://a/b", {"volume": {"size": "5Gi"}}, False, (), "relocate"),
        ("configmap://rows", {}, False, (), "measure"),
        ("pvc://claim/folder", {}, False, (), "verify"),
        ("pvc://claim/model.gguf", {}, True, (), "relocate"),
        (GGUF, {}, True, ("relocate",), "convert"),
        ("data.jsonl", {}, True, (), "relocate"),
    ],
)
def test_next_step_follows_from_source_and_what_is_done(
    *, source: str, spec: dict[str, Any], local: bool, done: tuple[str, ...], expected: str
) -> None:
    plan = plan_of(relocation(source, **spec), local=local, **{step: succeeded(step) for step in done})

    assert [step.name for step in plan.steps] == [expected]


def test_measured_bytes_with_margin_size_the_volume_and_pin_the_revision() -> None:
    plan = plan_of(relocation("hf://a/b"), measure=succeeded("measure"))

    (step,) = plan.steps
    assert isinstance(step.config, RelocateConfig)
    assert step.config.resolved_revision == "c0ffee"
    assert [(volume.name, volume.size_bytes) for volume in plan.volumes] == [("reloc-0", 1150)]


def test_relocation_goes_on_with_what_was_measured_when_nobody_can_tell_of_it_any_more() -> None:
    resource = relocation("hf://a/b")
    plan = plan_of(resource, measure=succeeded("measure"))
    measured = resource.model_copy(update={"status": plan.status})

    forgotten = plan_of(measured)
    assert (forgotten.status, forgotten.steps, forgotten.volumes) == (plan.status, plan.steps, plan.volumes)


def test_gguf_volume_has_room_for_the_converted_weights() -> None:
    plan = plan_of(relocation(GGUF), measure=succeeded("measure"))

    assert [volume.size_bytes for volume in plan.volumes] == [10350]


def test_only_the_steps_that_fetch_may_use_the_network() -> None:
    fetching = plan_of(relocation("hf://a/b", secret_ref={"name": "token"})).steps[0]
    converting = plan_of(relocation(GGUF, secret_ref={"name": "token"}), local=True, relocate=succeeded("relocate"))
    verifying = plan_of(relocation("pvc://claim")).steps[0]

    assert (fetching.network, fetching.secret) == (True, "token")
    assert (converting.steps[0].network, converting.steps[0].secret) == (False, None)
    assert converting.steps[0].image is ImageRole.TRAINER
    assert not verifying.network


def test_conversion_turns_the_source_folder_into_the_artifact_folder() -> None:
    first = plan_of(relocation(GGUF), local=True).steps[0].config
    second = plan_of(relocation(GGUF), local=True, relocate=succeeded("relocate")).steps[0].config

    assert isinstance(first, RelocateConfig)
    assert isinstance(second, ConvertConfig)
    assert first.destination == second.source == "/volumes/reloc-0/source"
    assert second.destination == "/volumes/reloc-0/artifact"
    assert second.provenance.digest == DIGEST


def test_converted_artifact_keeps_the_revision_that_was_fetched() -> None:
    plan = plan_of(relocation(GGUF), local=True, relocate=succeeded("relocate"), convert=succeeded("convert"))

    artifact = status_of(plan).artifact
    assert artifact is not None
    assert (artifact.claim.path, artifact.size_bytes, artifact.resolved_revision) == ("artifact", 4000, "c0ffee")


def test_users_claim_is_verified_in_place_and_read_only() -> None:
    plan = plan_of(relocation("pvc://models/llama/chat"))
    ready = status_of(plan_of(relocation("pvc://models/llama/chat"), verify=succeeded("verify")))

    (step,) = plan.steps
    assert isinstance(step.config, VerifyConfig)
    assert step.config.path == "/volumes/models/llama/chat"
    assert step.mounts == (ClaimMount("models", "/volumes/models", read_only=True),)
    assert plan.volumes == ()
    assert ready.artifact is not None
    assert ready.artifact.claim == ClaimRef(claim_name="models", path="llama/chat")


def test_config_map_is_mounted_for_measuring_and_relocating() -> None:
    step = plan_of(relocation("configmap://rows/data.jsonl")).steps[0]

    assert isinstance(step.config, MeasureConfig)
    assert step.mounts == (ConfigMapMount("rows", "/configmaps/rows"),)
    assert step.config.source_mount == "/configmaps/rows"


def test_unpinned_source_is_warned_about_with_what_was_resolved() -> None:
    unpinned = status_of(plan_of(relocation("hf://a/b"), local=True, relocate=succeeded("relocate")))
    pinned = status_of(plan_of(relocation("hf://a/b", revision="v1"), local=True, relocate=succeeded("relocate")))

    assert unpinned.warnings == [
        "hf://a/b is not pinned: revision c0ffee was brought and is kept; set revision to pin it"
    ]
    assert pinned.warnings == []


def test_failure_carries_reason_sentence_and_hint_and_names_the_stage() -> None:
    plan = plan_of(relocation("hf://a/b"), local=True, relocate=failed())

    status = status_of(plan)
    condition = find_condition(status.conditions, ConditionType.FAILED)
    assert condition is not None
    assert (condition.reason, condition.message) == (Reason.NETWORK_UNREACHABLE, "relocate: no route. Wait.")
    assert status.phase is RelocationPhase.FAILED
    assert plan.steps == ()


def test_success_without_a_digest_is_not_trusted() -> None:
    state = succeeded("measure")
    plan = plan_of(relocation("hf://a/b"), local=True, relocate=state)

    assert is_true(status_of(plan).conditions, ConditionType.FAILED)


def test_path_of_one_machine_is_refused_on_a_cluster() -> None:
    plan = plan_of(relocation("/home/me/model"))

    condition = find_condition(status_of(plan).conditions, ConditionType.FAILED)
    assert condition is not None
    assert condition.reason is Reason.INVALID_SPEC
    assert "/home/me/model" in condition.message


def test_ready_relocation_stays_ready_when_its_steps_are_forgotten() -> None:
    resource = relocation("hf://a/b")
    ready = plan_of(resource, local=True, relocate=succeeded("relocate")).status

    later = plan_of(resource.model_copy(update={"status": ready}), local=True)

    assert later == Plan(status=ready)


def lost(resource: Relocation) -> Plan:
    """Return the plan of an artifact whose claim is gone."""
    ready = plan_of(resource, local=True, relocate=succeeded("relocate")).status
    kept = resource.model_copy(update={"status": ready})
    observed = Observed(lost=frozenset({resource.metadata.name}))
    return reconcile(kept, observed=observed, now=NOW, settings=Settings())


def test_what_was_made_for_jobs_makes_room_when_its_claim_is_gone() -> None:
    resource = relocation("hf://a/b")
    resource.metadata.labels["app.kubernetes.io/managed-by"] = "finetuning-operator"

    assert lost(resource).expired


def test_what_a_user_made_fails_for_good_when_its_claim_is_gone() -> None:
    plan = lost(relocation("hf://a/b"))

    status = status_of(plan)
    failed_, ready = (find_condition(status.conditions, each) for each in (ConditionType.FAILED, ConditionType.READY))
    assert failed_ is not None
    assert ready is not None
    assert (failed_.status, failed_.reason, failed_.message) == (
        "True",
        Reason.VOLUME_UNAVAILABLE,
        "claim reloc-0 is gone, and what was brought with it; delete this Relocation and create it again",
    )
    assert (ready.status, status.phase, plan.expired) == ("False", RelocationPhase.FAILED, False)
    assert [(event.reason, event.warning) for event in plan.events] == [(Reason.VOLUME_UNAVAILABLE, True)]


def test_repair_brings_the_revision_that_was_recorded() -> None:
    resource = relocation("hf://a/b")
    ready = status_of(plan_of(resource, local=True, relocate=succeeded("relocate")))
    damaged = resource.model_copy(update={"status": RelocationStatus(artifact=ready.artifact)})

    step = plan_of(damaged, local=True).steps[0]

    assert isinstance(step.config, RelocateConfig)
    assert step.config.resolved_revision == "c0ffee"


def test_pin_of_a_local_folder_is_not_passed_to_the_relocator() -> None:
    step = plan_of(relocation("file:///data", revision=f"sha256-{'0' * 64}"), local=True).steps[0]

    assert isinstance(step.config, RelocateConfig)
    assert step.config.source.revision is None
