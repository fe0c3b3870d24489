from collections.abc import Mapping

import pytest
from tests.support.objects import World, failed, job

from finetuning_api.base import ClaimRef, ConditionType, ObjectMeta
from finetuning_api.evaluationjob import EvaluationJob, EvaluationJobSpec
from finetuning_api.finetuningjob import JobPhase
from finetuning_api.metrics import Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation
from finetuning_operator.reconcile.conditions import find_condition
from finetuning_operator.reconcile.plan import ClaimMount

KEY = ("EvaluationJob", "compare")
JOB = ("FineTuningJob", "demo")
DATA = {"source": "s3://bucket/rows.jsonl", "revision": "7", "prompt": "{message}", "completion": "{triage}"}
BASE: Mapping[str, object] = {"name": "base", "model": {"source": "hf://acme/tiny", "revision": "v1"}}


def comparison(*candidates: Mapping[str, object], **spec: object) -> EvaluationJob:
    fields = {"candidates": list(candidates) or [BASE], "dataset": DATA, "metrics": ["rouge", "exact-match"]} | spec
    return EvaluationJob(metadata=ObjectMeta(name="compare"), spec=EvaluationJobSpec.model_validate(fields))


def world(resource: EvaluationJob) -> World:
    made = World()
    made.add(resource)
    made.settle()
    return made


def evaluation(made: World) -> EvaluationJob:
    return made.evaluation("compare")


def test_candidates_are_relocated_then_evaluated_then_complete() -> None:
    made = world(comparison())
    assert evaluation(made).status.phase is JobPhase.RELOCATING
    made.finish_relocations()
    step = made.plans[KEY].steps[0]
    made.finish(KEY, "evaluate")

    assert step.config.kind == "evaluate"
    assert step.config.metrics == (
        Metric.ROUGE1,
        Metric.ROUGE2,
        Metric.ROUGE_L,
        Metric.ROUGE_LSUM,
        Metric.EXACT_MATCH,
    )
    status = evaluation(made).status
    assert status.phase is JobPhase.COMPLETE
    assert status.verdict is Verdict.PASS
    assert [row.tuned for row in status.evaluation] == [0.9]
    assert status.report == ClaimRef(claim_name="compare-report")


def test_report_without_a_place_gets_a_small_claim_of_its_own() -> None:
    made = world(comparison())
    made.finish_relocations()

    assert [volume.name for volume in made.plans[KEY].volumes] == ["compare-report"]


def test_relocations_are_those_of_a_job_with_the_same_needs() -> None:
    made = world(comparison())
    made.add(job())
    made.settle()

    assert len([each for each in made.objects.values() if isinstance(each, Relocation)]) == 2


def test_candidate_of_a_job_waits_for_the_job_and_takes_its_adapter() -> None:
    tuned: Mapping[str, object] = {"name": "tuned", "jobRef": "demo"}
    made = world(comparison(BASE, tuned))
    stage = evaluation(made).status.stages[0]
    assert (stage.name, stage.message) == ("wait", "waits for FineTuningJob demo (not there yet)")

    made.add(job(evaluation={"enabled": False}))
    made.settle()
    made.finish_relocations()
    made.finish(JOB, "preflight")
    made.finish(JOB, "train")
    step = made.plans[KEY].steps[0]

    assert step.config.kind == "evaluate"
    assert [candidate.adapter_path for candidate in step.config.candidates] == [None, "/volumes/demo-adapter/adapter"]
    assert ClaimMount("demo-adapter", "/volumes/demo-adapter", read_only=True) in step.mounts


def test_failed_job_fails_the_evaluation_of_its_result() -> None:
    made = world(comparison(BASE, {"name": "tuned", "jobRef": "demo"}))
    made.add(job())
    made.settle()
    made.finish_relocations()
    made.finish(JOB, "preflight", failed())

    condition = find_condition(evaluation(made).status.conditions, ConditionType.FAILED)
    assert condition is not None
    assert condition.reason is Reason.DEPENDENCY_FAILED
    assert "FineTuningJob demo failed" in condition.message


