from datetime import timedelta
from typing import Any

import pytest
from tests.support.objects import DIGEST, NOW, RESULTS, World, failed, job

from finetuning_api.base import ConditionStatus, ConditionType, StageState
from finetuning_api.dataset import DatasetSpec
from finetuning_api.deepspeed import DeepSpeedSpec
from finetuning_api.evaluationjob import EvaluationJobStatus
from finetuning_api.finetuningjob import CanaryShare, FineTuningJob, FineTuningJobStatus, JobPhase, ServingSpec
from finetuning_api.inferenceserver import CanarySpec, InferenceServer
from finetuning_api.metrics import EvaluationRow, GateResult, Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation
from finetuning_api.runconfig import (
    EvaluateConfig,
    EvaluateResult,
    LastWords,
    PreflightConfig,
    ProgressMetric,
    TrainConfig,
    TrainerMetric,
    TrainerStatus,
    TrainingInputs,
    TrainResult,
)
from finetuning_api.sources import SourceRef
from finetuning_operator.reconcile import reconcile
from finetuning_operator.reconcile.conditions import events_between, find_condition
from finetuning_operator.reconcile.names import evaluation_name
from finetuning_operator.reconcile.plan import ClaimMount, Observed, Settings, StepPhase, StepState

GATE: dict[str, Any] = {"metrics": ["exact-match"], "gate": [{"metric": "exact-match", "minDelta": 0.1}]}
KEY = ("FineTuningJob", "demo")
EVALUATION = ("EvaluationJob", "demo-evaluation")


def world(resource: FineTuningJob | None = None, *, local: bool = False) -> World:
    made = World(Settings(local=local))
    made.add(resource or job())
    made.settle()
    return made


def trained(resource: FineTuningJob | None = None, *, local: bool = False) -> World:
    made = world(resource, local=local)
    made.finish_relocations()
    made.finish(KEY, "preflight")
    made.finish(KEY, "train")
    return made


def evaluated(verdict: Verdict | None, **spec: object) -> World:
    fields: dict[str, Any] = {"evaluation": GATE} | spec
    made = trained(job(**fields))
    gates = (GateResult(metric=Metric.EXACT_MATCH, verdict=verdict, message="why"),) if verdict else ()
    rows = (EvaluationRow(metric=Metric.EXACT_MATCH, base=0.1, tuned=0.2),)
    words = LastWords(reason=Reason.SUCCEEDED, result=EvaluateResult(rows=rows, gates=gates, verdict=verdict))
    made.finish(EVALUATION, "evaluate", StepState(StepPhase.SUCCEEDED, last_words=words))
    return made


def test_what_a_relocation_tries_again_is_told_while_it_does() -> None:
    made = world()
    (model,) = (key for key, each in made.objects.items() if isinstance(each, Relocation) and "hf:" in each.spec.source)
    words = LastWords(reason=Reason.NETWORK_UNREACHABLE, message="cannot reach hub", hint="Wait.")
    made.finish(model, "measure", StepState(StepPhase.PENDING, attempts=1, last_words=words))

    assert made.job().status.stages[0].message.endswith("model measuring: tries again after: cannot reach hub. Wait.")


def test_job_goes_from_relocation_to_its_results() -> None:
    made = world()
    seen = [(made.job().status.phase, made.wanted())]
    made.finish_relocations()
    for owner, step in ((KEY, "preflight"), (KEY, "train"), (EVALUATION, "evaluate")):
        seen.append((made.job().status.phase, made.wanted()))
        made.finish(owner, step)

    assert [phase for phase, _ in seen] == [
        JobPhase.RELOCATING,
        JobPhase.PREPARING,
        JobPhase.TRAINING,
        JobPhase.EVALUATING,
    ]
    assert [wanted for _, wanted in seen[1:]] == [
        {"preflight": KEY},
        {"train": KEY},
        {"evaluate": EVALUATION},
    ]
    status = made.job().status
    assert made.holds(ConditionType.COMPLETE)
    assert [stage.state for stage in status.stages] == [StageState.SUCCEEDED] * 4
    assert status.evaluation == list(made.evaluation().status.evaluation)
    assert status.warnings == ["tight"]


def test_model_data_tokenizer_and_reference_are_relocated_each_once() -> None:
    reference = SourceRef(source="hf://acme/large", revision="v1")
    made = world(
        job(
            tokenizer={"source": "hf://acme/tiny", "revision": "v1"},
            evaluation={**GATE, "reference": reference},
            storage={"model": {"size": "9Gi"}, "dataset": {"storageClassName": "fast"}},
        )
    )

    specs = {each.spec.source: each.spec for each in made.objects.values() if isinstance(each, Relocation)}
    include = {
        (each.spec.source, bool(each.spec.include)) for each in made.objects.values() if isinstance(each, Relocation)
    }
    assert include == {
        ("s3://bucket/rows.jsonl", False),
        ("hf://acme/tiny", False),
        ("hf://acme/tiny", True),
        ("hf://acme/large", False),
    }
    assert specs["hf://acme/large"].volume.size == "9Gi"
    assert specs["s3://bucket/rows.jsonl"].volume.storage_class_name == "fast"


