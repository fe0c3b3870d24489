from dataclasses import replace

import pytest
from tests.support.objects import World, job, relocation

from finetuning_api.base import ConditionType, ObjectMeta, ResourceRequirements
from finetuning_api.dataset import DatasetSpec
from finetuning_api.evaluationjob import CandidateSpec, EvaluationJob, EvaluationJobSpec
from finetuning_api.inferenceserver import InferenceServer, InferenceServerPhase, InferenceServerSpec
from finetuning_api.reasons import Reason
from finetuning_api.relocation import RelocationPhase
from finetuning_api.runconfig import MeasureConfig
from finetuning_api.scaling import AutoscalingSpec
from finetuning_api.sources import SourceRef
from finetuning_operator.reconcile.conditions import find_condition
from finetuning_operator.reconcile.plan import Settings
from finetuning_operator.reconcile.policy import Bounds, Mirrors, SourcePolicy

ONLY_S3 = SourcePolicy(allowed_sources=("s3://bucket/",))
KEY = ("FineTuningJob", "demo")


@pytest.mark.parametrize(
    ("beginning", "allowed", "forbidden"),
    [
        ("hf://acme/", "hf://acme/tiny", "hf://acmes/tiny"),
        ("hf://", "hf://any/model", "https://any/model"),
        ("https://data.example", "https://data.example/rows.csv", "https://data.example.evil/rows.csv"),
        ("https://data.example", "https://data.example", "https://data.example:8443/rows.csv"),
        ("https://data.example/open", "https://data.example/open/rows.csv", "https://data.example/open/../secret"),
        ("https://data.example/open", "https://data.example/open?v=1", "https://data.example/open/%2e%2e/secret"),
        ("pypi://tiny", "pypi://tiny==1.0", "pypi://tiny-evil==1.0"),
        ("oci://images.example/data", "oci://images.example/data:v1", "oci://images.example/database:v1"),
    ],
)
def test_a_beginning_ends_where_a_name_does(beginning: str, allowed: str, forbidden: str) -> None:
    policy = SourcePolicy(allowed_sources=(beginning,))

    verdicts = [policy.allows_source(SourceRef(source=source)) for source in (allowed, forbidden)]
    assert verdicts == [True, False]


def test_without_a_list_everything_may_be_brought_and_what_is_inside_always() -> None:
    anything = SourceRef(source="s3://other/rows", endpoint="https://store.example")

    assert SourcePolicy().allows_source(anything)
    assert SourcePolicy().allows_endpoint(anything)
    assert all(ONLY_S3.allows_source(SourceRef(source=f"{scheme}://mine/rows")) for scheme in ("pvc", "configmap"))


def test_where_something_is_forbidden_an_endpoint_must_be_listed() -> None:
    ref = SourceRef(source="s3://bucket/rows", endpoint="https://store.example/deep")

    assert not ONLY_S3.allows_endpoint(ref)
    listed = SourcePolicy(allowed_sources=("s3://",), allowed_endpoints=("https://store.example",))
    assert listed.allows_endpoint(ref)


def test_a_job_with_a_forbidden_source_is_refused_before_anything_starts() -> None:
    made = World(Settings(sources=ONLY_S3))
    made.add(job())
    made.settle()

    told = find_condition(made.job().status.conditions, ConditionType.ACCEPTED)
    assert told is not None
    message = (
        "spec.model.source is hf://acme/tiny, but this installation brings only what is below s3://bucket/: copy it to"
        " one of these places, or have this one added (relocation.allowedSources)"
    )
    assert (told.reason, told.message) == (Reason.NOT_ALLOWED, message)
    assert list(made.objects) == [KEY]


