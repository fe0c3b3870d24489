"""Trials: drawn once, run in order, remembered, and the best becomes the job's."""

from dataclasses import replace
from typing import Any

import pytest
from tests.support.objects import COUNTS, NOW, RESULTS, World, failed, job

from finetuning_api.base import ConditionType, StageState
from finetuning_api.finetuningjob import FineTuningJob, FineTuningJobSpec, JobPhase
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import (
    ChooseConfig,
    LastWords,
    PreflightConfig,
    ProgressMetric,
    TrainConfig,
    TrainerMetric,
    TrainerStatus,
    TrainResult,
    TrialInput,
)
from finetuning_api.tuning import HalvingSpec, TrialParameter, TrialState, TrialStatus, TunedField, TuningStatus
from finetuning_operator.reconcile.conditions import find_condition
from finetuning_operator.reconcile.plan import ClaimMount, Settings, StepPhase, StepState
from finetuning_operator.reconcile.sizes import adapter_bytes

KEY = ("FineTuningJob", "demo")
RANKS = {"name": "method.rank", "values": [4, 8, 16]}
TUNING: dict[str, Any] = {"parameters": [RANKS], "search": "grid"}
DIGEST = f"sha256:{'e' * 64}"


def tuned(*, local: bool = False, evaluation: dict[str, Any] | None = None, **tuning: Any) -> World:  # noqa: ANN401  (fields of the tuning)
    """Return a world whose job is about to run its first trial."""
    made = World(Settings(local=local))
    made.add(job(tuning=TUNING | tuning, evaluation=evaluation or {"enabled": False}))
    made.settle()
    made.finish_relocations()
    made.finish(KEY, "preflight")
    return made


def end(loss: float | None, *, given_up: bool = False, resumptions: int = 0) -> StepState:
    """Return a trial that ended well."""
    result = TrainResult(
        digest=DIGEST,
        size_bytes=50,
        steps=5,
        evaluation_loss=loss,
        dataset=COUNTS,
        given_up=given_up,
        resumptions=resumptions,
    )
    return StepState(StepPhase.SUCCEEDED, last_words=LastWords(reason=Reason.SUCCEEDED, result=result))


def wanted(made: World) -> list[str]:
    return [step.name for step in made.plans[KEY].steps]


def states(made: World) -> list[TrialState]:
    told = made.job().status.tuning
    assert told is not None
    return [trial.state for trial in told.trials]


def stage(made: World, name: str) -> tuple[StageState, str]:
    found = next(each for each in made.job().status.stages if each.name == name)
    return found.state, found.message


def edit(made: World, **spec: object) -> None:
    old = made.job()
    changed = old.model_copy(update={"spec": old.spec.model_copy(update=spec)})
    assert isinstance(changed, FineTuningJob)
    made.objects[KEY] = changed
    made.settle()


def test_preflight_draws_the_trials_and_the_status_keeps_them() -> None:
    made = World()
    made.add(job(tuning=TUNING))
    made.settle()
    made.finish_relocations()
    (step,) = made.plans[KEY].steps
    assert isinstance(step.config, PreflightConfig)
    assert step.config.tuning == made.job().spec.tuning
    assert made.job().status.tuning is None

    made.finish(KEY, "preflight")

    assert made.job().status.tuning == TuningStatus(
        trials=[
            TrialStatus(number=number, parameters=[TrialParameter(name=TunedField.RANK, value=rank)])
            for number, rank in enumerate((4, 8, 16))
        ]
    )