def test_two_jobs_share_what_both_need() -> None:
    made = world()
    made.add(job("other"))
    made.settle()

    assert len([key for key in made.objects if key[0] == "Relocation"]) == 2


def test_a_job_tells_what_was_relocated_for_it_and_what_was_there_before() -> None:
    made = world()
    made.finish_relocations()
    made.add(job("second", dataset=DatasetSpec(source="s3://bucket/other.jsonl", prompt="{a}", completion="{b}")))
    made.settle()
    made.finish_relocations()

    told = {name: made.job(name).status.stages[0].message for name in ("demo", "second")}

    assert told == {
        "demo": "dataset relocated (900 bytes), model relocated (900 bytes)",
        "second": "dataset relocated (900 bytes), model shared (0 of 1000 bytes relocated)",
    }


def test_bytes_came_for_the_job_that_was_there_before_them_however_late_its_first_status_was_written() -> None:
    made = World()
    key = made.add(job())
    made.settle()
    first = made.objects[key]
    made.finish_relocations()
    made.objects[key] = first.model_copy(update={"status": FineTuningJobStatus()})
    made.settle()

    assert made.job().status.stages[0].message == "dataset relocated (900 bytes), model relocated (900 bytes)"


def test_what_was_relocated_is_told_on_when_a_job_was_suspended_meanwhile() -> None:
    made = world()
    made.finish_relocations()
    told = made.job().status.stages[0].message
    for suspend in (True, False):
        found = made.job()
        made.add(found.model_copy(update={"spec": found.spec.model_copy(update={"suspend": suspend})}))
        made.settle()

    assert made.job().status.stages[0].message == told


def test_preflight_and_training_see_the_same_inputs_and_write_to_the_adapters_claim() -> None:
    made = world(job(resources={"limits": {"nvidia.com/gpu": "1", "memory": "8Gi"}}))
    made.finish_relocations()
    preflight = made.plans[KEY].steps[0]
    made.finish(KEY, "preflight")
    train = made.plans[KEY].steps[0]

    assert isinstance(preflight.config, PreflightConfig)
    assert isinstance(train.config, TrainConfig)
    shared = set(TrainingInputs.model_fields)
    assert preflight.config.model_dump(include=shared) == train.config.model_dump(include=shared)
    assert preflight.resources.limits == {"memory": "8Gi"}
    assert train.resources.limits == {"nvidia.com/gpu": "1", "memory": "8Gi"}
    assert train.config.output_path == "/volumes/demo-adapter/adapter"
    assert train.config.checkpoint_path == "/volumes/demo-adapter/checkpoints"
    writable = [mount for mount in train.mounts if isinstance(mount, ClaimMount) and not mount.read_only]
    assert writable == [ClaimMount("demo-adapter", "/volumes/demo-adapter", read_only=False)]
    assert len(train.mounts) == 3
    assert not train.network


def test_preflight_knows_what_the_evaluation_will_be_asked() -> None:
    made = world(job(evaluation={**GATE, "limit": 7, "reference": {"source": "hf://acme/large", "revision": "v1"}}))
    made.finish_relocations()
    preflight = made.plans[KEY].steps[0]
    made.finish(KEY, "preflight")
    made.finish(KEY, "train")
    evaluate = made.plans[EVALUATION].steps[0]

    assert isinstance(preflight.config, PreflightConfig)
    assert isinstance(evaluate.config, EvaluateConfig)
    asked = preflight.config.evaluation
    assert asked is not None
    rules = {"metrics", "gate", "limit"}
    assert asked.model_dump(include=rules) == evaluate.config.model_dump(include=rules)
    assert [each.name for each in asked.candidates] == [each.name for each in evaluate.config.candidates]
    assert [each.model for each in asked.candidates] == [each.model for each in evaluate.config.candidates]
    assert {mount.path for mount in preflight.mounts} == {mount.path for mount in evaluate.mounts}


def test_preflight_is_asked_nothing_of_an_evaluation_that_is_off() -> None:
    made = world(job(evaluation={"enabled": False}))
    made.finish_relocations()

    (preflight,) = made.plans[KEY].steps

    assert isinstance(preflight.config, PreflightConfig)
    assert preflight.config.evaluation is None


