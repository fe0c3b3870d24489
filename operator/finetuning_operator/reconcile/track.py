"""Tracking: a job that has ended is written to an MLflow server, as one run.

As an export, it is a step beside the stages: nothing that trains or evaluates has a network, and a server that is down
changes nothing of a job that has its result. What it comes to stands in the status.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from posixpath import join
from typing import Final, cast

from finetuning_api.base import Condition, ConditionType
from finetuning_api.finetuningjob import FineTuningJob, FineTuningJobStatus
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import TrackConfig, TrackResult
from finetuning_api.tracking import TrackingSpec, TrackingState, TrackingStatus
from finetuning_api.trials import with_parameters
from finetuning_operator.reconcile.afterwards import LOCAL_RETRIES, RETRIES, identity, patience, trouble
from finetuning_operator.reconcile.conditions import find_condition, headline, is_terminal, is_true, shorten
from finetuning_operator.reconcile.job import CHECKPOINT_FOLDER, PREFLIGHT, REPORT_FOLDER, TRAIN, TUNE
from finetuning_operator.reconcile.lifecycle import Writer, soonest
from finetuning_operator.reconcile.names import ADAPTER_FOLDER, adapter_claim
from finetuning_operator.reconcile.needs import claim_mount
from finetuning_operator.reconcile.plan import Event, ImageRole, Observed, Plan, Settings, Step, StepPhase, StepState
from finetuning_operator.reconcile.stages import explain, sentences
from finetuning_operator.reconcile.tuning import best_trial

_LONGEST_PARAMETER: Final = 6000
"""Characters that MLflow takes for the value of a parameter."""
_TAG: Final = "finetuning.dev/"
_PARAMETERS: Final = (
    "model",
    "tokenizer",
    "dataset",
    "method",
    "training",
    "parallelism",
    "script",
    "tuning",
    "evaluation",
)
"""Parts of the specification that decide what the result is."""
_WRITES_TO_CLAIM: Final = frozenset({PREFLIGHT, TUNE, TRAIN})
"""Stages from the first of which on there is a claim of the job's own."""
_REASONS: Final = {
    TrackingState.PENDING: Reason.TRACKING,
    TrackingState.DONE: Reason.SUCCEEDED,
    TrackingState.FAILED: Reason.TRACKING_FAILED,
}


@dataclass(frozen=True, slots=True)
class _Look:
    """A job that has ended, and what is seen of its tracking."""

    job: FineTuningJob
    spec: TrackingSpec
    status: FineTuningJobStatus
    observed: Observed
    settings: Settings
    now: datetime

    @property
    def name(self) -> str:
        """Name of the step. Whoever asks for something else, another server say, gets another step."""
        asked = json.dumps(self.spec.to_wire(), sort_keys=True)
        return f"track-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    @property
    def failed(self) -> bool:
        return is_true(self.status.conditions, ConditionType.FAILED)

    @property
    def claim(self) -> str | None:
        """The claim that holds what there is to tell; None where the job ended before it had one, or lost it."""
        made = any(stage.name in _WRITES_TO_CLAIM and stage.attempts for stage in self.status.stages)
        claim = adapter_claim(self.job.metadata.name)
        return claim if made and claim not in self.observed.lost else None