def test_candidates_of_every_origin_are_compared_together() -> None:
    made = world(
        comparison(
            BASE,
            {"name": "reference", "model": {"source": "pvc://models/llama"}},
            {"name": "mine", "model": BASE["model"], "adapter": {"claimName": "mine", "path": "a"}},
            {"name": "tuned", "jobRef": "demo"},
            {"name": "remade", "model": BASE["model"], "adapter": {"claimName": "demo-adapter", "path": "adapter"}},
        )
    )
    made.add(job(evaluation={"enabled": False}))
    made.settle()
    made.finish_relocations()
    made.finish(JOB, "preflight")
    made.finish(JOB, "train")
    made.finish_relocations()
    (step,) = made.plans[KEY].steps
    config = step.config
    assert config.kind == "evaluate"
    adapter, digest = "/volumes/demo-adapter/adapter", f"sha256:{'c' * 64}"
    base = config.candidates[0].model.path

    assert [(each.name, each.model.path, each.adapter_path, each.adapter_digest) for each in config.candidates] == [
        ("base", base, None, None),
        ("reference", "/volumes/models/llama", None, None),
        ("mine", base, "/volumes/mine/a", None),
        ("tuned", base, adapter, digest),
        ("remade", base, adapter, digest),
    ]
    writable = {mount.claim for mount in step.mounts if isinstance(mount, ClaimMount) and not mount.read_only}
    claims = [mount.claim for mount in step.mounts if isinstance(mount, ClaimMount)]
    assert writable == {"compare-report"}
    assert len(claims) == len(set(claims))
    assert {"models", "mine", "demo-adapter"} < set(claims)


def test_report_can_lie_beside_what_is_evaluated() -> None:
    made = world(
        comparison(
            {"name": "base", "model": {"source": "pvc://models/llama"}},
            output={"claimName": "models", "path": "reports"},
        )
    )
    made.finish_relocations()
    (step,) = made.plans[KEY].steps

    assert made.plans[KEY].volumes == ()
    assert [mount for mount in step.mounts if isinstance(mount, ClaimMount) and mount.claim == "models"] == [
        ClaimMount("models", "/volumes/models", read_only=False)
    ]


def test_fully_tuned_model_of_a_job_is_verified_where_it_lies() -> None:
    made = world(comparison(BASE, {"name": "tuned", "jobRef": "demo"}))
    made.add(job(evaluation={"enabled": False}, method={"type": "full"}))
    made.settle()
    made.finish_relocations()
    made.finish(JOB, "preflight")
    made.finish(JOB, "train")
    verified = [step.config.kind for key, plan in made.plans.items() if key[0] == "Relocation" for step in plan.steps]
    made.finish_relocations()
    config = made.plans[KEY].steps[0].config

    assert verified == ["verify"]
    assert config.kind == "evaluate"
    assert config.candidates[1].model.path == "/volumes/demo-adapter/adapter"


def test_job_that_goes_away_is_waited_for_again() -> None:
    made = world(comparison(BASE, {"name": "tuned", "jobRef": "demo"}))
    made.add(job(evaluation={"enabled": False}))
    made.settle()
    made.finish_relocations()
    made.finish(JOB, "preflight")
    made.finish(JOB, "train")
    assert made.plans[KEY].steps
    del made.objects[JOB]
    made.settle()

    assert made.plans[KEY].steps == ()
    assert evaluation(made).status.stages[0].message == "waits for FineTuningJob demo (not there yet)"


@pytest.mark.parametrize(("place", "path"), [("dataset", "rows.jsonl"), ("candidates[0].model", "/models/tiny")])
def test_path_of_one_machine_is_refused_on_a_cluster(place: str, path: str) -> None:
    if place == "dataset":
        made = world(comparison(dataset=DATA | {"source": path}))
    else:
        made = world(comparison({"name": "base", "model": {"source": path}}))

    condition = find_condition(evaluation(made).status.conditions, ConditionType.FAILED)
    assert condition is not None
    assert condition.message.startswith(f"spec.{place}.source {path!r} is a path of one machine")


def test_finished_evaluation_is_left_alone() -> None:
    made = world(comparison())
    made.finish_relocations()
    made.finish(KEY, "evaluate")
    before = evaluation(made)
    made.steps.clear()

    assert made.apply(KEY).status == before.status
    assert made.plans[KEY].steps == ()