def test_evaluation_compares_base_tuned_and_reference_on_the_adapters_claim() -> None:
    made = trained(job(evaluation={**GATE, "reference": {"source": "hf://acme/large", "revision": "v1"}}))

    step = made.plans[EVALUATION].steps[0]
    config = step.config
    assert config.kind == "evaluate"
    base, tuned, reference = config.candidates
    assert (base.name, base.adapter_path) == ("base", None)
    assert (tuned.adapter_path, tuned.adapter_digest) == ("/volumes/demo-adapter/adapter", f"sha256:{'c' * 64}")
    assert tuned.model == base.model
    assert reference.model.provenance.source == "hf://acme/large"
    assert config.output_path == "/volumes/demo-adapter/evaluation"
    claims = [mount.claim for mount in step.mounts if isinstance(mount, ClaimMount)]
    assert len(claims) == len(set(claims)) == 4


def test_a_script_is_relocated_whole_and_read_by_preflight_and_training() -> None:
    script = {"source": "git+https://example.org/team/code", "revision": "main", "command": ["python", "sft.py"]}
    made = world(job(script=script))
    (relocated,) = (
        each for each in made.objects.values() if isinstance(each, Relocation) and "code" in each.spec.source
    )
    assert relocated.spec.include == ["*"]
    made.finish_relocations()
    preflight = made.plans[KEY].steps[0]
    made.finish(KEY, "preflight")
    train = made.plans[KEY].steps[0]

    assert isinstance(train.config, TrainConfig)
    assert isinstance(preflight.config, PreflightConfig)
    assert train.config.script == preflight.config.script
    assert train.config.script is not None
    assert train.config.script.command == ("python", "sft.py")
    assert train.config.script.path == f"/volumes/{relocated.metadata.name}/artifact"
    assert train.config.script.provenance.source == "git+https://example.org/team/code"
    mounted = {mount.claim for mount in train.mounts if isinstance(mount, ClaimMount) and mount.read_only}
    assert relocated.metadata.name in mounted


def test_a_script_may_bring_its_image_and_do_what_the_built_in_training_cannot() -> None:
    script = {"source": "configmap://sft", "command": ["python", "sft.py"], "image": "team/trainer:1"}
    made = world(job(script=script, method={"type": "qlora"}))
    made.finish_relocations()
    assert made.plans[KEY].steps[0].own_image == "team/trainer:1"
    refused = world(job(method={"type": "qlora"}))
    assert refused.plans[KEY].steps == ()
    assert find_condition(refused.job().status.conditions, ConditionType.ACCEPTED) is not None
    assert not refused.holds(ConditionType.ACCEPTED)


def test_on_one_machine_a_script_has_no_image_and_that_is_told() -> None:
    script = {"source": "configmap://sft", "command": ["python", "sft.py"], "image": "team/trainer:1"}
    assert any(
        "spec.script.image: without effect" in each
        for each in world(job(script=script), local=True).job().status.warnings
    )


def test_fully_tuned_model_is_a_candidate_of_its_own() -> None:
    made = trained(job(method={"type": "full"}))
    made.finish_relocations()

    config = made.plans[EVALUATION].steps[0].config
    assert config.kind == "evaluate"
    tuned = config.candidates[1]
    assert (tuned.adapter_path, tuned.model.path) == (None, "/volumes/demo-adapter/adapter")


@pytest.mark.parametrize(
    ("verdict", "status", "reason"),
    [
        (Verdict.PASS, ConditionStatus.TRUE, Reason.GATE_PASSED),
        (Verdict.FAIL, ConditionStatus.FALSE, Reason.GATE_FAILED),
        (Verdict.INCONCLUSIVE, ConditionStatus.FALSE, Reason.GATE_INCONCLUSIVE),
    ],
)
def test_gate_is_told_but_does_not_fail_the_job(verdict: Verdict, status: ConditionStatus, reason: Reason) -> None:
    made = evaluated(verdict)

    gate = find_condition(made.job().status.conditions, ConditionType.GATE_PASSED)
    assert gate is not None
    assert (gate.status, gate.reason, gate.message) == (status, reason, "why")
    assert made.holds(ConditionType.COMPLETE)


def test_without_rules_there_is_no_gate() -> None:
    made = evaluated(None, evaluation={"metrics": ["exact-match"]})

    assert find_condition(made.job().status.conditions, ConditionType.GATE_PASSED) is None
    assert made.holds(ConditionType.COMPLETE)


def test_only_what_passed_the_gate_is_served() -> None:
    failing = evaluated(Verdict.FAIL, serving={"replicas": 2})
    passing = evaluated(Verdict.PASS, serving={"replicas": 2})

    assert failing.server() is None
    assert failing.holds(ConditionType.COMPLETE)
    server = passing.server()
    assert server is not None
    assert (server.spec.replicas, [adapter.name for adapter in server.spec.adapters]) == (2, ["demo"])
    assert passing.job().status.phase is JobPhase.SERVING


