"""A job that has ended is written to its MLflow server once, and nothing else of it changes by that."""

from datetime import timedelta
from typing import Any

from tests.support.objects import DIGEST, RESULTS, World, failed, job

from finetuning_api.base import ConditionType
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import JobIdentity, LastWords, TrackConfig, TrackResult, TrainResult
from finetuning_api.tracking import TrackingState, TrackingStatus
from finetuning_operator.reconcile.conditions import find_condition
from finetuning_operator.reconcile.plan import ClaimMount, ImageRole, Settings, Step, StepPhase, StepState
from finetuning_operator.reconcile.policy import SourcePolicy
from finetuning_operator.reconcile.track import is_tracking

KEY = ("FineTuningJob", "demo")
URI = "https://mlflow.example/team"
TO_MLFLOW: dict[str, object] = {"mlflowUri": URI, "experiment": "triage", "secretRef": {"name": "mlflow"}}
WRITTEN = TrackResult(experiment_id="7", run_id="abc")
DONE = StepState(StepPhase.SUCCEEDED, last_words=LastWords(reason=Reason.SUCCEEDED, result=WRITTEN))
DOWN = failed(Reason.NETWORK_UNREACHABLE, "cannot reach mlflow.example: no route", "Check the network.")


def world(settings: Settings | None = None, *, tracking: dict[str, object] | None = None, **spec: Any) -> World:  # noqa: ANN401  (fields of the specification)
    made = World(settings or Settings())
    made.add(job(tracking=TO_MLFLOW if tracking is None else tracking, **spec))
    made.settle()
    return made


def train(made: World, *, preflight: StepState | None = None) -> World:
    made.finish_relocations()
    made.finish(KEY, "preflight", preflight)
    if preflight is None:
        made.finish(KEY, "train")
    return made


def complete(made: World) -> World:
    train(made)
    made.finish(("EvaluationJob", "demo-evaluation"), "evaluate")
    return made


def the_step(made: World) -> Step:
    (step,) = made.plans[KEY].steps
    return step


def config(made: World) -> TrackConfig:
    found = the_step(made).config
    assert isinstance(found, TrackConfig)
    return found


def record(made: World) -> TrackingStatus:
    found = made.job().status.tracking
    assert found is not None
    return found


def tracked(made: World) -> tuple[str, Reason, str]:
    found = find_condition(made.job().status.conditions, ConditionType.TRACKED)
    assert found is not None
    return found.status.value, found.reason, found.message


def edit(made: World, tracking: dict[str, object] | None) -> None:
    """Change the tracking as a user would."""
    old = made.job()
    fields = old.spec.model_dump(by_alias=True, exclude_none=True) | {"tracking": tracking}
    metadata = old.metadata.model_copy(update={"generation": old.metadata.generation + 1})
    new = FineTuningJob.model_validate({"metadata": metadata, "spec": fields})
    made.objects[KEY] = new.model_copy(update={"status": old.status})
    made.settle()


def test_nothing_is_told_before_the_end() -> None:
    made = train(world())

    assert made.plans[KEY].steps == ()
    assert made.job().status.tracking is None
    assert not is_tracking(made.job())


def test_the_run_is_written_after_the_evaluation_by_what_has_a_network_and_only_reads() -> None:
    made = complete(world())

    step = the_step(made)
    assert (step.image, step.network, step.secret, step.retries) == (ImageRole.RELOCATOR, True, "mlflow", 5)
    assert step.mounts == (ClaimMount("demo-adapter", "/volumes/demo-adapter", read_only=True),)
    assert (record(made).state, tracked(made)[:2]) == (TrackingState.PENDING, ("False", Reason.TRACKING))
    assert is_tracking(made.job())

    made.finish(KEY, step.name, DONE)

    assert made.plans[KEY].steps == ()
    assert record(made) == TrackingStatus(
        name=step.name,
        mlflow_uri=URI,
        state=TrackingState.DONE,
        experiment_id="7",
        run_id="abc",
        url=f"{URI}/#/experiments/7/runs/abc",
    )
    assert tracked(made) == ("True", Reason.SUCCEEDED, "")
    assert not is_tracking(made.job())
    assert made.job().status.warnings == ["tight"]