def test_a_trial_is_the_jobs_training_with_numbers_and_folders_of_its_own() -> None:
    made = tuned(halving={"reductionFactor": 2})
    (step,) = made.plans[KEY].steps
    spec = made.job().spec

    assert step.name == "trial-0"
    config = step.config
    assert isinstance(config, TrainConfig)
    assert config.method == spec.method.model_copy(update={"rank": 4})
    assert config.training == spec.training
    claim = "/volumes/demo-adapter"
    assert (config.output_path, config.checkpoint_path, config.tensorboard_path, config.cache_path) == (
        f"{claim}/trials/0/adapter",
        f"{claim}/trials/0/checkpoints",
        f"{claim}/tensorboard/trial-0",
        f"{claim}/cache",
    )
    assert config.trial == TrialInput(number=0, folder=f"{claim}/trials", halving=HalvingSpec(reduction_factor=2))
    assert ClaimMount("demo-adapter", claim, read_only=False) in step.mounts
    assert made.job().status.phase is JobPhase.TRAINING


def test_trials_run_one_after_the_other_and_the_best_becomes_the_jobs() -> None:
    made = tuned()
    for number, loss in enumerate((3.0, 1.5, 2.0)):
        assert wanted(made) == [f"trial-{number}"]
        made.finish(KEY, f"trial-{number}", end(loss, given_up=number == 2, resumptions=number))

    (step,) = made.plans[KEY].steps
    assert step.name == "train"
    assert step.config == ChooseConfig(
        job=step.config.job,
        folder="/volumes/demo-adapter/trials",
        number=1,
        digest=DIGEST,
        output_path="/volumes/demo-adapter/adapter",
        checkpoint_path="/volumes/demo-adapter/checkpoints",
    )
    assert step.mounts == (ClaimMount("demo-adapter", "/volumes/demo-adapter", read_only=False),)
    made.finish(KEY, "train")

    told = "trial 1 of 3 (1 given up) is the best: method.rank 8, held-out loss 1.5000"
    assert made.holds(ConditionType.COMPLETE)
    assert stage(made, "tune") == (StageState.SUCCEEDED, told)
    assert stage(made, "train") == (StageState.SUCCEEDED, told)
    status = made.job().status
    assert status.tuning is not None
    assert status.tuning.best == 1
    assert states(made) == [TrialState.SUCCEEDED, TrialState.SUCCEEDED, TrialState.GIVEN_UP]
    assert [trial.resumptions for trial in status.tuning.trials] == [0, 1, 2]
    result = RESULTS["train"]
    assert isinstance(result, TrainResult)
    assert status.artifacts.adapter is not None
    assert (status.artifacts.adapter.path, status.artifacts.adapter.digest) == ("adapter", result.digest)


def test_choosing_takes_no_accelerator() -> None:
    made = World()
    made.add(job(tuning=TUNING, resources={"limits": {"nvidia.com/gpu": "1", "memory": "1Gi"}}))
    made.settle()
    made.finish_relocations()
    made.finish(KEY, "preflight")
    for number in range(3):
        (trial,) = made.plans[KEY].steps
        assert "nvidia.com/gpu" in trial.resources.limits
        made.finish(KEY, f"trial-{number}")

    (step,) = made.plans[KEY].steps
    assert step.resources.limits == {"memory": "1Gi"}


def test_as_many_run_at_once_as_are_asked_for() -> None:
    made = tuned(parallelism=2)

    assert wanted(made) == ["trial-0", "trial-1"]
    made.finish(KEY, "trial-1", end(1.0))
    assert wanted(made) == ["trial-0", "trial-2"]


def test_what_became_of_a_trial_is_remembered_when_its_step_is_gone() -> None:
    made = tuned()
    made.finish(KEY, "trial-0", end(1.0))

    made.steps[KEY] = {}
    made.settle()

    assert wanted(made) == ["trial-1"]
    assert states(made) == [TrialState.SUCCEEDED, TrialState.PENDING, TrialState.PENDING]


@pytest.mark.parametrize("later", [StepState(StepPhase.RUNNING, started_at=NOW), end(0.5), failed()])
def test_a_trial_that_has_ended_stays_as_it_ended_whatever_is_told_of_its_step(later: StepState) -> None:
    made = tuned()
    made.finish(KEY, "trial-0", end(1.0))
    before = made.job().status

    made.finish(KEY, "trial-0", later)

    assert made.job().status == before
    assert wanted(made) == ["trial-1"]