def test_a_share_of_a_name_goes_to_what_was_tuned_and_can_be_changed() -> None:
    made = evaluated(Verdict.PASS, serving={"canary": {"name": "live", "weight": 10}})
    made.answer()
    server, job = made.server(), made.job()
    serving = ServingSpec(canary=CanaryShare(name="live", weight=50))
    made.add(job.model_copy(update={"spec": job.spec.model_copy(update={"serving": serving})}))
    made.settle()
    (changed,) = made.plans[KEY].children

    assert server is not None
    assert server.spec.canary == CanarySpec(name="live", adapter="demo", weight=10)
    assert isinstance(changed, InferenceServer)
    assert changed.spec.canary == CanarySpec(name="live", adapter="demo", weight=50)


def test_one_machine_serves_nothing_and_says_what_to_do_instead() -> None:
    made = trained(job(serving={"replicas": 1}), local=True)
    made.finish(EVALUATION, "evaluate")

    serving = find_condition(made.job().status.conditions, ConditionType.SERVING)
    assert serving is not None
    assert (serving.status, serving.reason) == (ConditionStatus.FALSE, Reason.NOT_REQUESTED)
    assert "finetune serve demo" in serving.message
    assert made.server() is None
    assert made.holds(ConditionType.COMPLETE)


def test_job_without_evaluation_ends_after_training() -> None:
    made = trained(job(evaluation={"enabled": False}))

    assert made.holds(ConditionType.COMPLETE)
    assert EVALUATION not in made.objects
    assert made.job().status.stages[-1].state is StageState.SKIPPED


@pytest.mark.parametrize("step", ["preflight", "train"])
def test_failed_step_fails_the_job_with_its_last_words(step: str) -> None:
    made = world()
    made.finish_relocations()
    if step == "train":
        made.finish(KEY, "preflight")
    made.finish(KEY, step, failed(Reason.LOSS_DIVERGED, "the loss is NaN", "Lower learningRate."))

    condition = find_condition(made.job().status.conditions, ConditionType.FAILED)
    assert condition is not None
    assert condition.reason is Reason.LOSS_DIVERGED
    assert condition.message == f"{step}: the loss is NaN. Lower learningRate."
    assert made.plans[KEY].steps == ()


def test_failed_relocation_fails_the_job_and_names_the_role() -> None:
    made = world()
    source = next(
        key for key, each in made.objects.items() if isinstance(each, Relocation) and "hf" in each.spec.source
    )
    made.finish(source, "measure", failed(Reason.REVISION_NOT_FOUND, "no revision v1", "Name another."))

    condition = find_condition(made.job().status.conditions, ConditionType.FAILED)
    assert condition is not None
    assert condition.reason is Reason.REVISION_NOT_FOUND
    assert condition.message == "relocate: model: measure: no revision v1. Name another."


def test_failed_evaluation_fails_the_job() -> None:
    made = trained()
    made.finish(EVALUATION, "evaluate", failed(Reason.CANDIDATES_IDENTICAL, "equal logits", "Train longer."))

    assert made.holds(ConditionType.FAILED)
    assert not made.holds(ConditionType.COMPLETE)


def test_finished_job_is_left_alone_whatever_happens_to_its_children() -> None:
    made = evaluated(Verdict.PASS)
    before = made.job()
    made.steps.clear()
    made.objects = {KEY: before}

    plan = made.apply(KEY)

    assert (plan.status, plan.steps, plan.children) == (before.status, (), ())


def test_running_stage_shows_the_programs_numbers() -> None:
    made = world()
    made.finish_relocations()
    made.finish(KEY, "preflight")
    values = {ProgressMetric.STEP: "3", ProgressMetric.TOTAL_STEPS: "10", ProgressMetric.LOSS: "1.25", "odd": "NaN?"}
    report = TrainerStatus(
        last_updated_time=NOW,
        progress_percentage=30,
        estimated_remaining_seconds=70,
        metrics=tuple(TrainerMetric(name=name, value=value) for name, value in values.items()),
    )
    made.finish(KEY, "train", StepState(StepPhase.RUNNING, started_at=NOW, progress=report))

    progress = made.job().status.progress
    assert progress is not None
    assert (progress.percent, progress.step, progress.total_steps, progress.loss, progress.eta_seconds) == (
        30,
        3,
        10,
        1.25,
        70,
    )
    assert made.job().status.stages[2].percent == 30


def test_suspended_job_runs_nothing_and_goes_on_when_it_is_resumed() -> None:
    made = world()
    made.finish_relocations()
    made.finish(KEY, "preflight", StepState(StepPhase.RUNNING))
    running = made.job()
    suspended = running.model_copy(update={"spec": running.spec.model_copy(update={"suspend": True})})
    made.add(suspended)
    made.settle()

    assert made.plans[KEY].steps == ()
    assert made.holds(ConditionType.SUSPENDED)
    assert made.job().status.phase is JobPhase.SUSPENDED
    assert all(stage.state is not StageState.RUNNING for stage in made.job().status.stages)

    made.add(made.job().model_copy(update={"spec": running.spec}))
    made.settle()

    assert [step.name for step in made.plans[KEY].steps] == ["preflight"]
    assert not made.holds(ConditionType.SUSPENDED)