def test_the_run_is_told_what_decided_the_result_and_where_the_rest_lies() -> None:
    made = complete(world(training={"learningRate": 0.01}, evaluation={"metrics": ["exact-match"]}))

    told, status = config(made), made.job().status
    assert told.job == JobIdentity(kind="FineTuningJob", name="demo", uid="uid-1")
    assert (told.uri, told.experiment, told.run_name, told.secret) == (URI, "triage", "demo", "mlflow")
    assert (told.failed, told.started_at, told.finished_at) == (False, status.start_time, status.completion_time)
    claim = "/volumes/demo-adapter"
    folders = (told.checkpoint_path, told.adapter_path, told.report_path)
    assert folders == (f"{claim}/checkpoints", f"{claim}/adapter", f"{claim}/evaluation")
    assert told.parameters["training.learningRate"] == "0.01"
    assert told.parameters["method.rank"] == "16"
    assert told.parameters["model.source"] == "hf://acme/tiny"
    assert told.parameters["evaluation.metrics"] == '["exact-match"]'
    assert told.tags["finetuning.dev/model-digest"] == DIGEST
    assert told.tags["finetuning.dev/dataset-digest"] == DIGEST
    assert told.tags["finetuning.dev/verdict"] == "Pass"
    assert told.tags["finetuning.dev/gate"] == "0.8 >= 0.1"


def test_names_of_secrets_of_sources_are_no_parameters() -> None:
    private = {"secretRef": {"name": "own-token"}}
    metric = {"name": "tone", "source": "s3://bucket/tone", "revision": "1", "file": "tone.py", "allowCode": True}
    gate = [{"metric": "exact-match", "min": 0.5}]
    evaluation = {"metrics": ["exact-match", "custom"], "custom": [metric | private], "gate": gate}
    made = complete(world(model={"source": "hf://acme/tiny", "revision": "v1"} | private, evaluation=evaluation))

    parameters = config(made).parameters
    assert parameters["evaluation.custom.0.source"] == "s3://bucket/tone"
    assert parameters["evaluation.gate.0.min"] == "0.5"
    assert "own-token" not in str(parameters)


def test_of_several_trials_the_numbers_of_the_best_are_told() -> None:
    tuning = {"parameters": [{"name": "method.rank", "values": [4, 8, 16]}]}
    made = world(tuning=tuning, evaluation={"enabled": False})
    made.finish_relocations()
    made.finish(KEY, "preflight")
    for number, loss in enumerate((3.0, 1.0, 2.0)):
        trained = RESULTS["trial"]
        assert isinstance(trained, TrainResult)
        words = LastWords(reason=Reason.SUCCEEDED, result=trained.model_copy(update={"evaluation_loss": loss}))
        made.finish(KEY, f"trial-{number}", StepState(StepPhase.SUCCEEDED, last_words=words))
    made.finish(KEY, "train")

    assert config(made).parameters["method.rank"] == "8"


def test_a_job_that_failed_is_told_as_failed_with_what_it_left() -> None:
    made = train(world(), preflight=failed(Reason.COLUMN_NOT_FOUND, "no column triage", "Set dataset.completion."))

    told = config(made)
    assert told.failed
    assert told.adapter_path is None
    assert told.checkpoint_path == "/volumes/demo-adapter/checkpoints"
    assert told.tags["finetuning.dev/reason"] == "ColumnNotFound"
    assert told.tags["mlflow.note.content"] == "preflight: no column triage. Set dataset.completion."


def test_a_job_that_failed_before_it_had_a_claim_is_told_without_one() -> None:
    made = world()
    for key, plan in list(made.plans.items()):
        if key[0] == "Relocation":
            made.finish(key, plan.steps[0].name, failed(Reason.SOURCE_NOT_FOUND, "acme/tiny was not found"))

    assert made.holds(ConditionType.FAILED)
    assert the_step(made).mounts == ()
    assert config(made).checkpoint_path is None


def test_a_claim_that_is_gone_is_not_waited_for() -> None:
    made = complete(world())
    made.lost = frozenset({"demo-adapter"})
    made.settle()

    assert the_step(made).mounts == ()


def test_a_job_that_was_never_accepted_is_told_nowhere() -> None:
    made = world(method={"type": "qlora"})

    assert made.holds(ConditionType.FAILED)
    assert made.plans[KEY].steps == ()
    assert not is_tracking(made.job())