def test_trials_are_not_drawn_again_when_preflight_says_something_else() -> None:
    made = tuned()
    before = made.job().status.tuning
    result = RESULTS["preflight"].model_copy(update={"trials": ((7.0,), (9.0,))})
    words = LastWords.model_validate({"reason": Reason.SUCCEEDED, "result": result})

    made.finish(KEY, "preflight", StepState(StepPhase.SUCCEEDED, last_words=words))

    assert made.job().status.tuning == before


def test_attempts_of_a_trial_count_on_when_what_ran_it_is_gone() -> None:
    made = tuned()
    made.finish(KEY, "trial-0", StepState(StepPhase.RUNNING, attempts=3, started_at=NOW))
    made.steps[KEY] = {}
    made.settle()
    assert [step.earlier_attempts for step in made.plans[KEY].steps] == [3]

    made.finish(KEY, "trial-0", end(1.0))
    assert [step.earlier_attempts for step in made.plans[KEY].steps] == [0]


def test_a_failed_trial_is_told_and_the_others_go_on() -> None:
    made = tuned(maxFailed=1)
    made.finish(KEY, "trial-0", failed(Reason.LOSS_DIVERGED, "the loss is NaN", "Lower it."))

    told = made.job().status.tuning
    assert told is not None
    assert (told.trials[0].state, told.trials[0].message) == (TrialState.FAILED, "the loss is NaN. Lower it.")
    assert wanted(made) == ["trial-1"]


def test_one_failed_trial_more_than_allowed_ends_the_job_with_its_reason() -> None:
    made = tuned(maxFailed=0, parallelism=2)
    made.finish(KEY, "trial-1", StepState(StepPhase.RUNNING, started_at=NOW))
    made.finish(KEY, "trial-0", failed(Reason.LOSS_DIVERGED, "the loss is NaN", ""))

    condition = find_condition(made.job().status.conditions, ConditionType.FAILED)
    assert condition is not None
    assert condition.reason is Reason.LOSS_DIVERGED
    assert condition.message == (
        "tune: 1 of 3 trials failed, more than spec.tuning.maxFailed (0)."
        " The last was trial 0 (method.rank 4): the loss is NaN"
    )
    assert wanted(made) == []
    assert states(made) == [TrialState.FAILED, TrialState.PENDING, TrialState.PENDING]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (StepState(StepPhase.SUCCEEDED), "it ended without telling its result"),
        (end(None), "it has no held-out loss"),
    ],
)
def test_a_trial_that_cannot_be_compared_has_failed(state: StepState, told: str) -> None:
    made = tuned(maxFailed=3)
    for number in range(3):
        made.finish(KEY, f"trial-{number}", state)

    condition = find_condition(made.job().status.conditions, ConditionType.FAILED)
    assert condition is not None
    assert condition.message.startswith("tune: none of 3 trials ended well. The last was trial 2 (method.rank 16): ")
    assert told in condition.message


def test_a_suspended_job_runs_no_trial_and_goes_on_with_the_same() -> None:
    made = tuned()
    made.finish(KEY, "trial-0", end(1.0))
    made.finish(KEY, "trial-1", StepState(StepPhase.RUNNING, started_at=NOW))
    assert states(made) == [TrialState.SUCCEEDED, TrialState.RUNNING, TrialState.PENDING]

    edit(made, suspend=True)
    assert wanted(made) == []
    assert states(made) == [TrialState.SUCCEEDED, TrialState.PENDING, TrialState.PENDING]

    made.steps[KEY] = {}
    edit(made, suspend=False)
    assert wanted(made) == ["trial-1"]


def test_progress_is_that_of_all_trials() -> None:
    made = tuned()
    made.finish(KEY, "trial-0", end(1.0))
    metrics = (TrainerMetric(name=ProgressMetric.STEP, value="6"),)
    report = TrainerStatus(
        last_updated_time=made.now, progress_percentage=50, estimated_remaining_seconds=9, metrics=metrics
    )
    running = StepState(StepPhase.RUNNING, started_at=made.now, progress=report)
    made.finish(KEY, "trial-1", running)

    status = made.job().status
    assert status.progress is not None
    assert (status.progress.percent, status.progress.step, status.progress.eta_seconds) == (50, 6, None)
    assert stage(made, "tune") == (StageState.RUNNING, "trial 1 of 3 (method.rank 8)")