def test_stage_that_waited_is_suspended_and_no_longer_says_for_what() -> None:
    made = world()
    made.finish_relocations()
    words = LastWords(reason=Reason.UNSCHEDULABLE, message="no node has a free accelerator")
    made.finish(KEY, "preflight", StepState(StepPhase.PENDING, attempts=0, hindrance=words))
    waiting = made.job()
    made.add(waiting.model_copy(update={"spec": waiting.spec.model_copy(update={"suspend": True})}))
    made.settle()

    told = [(each.name, each.message) for each in made.job().status.stages[1:] if each.message]
    assert told == [("preflight", "suspended")]


def test_attempts_of_the_evaluation_count_on_when_its_object_is_gone() -> None:
    made = trained()
    made.finish(EVALUATION, "evaluate", StepState(StepPhase.RUNNING, attempts=2))
    first = made.evaluation().metadata.annotations
    del made.objects[EVALUATION], made.steps[EVALUATION]
    made.settle()
    anew, (step,) = made.evaluation(), made.plans[EVALUATION].steps
    made.finish(EVALUATION, "evaluate", StepState(StepPhase.RUNNING, attempts=3))

    assert first == {}
    assert anew.metadata.annotations == {"finetuning.dev/earlier-attempts": "2"}
    assert (step.name, step.earlier_attempts) == ("evaluate", 2)
    assert made.job().status.stages[-1].attempts == 3


@pytest.mark.parametrize("told", ["", "many", "-1", "\N{SUPERSCRIPT TWO}", "9" * 5000])
def test_an_annotation_that_nobody_here_wrote_counts_nothing(told: str) -> None:
    made = trained()
    anew = made.evaluation()
    head = anew.metadata.model_copy(update={"annotations": {"finetuning.dev/earlier-attempts": told}})
    made.add(anew.model_copy(update={"metadata": head}))
    made.settle()

    assert [step.earlier_attempts for step in made.plans[EVALUATION].steps] == [0]


def test_attempts_of_a_stage_count_on_when_what_ran_it_is_gone() -> None:
    made = world()
    made.finish_relocations()
    first = made.plans[KEY].steps[0]
    made.finish(KEY, "preflight", StepState(StepPhase.RUNNING, attempts=2))
    del made.steps[KEY]["preflight"]
    made.settle()
    second = made.plans[KEY].steps[0]

    assert (first.name, first.earlier_attempts) == ("preflight", 0)
    assert (second.name, second.earlier_attempts) == ("preflight", 2)
    assert made.job().status.stages[1].attempts == 2


@pytest.mark.parametrize(
    ("attempts", "step", "resumptions", "told"),
    [
        (1, None, 0, ""),
        (1, 40, 1, "resumed 1 time, the last time from step 40"),
        (1, 40, 2, "resumed 2 times, the last time from step 40"),
        (2, 40, 2, "resumed 2 times, the last time from step 40"),
        (4, 120, 1, "resumed 3 times, the last time from step 120"),
        (3, None, 0, "started 3 times, the last time from the beginning"),
    ],
)
def test_a_training_that_was_interrupted_tells_how_often_and_goes_on_telling(
    attempts: int, step: int | None, resumptions: int, told: str
) -> None:
    made = world()
    made.finish_relocations()
    made.finish(KEY, "preflight")
    result = TrainResult.model_validate(RESULTS["train"]).model_copy(
        update={"resumed_from_step": step, "resumptions": resumptions}
    )
    words = LastWords(reason=Reason.SUCCEEDED, result=result)
    made.finish(KEY, "train", StepState(StepPhase.SUCCEEDED, attempts=attempts, last_words=words))
    made.finish(EVALUATION, "evaluate")

    status = made.job().status
    trained = find_condition(status.conditions, ConditionType.TRAINED)
    stage = status.stages[2]
    assert made.holds(ConditionType.COMPLETE)
    assert trained is not None
    assert (trained.message, stage.message, stage.attempts) == (told, told, attempts)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ((6,), "resumed 1 time, the last time from step 3; the checkpoint of step 6 was damaged and passed over"),
        (
            (4, 6),
            "resumed 1 time, the last time from step 3; checkpoints of steps 4 and 6 were damaged and passed over",
        ),
    ],
)
def test_checkpoints_that_were_damaged_are_told_with_what_was_gone_on_from(steps: tuple[int, ...], told: str) -> None:
    made = world()
    made.finish_relocations()
    made.finish(KEY, "preflight")
    result = TrainResult.model_validate(RESULTS["train"]).model_copy(
        update={"resumed_from_step": 3, "resumptions": 1, "damaged_checkpoints": steps}
    )
    words = LastWords(reason=Reason.SUCCEEDED, result=result)
    made.finish(KEY, "train", StepState(StepPhase.SUCCEEDED, attempts=2, last_words=words))

    trained = find_condition(made.job().status.conditions, ConditionType.TRAINED)
    assert trained is not None
    assert trained.message == made.job().status.stages[2].message == f"{told}: look at the adapter's volume"