def test_a_server_that_is_down_is_told_with_its_address_and_the_job_stays_complete() -> None:
    made = complete(world())
    made.apply(KEY)
    step = the_step(made)
    made.steps.setdefault(KEY, {})[step.name] = StepState(StepPhase.PENDING, attempts=2, last_words=DOWN.last_words)
    made.settle()
    assert record(made).message == "cannot reach mlflow.example: no route. Check the network."
    assert the_step(made).name == step.name

    made.steps[KEY][step.name] = DOWN
    (event,) = made.apply(KEY).events
    made.settle()

    told = f"{URI}: cannot reach mlflow.example: no route. Check the network."
    assert (event.reason, event.warning, event.message) == (Reason.TRACKING_FAILED, True, f"tracking: {told}")
    assert (record(made).state, record(made).message) == (TrackingState.FAILED, told)
    assert tracked(made) == ("False", Reason.TRACKING_FAILED, told)
    assert made.holds(ConditionType.COMPLETE)
    assert (made.plans[KEY].steps, made.plans[KEY].events) == ((), ())


def test_what_failed_is_tried_again_when_something_else_is_asked_for() -> None:
    made = complete(world())
    first = the_step(made).name
    made.finish(KEY, first, DOWN)

    edit(made, TO_MLFLOW | {"mlflowUri": "https://other.example"})

    assert the_step(made).name != first
    assert (record(made).state, record(made).mlflow_uri) == (TrackingState.PENDING, "https://other.example")
    made.finish(KEY, the_step(made).name, DONE)
    assert tracked(made)[0] == "True"


def test_tracking_that_is_taken_back_is_not_done() -> None:
    made = complete(world())

    edit(made, None)

    assert made.plans[KEY].steps == ()
    assert made.job().status.tracking is None


def test_an_ended_job_is_tracked_when_it_is_asked_for_later() -> None:
    made = world(tracking={"mlflowUri": URI})
    edit(made, None)
    complete(made)
    assert made.plans[KEY].steps == ()

    edit(made, {"mlflowUri": URI, "runName": "late"})

    assert config(made).run_name == "late"


def test_a_pod_that_does_not_run_is_given_up_in_time() -> None:
    made = complete(world(pendingDeadlineSeconds=600))
    name = the_step(made).name
    missing = LastWords(reason=Reason.CONFIGURATION_MISSING, message="the Secret mlflow is not there")
    pending = StepState(StepPhase.PENDING, started_at=made.now, hindrance=missing)
    made.steps.setdefault(KEY, {})[name] = pending
    made.settle()
    assert record(made).state is TrackingState.PENDING

    made.now += timedelta(seconds=601)
    made.settle()

    told = f"{URI}: its pod did not get to run in time. the Secret mlflow is not there"
    assert (record(made).state, record(made).message) == (TrackingState.FAILED, told)


def test_a_job_is_not_deleted_before_it_was_told() -> None:
    made = complete(world(ttlSecondsAfterFinished=60))
    made.now += timedelta(seconds=61)
    assert not made.apply(KEY).expired

    made.steps.setdefault(KEY, {})[the_step(made).name] = DONE
    told = made.apply(KEY)
    assert (told.expired, told.requeue_after) == (False, 0.0)
    assert made.apply(KEY).expired


def test_addresses_that_an_administrator_does_not_allow_are_not_reached() -> None:
    policy = SourcePolicy(allowed_endpoints=("https://tracking.example",))
    made = complete(world(Settings(sources=policy)))

    assert made.plans[KEY].steps == ()
    assert "relocation.allowedEndpoints" in record(made).message
    assert made.holds(ConditionType.COMPLETE)
    allowed = complete(world(Settings(sources=policy), tracking={"mlflowUri": "https://tracking.example/a"}))
    assert config(allowed).uri == "https://tracking.example/a"


def test_a_run_on_one_machine_tries_less_often() -> None:
    made = complete(world(Settings(local=True)))

    assert the_step(made).retries == 2
    assert made.job().status.warnings == ["tight"]


def test_what_could_not_be_stored_is_told() -> None:
    made = complete(world())
    lacking = WRITTEN.model_copy(update={"lacking": "no file is stored"})
    words = LastWords(reason=Reason.SUCCEEDED, result=lacking)
    made.finish(KEY, the_step(made).name, StepState(StepPhase.SUCCEEDED, last_words=words))

    assert tracked(made) == ("True", Reason.SUCCEEDED, "no file is stored")


def test_exports_and_tracking_of_a_job_go_side_by_side() -> None:
    hub = {"name": "hub", "format": "adapter", "to": "hf://acme/demo"}
    made = complete(world(exports=[hub], ttlSecondsAfterFinished=60))

    names = {step.name.partition("-")[0] for step in made.plans[KEY].steps}
    assert names == {"push", "track"}