def test_what_keeps_the_first_trial_waiting_is_told_only_while_none_runs() -> None:
    made = tuned(parallelism=2)
    full = LastWords(reason=Reason.UNSCHEDULABLE, message="no node has room")
    pending = StepState(StepPhase.PENDING, attempts=0, started_at=NOW, hindrance=full)
    made.finish(KEY, "trial-0", pending)
    assert stage(made, "tune") == (StageState.PENDING, "trial 0 of 3 (method.rank 4): no node has room")

    made.finish(KEY, "trial-1", replace(pending, phase=StepPhase.RUNNING, hindrance=None))
    assert stage(made, "tune") == (StageState.RUNNING, "trial 1 of 3 (method.rank 8)")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            {"parameters": [{"name": "method.rank", "values": [4, 8.5]}]},
            "spec.tuning.parameters[0] (method.rank): rank cannot be 8.5",
        ),
        (
            {"parameters": [RANKS, {"name": "training.learningRate", "min": 0.1, "max": 2}]},
            "spec.tuning.parameters[1] (training.learningRate): learningRate cannot be 2",
        ),
        (
            {
                "search": "grid",
                "parameters": [
                    {"name": name, "values": [1, 2, 3, 4, 5, 6, 7, 8, 9]} for name in ("method.rank", "method.alpha")
                ],
            },
            "spec.tuning tries 81 combinations, and 64 are the most",
        ),
    ],
)
@pytest.mark.parametrize("local", [True, False])
def test_numbers_that_a_field_cannot_have_are_refused_at_once(spec: dict[str, Any], told: str, *, local: bool) -> None:
    made = World(Settings(local=local))
    made.add(job(tuning=spec))
    made.settle()

    accepted = find_condition(made.job().status.conditions, ConditionType.ACCEPTED)
    assert accepted is not None
    assert accepted.reason is Reason.INVALID_SPEC
    assert told in accepted.message
    assert len(made.objects) == 1


def test_a_rank_is_refused_where_all_weights_are_trained() -> None:
    made = World()
    made.add(job(tuning=TUNING, method={"type": "full"}))
    made.settle()

    (message,) = {each.message for each in made.job().status.conditions}
    assert message == (
        "spec.tuning.parameters[0] is method.rank, which spec.method.type full has no use for: remove it"
    )


def test_scores_on_rows_that_chose_are_called_what_they_are() -> None:
    (warning,) = [each for each in tuned(evaluation={"enabled": True}).job().status.warnings if "chose" in each]

    assert warning.startswith("the held-out rows chose the best trial and are evaluated as well")
    assert not any("chose" in each for each in tuned().job().status.warnings)


def test_one_machine_trains_one_trial_at_a_time_and_says_so() -> None:
    made = tuned(parallelism=2, local=True)

    assert "spec.tuning.parallelism: without effect on one machine" in made.job().status.warnings


def test_room_is_planned_for_the_adapter_of_every_trial() -> None:
    def planned(**spec: Any) -> int:  # noqa: ANN401  (fields of the specification)
        made = job(**spec).spec
        assert isinstance(made, FineTuningJobSpec)
        return adapter_bytes(made, dataset=0, model=8_000_000_000) - adapter_bytes(made, dataset=0, model=0)

    one = planned(method={"rank": 16}, training={"keepCheckpoints": 1})
    several = planned(method={"rank": 1}, training={"keepCheckpoints": 1}, tuning=TUNING)
    assert one == 7 * 160_000_000
    assert several == one + 2 * 160_000_000
    assert planned(training={"keepCheckpoints": 1}, tuning=TUNING | {"parallelism": 2}) == several + 6 * 160_000_000