def test_evaluations_servers_and_relocations_are_bound_by_the_same_list() -> None:
    made = World(Settings(sources=ONLY_S3))
    model = SourceRef(source="hf://acme/tiny")
    data = DatasetSpec(source="s3://bucket/rows.jsonl", prompt="{a}", completion="{b}")
    compared = EvaluationJobSpec(candidates=[CandidateSpec(name="base", model=model)], dataset=data)
    made.add(EvaluationJob(metadata=ObjectMeta(name="compare"), spec=compared))
    made.add(InferenceServer(metadata=ObjectMeta(name="chat"), spec=InferenceServerSpec(model=model)))
    made.add(relocation("hf://acme/tiny"))
    made.settle()

    assert not any(plan.steps or plan.servers or plan.children for plan in made.plans.values())
    server = made.server("chat")
    assert server is not None
    assert server.status.phase is InferenceServerPhase.FAILED
    refused = [find_condition(each.status.conditions, ConditionType.FAILED) for each in (made.evaluation("compare"),)]
    brought = made.objects["Relocation", "reloc-0"].status  # type: ignore[attr-defined]
    assert (brought.phase, brought.reason) == (RelocationPhase.FAILED, Reason.NOT_ALLOWED)
    assert [each.reason for each in refused if each] == [Reason.NOT_ALLOWED]


def test_a_mirror_is_asked_where_a_source_names_no_endpoint() -> None:
    mirrors = Mirrors(hf="https://hub.example")
    made = World(Settings(sources=SourcePolicy(endpoints=mirrors)))
    for name, fields in (("public", {}), ("own", {"endpoint": "https://own.example"})):
        made.add(relocation("hf://acme/tiny", name=name, **fields))
    made.settle()

    asked = [step.config for plan in made.plans.values() for step in plan.steps]
    found = [config.source.endpoint for config in asked if isinstance(config, MeasureConfig)]
    assert found == ["https://hub.example", "https://own.example"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"limits": {"nvidia.com/gpu": "4"}}, "spec.resources.limits.nvidia.com/gpu is 4, but"),
        ({"requests": {"nvidia.com/gpu": "4"}}, "spec.resources.requests.nvidia.com/gpu is 4, but"),
        ({"limits": {"memory": "65537Mi"}}, "spec.resources.limits.memory is 65537Mi, but"),
        ({}, "spec.resources.limits.memory is not set, but this installation gives at most 64Gi in each pod"),
    ],
)
def test_more_than_the_bound_is_refused(spec: dict[str, dict[str, str]], message: str) -> None:
    memory = {"memory": "64Gi"} if "memory" in message or "not set" in message else {}
    made = World(Settings(bounds=Bounds(resources={"nvidia.com/gpu": "2", **memory})))
    made.add(job(resources=spec))
    made.settle()

    told = find_condition(made.job().status.conditions, ConditionType.FAILED)
    assert told is not None
    assert told.reason is Reason.NOT_ALLOWED
    assert told.message.startswith(message)
    assert list(made.objects) == [KEY]


def test_what_fits_is_accepted() -> None:
    made = World(Settings(bounds=Bounds(resources={"nvidia.com/gpu": "2", "memory": "64Gi"}, server_replicas=2)))
    made.add(job(resources={"limits": {"nvidia.com/gpu": "2", "memory": "65536Mi"}}, serving={"replicas": 2}))
    made.settle()

    assert made.holds(ConditionType.ACCEPTED)


def test_a_bound_that_is_lowered_ends_no_job_that_was_accepted() -> None:
    made = World(Settings())
    made.add(job(resources={"limits": {"nvidia.com/gpu": "2"}}))
    made.settle()
    made.finish_relocations()
    made.settings = replace(
        made.settings, bounds=Bounds(resources={"nvidia.com/gpu": "1"}, preset_required=True), sources=ONLY_S3
    )
    for step in ("preflight", "train"):
        made.finish(KEY, step)
    made.finish(("EvaluationJob", "demo-evaluation"), "evaluate")

    assert made.holds(ConditionType.COMPLETE)


def test_a_source_that_is_forbidden_later_is_brought_no_further() -> None:
    made = World(Settings())
    made.add(job())
    made.settle()
    assert made.wanted()

    made.settings = replace(made.settings, sources=ONLY_S3)
    made.settle()

    assert not [plan for key, plan in made.plans.items() if key[0] == "Relocation" and plan.steps][1:]
    told = find_condition(made.job().status.conditions, ConditionType.FAILED)
    assert told is not None
    assert told.reason is Reason.NOT_ALLOWED