@pytest.mark.parametrize(
    ("stopped", "attempts", "told"),
    [
        (True, 1, "stopped early at step 5, kept"),
        (False, 1, "trained to step 5, kept"),
        (True, 2, "started 2 times, the last time from the beginning; stopped early at step 5, kept"),
    ],
)
def test_a_training_with_early_stopping_tells_which_step_was_kept(stopped: bool, attempts: int, told: str) -> None:  # noqa: FBT001  (a parameter of pytest)
    made = world()
    made.finish_relocations()
    made.finish(KEY, "preflight")
    chosen = {"best_step": 3, "stopped_early": stopped}
    result = TrainResult.model_validate(RESULTS["train"]).model_copy(update=chosen)
    words = LastWords(reason=Reason.SUCCEEDED, result=result)
    made.finish(KEY, "train", StepState(StepPhase.SUCCEEDED, attempts=attempts, last_words=words))

    assert made.job().status.stages[2].message == f"{told} step 3 with the lowest held-out loss"


def test_claim_that_goes_when_a_step_ends_is_told_while_it_runs() -> None:
    made = world()
    made.finish_relocations()
    made.finish(KEY, "preflight", StepState(StepPhase.RUNNING))
    before = made.job().status.stages[1]
    made.steps[KEY]["preflight"] = StepState(StepPhase.RUNNING, leaving_claims=("demo-adapter",))
    plan = made.apply(KEY)

    message = (
        "somebody deleted claim demo-adapter: it goes, with everything on it, when this pod ends. "
        "That cannot be taken back. Copy what you need while the pod runs"
    )
    after = made.job().status.stages[1]
    assert (before.message, after.message, after.state) == ("", message, StageState.RUNNING)
    assert [(event.reason, event.message, event.warning) for event in plan.events] == [
        (Reason.VOLUME_UNAVAILABLE, message, True)
    ]
    assert made.apply(KEY).events == ()


def test_an_evaluation_that_tells_nothing_yet_changes_nothing_of_what_its_job_tells() -> None:
    made = trained()
    made.objects[EVALUATION] = made.evaluation().model_copy(update={"status": EvaluationJobStatus()})
    made.apply(KEY)
    silent = made.job().status
    del made.objects[EVALUATION]
    made.apply(KEY)

    assert made.job().status == silent
    assert (silent.stages[3].state, silent.stages[3].message) == (StageState.PENDING, "waits to start")


def test_the_event_of_the_end_tells_of_the_gate() -> None:
    before, after = trained().job().status.conditions, evaluated(Verdict.PASS).job().status.conditions

    told = [(event.reason, event.message, event.warning) for event in events_between(before, after)]
    assert told == [(Reason.SUCCEEDED, "it is complete (GatePassed: why)", False)]


def test_a_gate_that_is_passed_long_before_the_end_is_told_with_the_end_too() -> None:
    before, after = trained().job().status.conditions, evaluated(Verdict.PASS).job().status.conditions
    serving = [each for each in after if each.type is not ConditionType.COMPLETE]

    assert events_between(before, serving) == ()
    assert [event.message for event in events_between(serving, after)] == ["it is complete (GatePassed: why)"]


def test_suspending_a_job_suspends_its_evaluation() -> None:
    made = trained()
    running = made.job()
    made.add(running.model_copy(update={"spec": running.spec.model_copy(update={"suspend": True})}))
    made.settle()

    assert made.evaluation().spec.suspend
    assert made.plans[EVALUATION].steps == ()


def test_deadline_ends_the_job_and_is_looked_at_again_in_time() -> None:
    made = world(job(active_deadline_seconds=60))
    assert (made.plans[KEY].requeue_after or 0) > 50
    made.now = NOW + timedelta(seconds=61)
    made.settle()

    condition = find_condition(made.job().status.conditions, ConditionType.FAILED)
    assert condition is not None
    assert condition.reason is Reason.DEADLINE_EXCEEDED
    assert made.plans[KEY].steps == ()


def test_pod_that_waits_too_long_ends_the_job() -> None:
    made = world(job(pending_deadline_seconds=60))
    made.finish_relocations()
    made.finish(KEY, "preflight", StepState(StepPhase.PENDING, started_at=made.now))
    assert not made.holds(ConditionType.FAILED)
    made.now += timedelta(seconds=60)
    made.settle()

    assert made.holds(ConditionType.FAILED)