def with_tracking(job: FineTuningJob, plan: Plan, *, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Return the plan of a job with what its tracking needs once it has ended; it is kept until that has, too."""
    spec, stored = job.spec.tracking, job.status.tracking
    status = cast("FineTuningJobStatus", plan.status)
    if spec is None or not _is_due(status):
        return plan if stored is None else replace(plan, status=status.model_copy(update={"tracking": None}))
    look = _Look(job, spec, status, observed, settings, now)
    before = stored if stored is not None and stored.name == look.name else None
    record = before or TrackingStatus(name=look.name, mlflow_uri=spec.mlflow_uri)
    steps: tuple[Step, ...] = ()
    wait: float | None = None
    if record.state is TrackingState.PENDING:
        record, wait = _after(look, record)
    if record.state is TrackingState.PENDING:
        steps = (_step(look),)
    if record != stored:
        status = status.model_copy(update={"tracking": record})
        status = status.model_copy(update={"conditions": _conditions(look, record)})
    # What became of it is written, and told, before the job goes.
    due = plan.expired and (record != stored or record.state is TrackingState.PENDING)
    if due and record.state is not TrackingState.PENDING:
        wait = 0.0
    return replace(
        plan,
        status=status,
        steps=(*plan.steps, *steps),
        events=(*plan.events, *_failure(before, record)),
        requeue_after=soonest(plan.requeue_after, wait),
        expired=plan.expired and not due,
    )


def is_tracking(job: FineTuningJob) -> bool:
    """Return whether a job that has ended is still to be written to its server."""
    if job.spec.tracking is None or not _is_due(job.status):
        return False
    record = job.status.tracking
    return record is None or record.state is TrackingState.PENDING


def _is_due(status: FineTuningJobStatus) -> bool:
    """Return whether there is something to tell: a job that was not accepted has not been one."""
    return is_terminal(status.conditions) and is_true(status.conditions, ConditionType.ACCEPTED)


def _after(look: _Look, record: TrackingStatus) -> tuple[TrackingStatus, float | None]:
    """Return a record in the light of what its step has come to, and for how long that may still wait."""
    if not look.settings.sources.allows_address(look.spec.mlflow_uri):
        hint = "Have it added (relocation.allowedEndpoints)"
        return _ended(record, sentences("this installation lets jobs reach no such address", hint)), None
    state = look.observed.steps.get(record.name)
    if state is None:
        return record, None
    if state.phase is StepPhase.SUCCEEDED:
        return _written(look, record, state), None
    if state.phase is StepPhase.FAILED:
        return _ended(record, explain(state.last_words)[1]), None
    wait, hindered = patience(look.job, state, settings=look.settings, now=look.now), trouble(state)
    if wait == 0:
        return _ended(record, sentences("its pod did not get to run in time", hindered)), None
    return record.model_copy(update={"message": shorten(hindered)}), wait


def _ended(record: TrackingStatus, message: str) -> TrackingStatus:
    """Return a record that is given up; it names the server, because that is what a person has to look at."""
    told = shorten(f"{record.mlflow_uri}: {message}")
    return record.model_copy(update={"state": TrackingState.FAILED, "message": told})


def _written(look: _Look, record: TrackingStatus, state: StepState) -> TrackingStatus:
    result = state.last_words.result if state.last_words else None
    if not isinstance(result, TrackResult):
        return _ended(record, f"{record.name} ended without telling its result")
    place = f"#/experiments/{result.experiment_id}/runs/{result.run_id}"
    update = {
        "state": TrackingState.DONE,
        "experiment_id": result.experiment_id,
        "run_id": result.run_id,
        "url": f"{look.spec.mlflow_uri.rstrip('/')}/{place}",
        "message": shorten(result.lacking),
    }
    return record.model_copy(update=update)


def _conditions(look: _Look, record: TrackingStatus) -> list[Condition]:
    told = Writer(look.job.metadata.generation, look.now).set(
        look.status.conditions,
        ConditionType.TRACKED,
        holds=record.state is TrackingState.DONE,
        reason=_REASONS[record.state],
        message=record.message,
    )
    return list(told)


def _failure(before: TrackingStatus | None, record: TrackingStatus) -> tuple[Event, ...]:
    known = before is not None and before.state is TrackingState.FAILED
    if known or record.state is not TrackingState.FAILED:
        return ()
    return (Event(Reason.TRACKING_FAILED, shorten(f"tracking: {record.message}", 1024), warning=True),)


def _step(look: _Look) -> Step:
    spec, claim = look.spec, look.claim
    return Step(
        name=look.name,
        image=ImageRole.RELOCATOR,
        config=_config(look),
        mounts=(claim_mount(claim, look.settings),) if claim else (),
        secret=spec.secret_ref.name if spec.secret_ref else None,
        network=True,
        retries=LOCAL_RETRIES if look.settings.local else RETRIES,
    )


def _config(look: _Look) -> TrackConfig:
    job, spec, status = look.job, look.spec, look.status
    folder = join(look.settings.volumes_root, look.claim) if look.claim else None
    return TrackConfig(
        job=identity(job),
        uri=spec.mlflow_uri,
        experiment=spec.experiment,
        run_name=spec.run_name or job.metadata.name,
        secret=spec.secret_ref.name if spec.secret_ref else None,
        failed=look.failed,
        started_at=status.start_time or look.now,
        finished_at=status.completion_time or look.now,
        parameters=dict(_parameters(look)),
        tags=_tags(look),
        checkpoint_path=join(folder, CHECKPOINT_FOLDER) if folder else None,
        adapter_path=join(folder, ADAPTER_FOLDER) if folder and status.artifacts.adapter else None,
        report_path=join(folder, REPORT_FOLDER) if folder and job.spec.evaluation.enabled else None,
        weights=spec.weights,
    )


def _parameters(look: _Look) -> Iterator[tuple[str, str]]:
    """Yield what decided the result by the names of the manifest; of several trials, the numbers of the best."""
    spec, tuning = look.job.spec, look.status.tuning
    best = best_trial(tuning.trials) if tuning else None
    method, training = with_parameters((spec.method, spec.training), best.parameters if best else ())
    trained = spec.model_copy(update={"method": method, "training": training}).to_wire()
    for part in _PARAMETERS:
        yield from _flat(part, trained.get(part))


def _flat(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield the numbers and texts of a part of the specification, each under its whole name."""
    parts = value if isinstance(value, Mapping) else None
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        parts = dict(enumerate(value))
    if parts is not None:
        for key, each in parts.items():
            # How a source was reached is no property of the result.
            if key != "secretRef":
                yield from _flat(f"{name}.{key}", each)
    elif value not in (None, "", []):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield name, shorten(text, _LONGEST_PARAMETER)


def _tags(look: _Look) -> dict[str, str]:
    """Return by what runs are found and told apart."""
    metadata, artifacts, conditions = look.job.metadata, look.status.artifacts, look.status.conditions
    failed, gate = (find_condition(conditions, each) for each in (ConditionType.FAILED, ConditionType.GATE_PASSED))
    failure = failed if look.failed else None
    tags = {
        f"{_TAG}namespace": metadata.namespace,
        f"{_TAG}name": metadata.name,
        f"{_TAG}model-digest": artifacts.model.digest if artifacts.model else None,
        f"{_TAG}dataset-digest": artifacts.dataset.digest if artifacts.dataset else None,
        f"{_TAG}adapter-digest": artifacts.adapter.digest if artifacts.adapter else None,
        f"{_TAG}verdict": look.status.verdict.value if look.status.verdict else None,
        f"{_TAG}gate": headline(gate.message) if gate else None,
        f"{_TAG}reason": failure.reason.value if failure else None,
        "mlflow.source.name": "finetuning-operator",
        "mlflow.source.type": "JOB",
        "mlflow.note.content": headline(failure.message) if failure else None,
    }
    return {name: shorten(text) for name, text in tags.items() if text}
