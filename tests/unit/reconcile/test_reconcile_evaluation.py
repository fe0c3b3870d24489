from collections.abc import Mapping

import pytest
from tests.support.objects import World, failed, job

from finetuning_api.base import ClaimRef, ConditionStatus, ConditionType, ObjectMeta
from finetuning_api.evaluationjob import EvaluationJob, EvaluationJobSpec, PredictionsArtifact
from finetuning_api.finetuningjob import JobPhase
from finetuning_api.metrics import Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation
from finetuning_api.runconfig import JobIdentity, PredictConfig
from finetuning_operator.reconcile.conditions import find_condition
from finetuning_operator.reconcile.plan import ClaimMount, ImageRole, StepPhase, StepState

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


def prediction(**spec: object) -> EvaluationJob:
    data = {"source": "s3://bucket/rows.jsonl", "revision": "7", "prompt": "{message}"}
    return comparison(
        **({"mode": "predict", "dataset": data, "metrics": ["perplexity", "completion-perplexity"]} | spec)
    )


def test_predictions_are_written_by_the_server_s_program_and_told_in_the_status() -> None:
    made = world(prediction(limit=5, generation={"maxNewTokens": 40, "stop": ["\n"]}))
    made.finish_relocations()
    (step,) = made.plans[KEY].steps
    running = evaluation(made).status.phase
    made.finish(KEY, "predict")

    assert (step.name, step.image, step.network) == ("predict", ImageRole.SERVER, False)
    config = step.config
    assert isinstance(config, PredictConfig)
    assert config == PredictConfig(
        job=JobIdentity(kind="EvaluationJob", name="compare"),
        candidates=config.candidates,
        dataset=config.dataset,
        limit=5,
        max_new_tokens=40,
        stop=("\n",),
        output_path="/volumes/compare-predictions",
    )
    assert running is JobPhase.PREDICTING
    status = evaluation(made).status
    assert [stage.name for stage in status.stages] == ["relocate", "predict"]
    assert {each.type for each in status.conditions if each.status is ConditionStatus.TRUE} == {
        ConditionType.ACCEPTED,
        ConditionType.RELOCATED,
        ConditionType.PREDICTED,
        ConditionType.COMPLETE,
    }
    assert status.phase is JobPhase.COMPLETE
    assert status.predictions == PredictionsArtifact(
        claim_name="compare-predictions", path="", rows=10, tokens=120, digest=f"sha256:{'d' * 64}", size_bytes=2000
    )
    assert (status.evaluation, status.report, status.warnings) == ([], None, [])


def test_claim_of_predictions_has_room_for_the_prompts_of_every_candidate_twice() -> None:
    made = world(
        prediction(candidates=[BASE, {"name": "tuned", "model": BASE["model"], "adapter": {"claimName": "a"}}])
    )
    made.finish_relocations()

    (volume,) = made.plans[KEY].volumes
    assert (volume.name, volume.size_bytes, volume.spec.size) == ("compare-predictions", 2**30 + 2 * 2 * 1000, None)


def test_size_and_place_of_predictions_can_be_chosen() -> None:
    sized = world(prediction(storage={"adapter": {"size": "5Gi"}}))
    sized.finish_relocations()
    placed = world(prediction(output={"claimName": "mine", "path": "out"}))
    placed.finish_relocations()

    assert sized.plans[KEY].volumes[0].spec.size == "5Gi"
    (step,) = placed.plans[KEY].steps
    assert placed.plans[KEY].volumes == ()
    assert step.config.kind == "predict"
    assert step.config.output_path == "/volumes/mine/out"


def test_metrics_of_predictions_are_said_to_have_no_effect() -> None:
    made = world(prediction(metrics=["rouge"]))

    assert evaluation(made).status.warnings == ["spec.metrics: without effect in mode predict, which computes none"]


def test_completions_are_of_256_tokens_at_most_unless_told_otherwise() -> None:
    made = world(prediction())
    made.finish_relocations()
    (step,) = made.plans[KEY].steps

    assert step.config.kind == "predict"
    assert step.config.max_new_tokens == 256


def test_predictions_of_a_job_wait_for_it() -> None:
    made = world(prediction(candidates=[{"name": "tuned", "jobRef": "demo"}]))

    assert [(stage.name, stage.message) for stage in evaluation(made).status.stages] == [
        ("wait", "waits for FineTuningJob demo (not there yet)"),
        ("relocate", ""),
        ("predict", ""),
    ]


def test_program_that_predicts_and_says_nothing_fails_the_job() -> None:
    made = world(prediction())
    made.finish_relocations()
    made.finish(KEY, "predict", StepState(StepPhase.SUCCEEDED))

    condition = find_condition(evaluation(made).status.conditions, ConditionType.FAILED)
    assert condition is not None
    assert (
        condition.message == "predict: the program (predict) ended without telling its result; its log has the details"
    )