def engine(config: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a specification: two processes of DeepSpeed, with settings in its own words."""
    return {"parallelism": {"processesPerWorker": 2, "strategy": "deepspeed", "deepspeed": {"config": config}}}


@pytest.mark.parametrize(
    ("spec", "reason", "word"),
    [
        ({"model": {"source": "/models/tiny"}}, Reason.INVALID_SPEC, "spec.model.source"),
        ({"method": {"type": "qlora"}}, Reason.UNSUPPORTED, "qlora"),
        (
            engine({"optimizer": {"type": "Adam"}, "bf16": {"enabled": True}, "autotuning": {}}),
            Reason.INVALID_SPEC,
            (
                "spec.parallelism.deepspeed.config has optimizer (set spec.training.learningRate and weightDecay),"
                " bf16 (set spec.training.precision), autotuning (remove it)"
            ),
        ),
        (
            engine({"zero_optimization": {"stage": 3, "reduce_bucket_size": 1000, "zenflow": {}}}),
            Reason.INVALID_SPEC,
            (
                "config has zero_optimization.stage (set spec.parallelism.deepspeed.stage),"
                " zero_optimization.zenflow (remove it)"
            ),
        ),
        (engine({"zero_optimization": 3}), Reason.INVALID_SPEC, "config has zero_optimization (remove it)"),
        (
            {"parallelism": {"processesPerWorker": 4}, "resources": {"limits": {"nvidia.com/gpu": "2"}}},
            Reason.INVALID_SPEC,
            "each worker 2 nvidia.com/gpu, but spec.parallelism.processesPerWorker is 4",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(spec: dict[str, Any], reason: Reason, word: str) -> None:
    made = world(job(**spec))

    accepted = find_condition(made.job().status.conditions, ConditionType.ACCEPTED)
    assert accepted is not None
    assert (accepted.status, accepted.reason) == (ConditionStatus.FALSE, reason)
    assert word in accepted.message
    assert made.holds(ConditionType.FAILED)
    assert len(made.objects) == 1


@pytest.mark.parametrize(
    "spec",
    [
        {"method": {"type": "qlora"}},
        engine({"gradient_clipping": 1.0}),
    ],
)
def test_one_machine_and_a_cluster_refuse_the_same_with_the_same_words(spec: dict[str, Any]) -> None:
    here, there = (world(job(**spec), local=local).job().status.conditions for local in (True, False))

    assert [each.message for each in here] == [each.message for each in there]
    assert find_condition(here, ConditionType.FAILED) is not None


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        (True, ["spec.queueName, spec.resources, spec.pod, spec.parallelism.workers: without effect on one machine"]),
        (False, []),
    ],
)
def test_fields_without_effect_on_one_machine_are_told(*, local: bool, expected: list[str]) -> None:
    given: dict[str, Any] = {
        "queue_name": "team",
        "resources": {"limits": {"memory": "1Gi"}},
        "pod": {"nodeSelector": {"zone": "a"}},
        "parallelism": {"workers": 2},
    }
    made = world(job(**given), local=local)

    assert made.job().status.warnings == expected


@pytest.mark.parametrize(("local", "workers"), [(True, 1), (False, 3)])
def test_workers_are_pods_and_one_machine_is_one_worker(*, local: bool, workers: int) -> None:
    made = world(job(parallelism={"workers": 3, "processesPerWorker": 2, "strategy": "fsdp"}), local=local)
    made.finish_relocations()
    made.finish(KEY, "preflight")
    (step,) = made.plans[KEY].steps

    assert isinstance(step.config, TrainConfig)
    assert (step.workers, step.processes_per_worker) == (workers, 2)
    assert step.config.parallelism.model_dump(mode="json") == {
        "workers": workers,
        "processes_per_worker": 2,
        "strategy": "fsdp",
        "deepspeed": None,
    }


def test_settings_of_deepspeed_reach_the_trainer_as_they_are_written() -> None:
    config = {"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True}
    made = world(job(**engine(config)))
    made.finish_relocations()
    made.finish(KEY, "preflight")
    (step,) = made.plans[KEY].steps

    assert isinstance(step.config, TrainConfig)
    assert step.config.parallelism.deepspeed == DeepSpeedSpec(stage=2, config=config)


@pytest.mark.parametrize("limits", [{"nvidia.com/gpu": "2"}, {"cpu": "1", "rdma/hca": "1"}])
def test_accelerators_for_every_process_or_for_none_are_accepted(limits: dict[str, str]) -> None:
    made = world(job(parallelism={"processesPerWorker": 2}, resources={"limits": limits}))
    assert not made.holds(ConditionType.FAILED)


@pytest.mark.parametrize("local", [True, False])
def test_what_tells_others_of_a_job_has_its_effect_everywhere(*, local: bool) -> None:
    notified = [{"type": "slack", "secretRef": {"name": "hook"}}]
    made = world(job(notifications=notified, tracking={"mlflowUri": "https://mlflow.example"}), local=local)

    assert made.job().status.warnings == []


def test_transition_time_stays_while_the_status_of_a_condition_stays() -> None:
    made = world()
    first = find_condition(made.job().status.conditions, ConditionType.ACCEPTED)
    made.finish_relocations()
    later = find_condition(made.job().status.conditions, ConditionType.ACCEPTED)

    assert first is not None
    assert later is not None
    assert first.last_transition_time == later.last_transition_time


def test_artifacts_name_what_was_used_and_made() -> None:
    artifacts = trained().job().status.artifacts

    assert artifacts.adapter is not None
    assert artifacts.model is not None
    assert artifacts.dataset is not None
    assert artifacts.adapter.digest == f"sha256:{'c' * 64}"
    assert (artifacts.model.digest, artifacts.model.resolved_revision) == (DIGEST, "c0ffee")
    assert (artifacts.dataset.rows, artifacts.dataset.columns) == (10, ["message", "triage"])


def test_what_keeps_an_object_from_being_made_is_told_of_its_stage() -> None:
    resource = job()
    words = LastWords(reason=Reason.NAME_CONFLICT, message="EvaluationJob demo-evaluation exists", hint="Delete it.")
    status = trained(resource).job().status
    observed = Observed(hindrances={EVALUATION: words})

    plan = reconcile(resource.model_copy(update={"status": status}), observed=observed, now=NOW, settings=Settings())

    assert isinstance(plan.status, FineTuningJobStatus)
    stage = next(stage for stage in plan.status.stages if stage.name == "evaluate")
    assert (stage.state, stage.message) == (
        StageState.PENDING,
        "EvaluationJob demo-evaluation exists. Delete it.",
    )
    told = find_condition(plan.status.conditions, ConditionType.EVALUATED)
    assert told is not None
    assert told.reason is Reason.NAME_CONFLICT


def test_long_names_are_cut_and_stay_distinct() -> None:
    names = [evaluation_name("a" * 51), evaluation_name("a" * 52), evaluation_name("short")]

    assert [len(name) for name in names] == [52, 52, 16]
    assert len(set(names)) == 3


def test_lost_steps_of_a_trained_job_are_not_run_again() -> None:
    made = trained()
    made.steps.pop(KEY)
    made.settle()

    assert made.plans[KEY].steps == ()
    assert made.job().status.artifacts.adapter is not None


def test_training_goes_on_when_nobody_can_tell_of_the_preflight_any_more() -> None:
    made = world()
    made.finish_relocations()
    made.finish(KEY, "preflight")
    made.finish(KEY, "train", StepState(StepPhase.RUNNING, started_at=made.now))
    before = made.job().status
    del made.steps[KEY]["preflight"]
    made.settle()

    assert [step.name for step in made.plans[KEY].steps] == ["train"]
    assert made.job().status == before


def test_preflight_is_made_again_when_its_inputs_had_to_be() -> None:
    made = world()
    made.finish_relocations()
    made.finish(KEY, "preflight")
    model = next(key for key in made.objects if key[0] == "Relocation")
    del made.objects[model], made.steps[model], made.steps[KEY]
    made.settle()
    made.finish_relocations()

    assert [step.name for step in made.plans[KEY].steps] == ["preflight"]


def test_retries_follow_the_backoff_limit() -> None:
    made = world(job(backoff_limit=7))
    made.finish_relocations()

    assert made.plans[KEY].steps[0].retries == 7


@pytest.mark.parametrize(("asked", "given"), [(0, 3), (7, 7)])
def test_relocations_are_retried_for_those_who_share_them_as_well(asked: int, given: int) -> None:
    made = world(job(backoff_limit=asked))

    relocating = [step for plan in made.plans.values() for step in plan.steps]
    assert {step.retries for step in relocating} == {given}


def test_steps_wait_in_the_queue_of_their_job_with_its_priority_and_relocations_in_none() -> None:
    made = trained(job(priority_class_name="low", queue_name="team"))
    steps = [step for plan in made.plans.values() for step in plan.steps]
    started = world(job(priority_class_name="low", queue_name="team"))
    relocating = [step for plan in started.plans.values() for step in plan.steps]
    started.finish_relocations()
    preflight = started.plans[KEY].steps
    started.finish(KEY, "preflight")

    assert [(step.name, step.priority_class, step.queue) for step in steps] == [("evaluate", "low", "team")]
    assert [(step.name, step.priority_class, step.queue) for step in relocating] == [("measure", None, None)] * 2
    assert {(step.priority_class, step.queue) for step in (*preflight, *started.plans[KEY].steps)} == {("low", "team")}


def test_result_of_a_step_is_required() -> None:
    made = world()
    made.finish_relocations()
    made.finish(KEY, "preflight")
    words = LastWords(reason=Reason.SUCCEEDED, result=RESULTS["preflight"])
    made.finish(KEY, "train", StepState(StepPhase.SUCCEEDED, last_words=words))

    assert made.holds(ConditionType.FAILED)