def test_a_server_of_an_accepted_job_was_allowed_with_it_and_a_false_owner_helps_nobody() -> None:
    made = World(Settings())
    made.add(job(resources={"limits": {"nvidia.com/gpu": "2"}}, serving={"afterGate": False}))
    made.settle()
    made.finish_relocations()
    owned = made.server()
    assert owned is not None

    made.settings = replace(made.settings, bounds=Bounds(resources={"nvidia.com/gpu": "1"}))
    more = owned.spec.model_copy(update={"resources": ResourceRequirements(limits={"nvidia.com/gpu": "8"})})
    head = owned.metadata.model_copy(update={"name": "mine"})
    made.add(owned.model_copy(update={"metadata": head, "spec": more}))
    made.settle()

    told = [
        find_condition(each.status.conditions, ConditionType.ACCEPTED)
        for each in (made.server(), made.server("mine"))
        if each
    ]
    assert [each.reason for each in told if each] == [Reason.ACCEPTED, Reason.NOT_ALLOWED]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"replicas": 3}, "spec.replicas is 3, but this installation gives a server at most 2"),
        ({"autoscaling": AutoscalingSpec(max_replicas=3)}, "spec.autoscaling.maxReplicas is 3, but"),
        ({"resources": {"limits": {"nvidia.com/gpu": "2"}}}, "spec.resources.limits.nvidia.com/gpu is 2, but"),
    ],
)
def test_servers_are_bound_too(fields: dict[str, object], message: str) -> None:
    made = World(Settings(bounds=Bounds(resources={"nvidia.com/gpu": "1"}, server_replicas=2)))
    spec = InferenceServerSpec.model_validate({"model": {"source": "hf://acme/tiny"}} | fields)
    made.add(InferenceServer(metadata=ObjectMeta(name="chat"), spec=spec))
    made.settle()

    server = made.server("chat")
    assert server is not None
    told = find_condition(server.status.conditions, ConditionType.ACCEPTED)
    assert told is not None
    assert (told.reason, told.message.startswith(message)) == (Reason.NOT_ALLOWED, True)


CUSTOM = {"metrics": ["custom"], "custom": [{"name": "tone", "source": "configmap://metric", "allowCode": True}]}
NO_CODE = Bounds(metric_code=False)
REFUSED = (
    " brings code, but this installation runs no metrics of others (bounds.metricCode): use the built-in metrics, or"
    " have it allowed"
)


def test_a_metric_of_a_user_s_own_is_refused_where_code_is_not_allowed() -> None:
    made = World(Settings(bounds=NO_CODE))
    made.add(job(evaluation=CUSTOM))
    made.settle()
    told = find_condition(made.job().status.conditions, ConditionType.FAILED)

    assert told is not None
    assert (told.reason, told.message) == (Reason.NOT_ALLOWED, f"spec.evaluation.custom{REFUSED}")


def test_code_that_was_accepted_with_its_job_is_run_and_no_other() -> None:
    made = World()
    made.add(job(evaluation=CUSTOM))
    made.settle()
    made.finish_relocations()
    made.settings = Settings(bounds=NO_CODE)
    for step in ("preflight", "train"):
        made.finish(KEY, step)
    own = made.evaluation()
    head = own.metadata.model_copy(update={"name": "mine"})
    other = [each.model_copy(update={"source": "configmap://other"}) for each in own.spec.custom]
    made.add(EvaluationJob(metadata=head, spec=own.spec.model_copy(update={"custom": other})))
    made.settle()

    assert [step.name for step in made.plans["EvaluationJob", "demo-evaluation"].steps] == ["evaluate"]
    told = find_condition(made.evaluation("mine").status.conditions, ConditionType.FAILED)
    assert told is not None
    assert (told.reason, told.message) == (Reason.NOT_ALLOWED, f"spec.custom{REFUSED}")
