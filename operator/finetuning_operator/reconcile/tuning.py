"""Tuning: which trials there are, which of them run now, and which is the best.

The numbers of the trials were drawn by preflight and are kept in the status from then on. What became of a trial is
kept there too and never looked at again: neither a restart nor the loss of a finished step runs it twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from finetuning_api.base import Resource, StageState
from finetuning_api.finetuningjob import FineTuningJob, FineTuningJobSpec, MethodType
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import TrainResult
from finetuning_api.trials import told, trial_count, unfit_number
from finetuning_api.tuning import (
    MOST_TRIALS,
    TOO_MANY_TRIALS,
    TrialParameter,
    TrialState,
    TrialStatus,
    TuningSpec,
    TuningStatus,
)
from finetuning_operator.reconcile.conditions import headline, shorten
from finetuning_operator.reconcile.plan import Step, StepPhase, StepState, Volume
from finetuning_operator.reconcile.stages import Outcome, explain, sentences, step_outcome

TRIALS_FOLDER = "trials"
"""Folder on the adapter's claim that holds all trials until one of them is chosen."""
_TRIAL = "trial"
_MESSAGE_LENGTH = 512
"""Characters of what is told of one trial: there may be many."""


def trial_step(number: int) -> str:
    """Return the name of a trial's step."""
    return f"{_TRIAL}-{number}"


def ended_trials(owner: Resource) -> set[str]:
    """Return the steps of an object's trials that will not run again."""
    tuning = owner.status.tuning if isinstance(owner, FineTuningJob) else None
    return {trial_step(trial.number) for trial in tuning.trials if trial.ended} if tuning else set()


def refused_tuning(spec: FineTuningJobSpec) -> str:
    """Return why a job's trials cannot be trained; nothing where they can. The job is completed by its preset."""
    tuning = spec.tuning
    if tuning is None:
        return ""
    if (count := trial_count(tuning)) > MOST_TRIALS:
        return TOO_MANY_TRIALS.format(count=count)
    for number, parameter in enumerate(tuning.parameters):
        place = f"spec.tuning.parameters[{number}]"
        if spec.method.type is MethodType.FULL and parameter.name.startswith("method."):
            return f"{place} is {parameter.name.value}, which spec.method.type full has no use for: remove it"
        if unfit := unfit_number((spec.method, spec.training), parameter):
            return f"{place} ({parameter.name.value}): {unfit}"
    return ""


def drawn_trials(tuning: TuningSpec, numbers: Sequence[Sequence[float]]) -> tuple[TrialStatus, ...]:
    """Return trials that have not begun, of the numbers that were drawn for each."""
    names = [parameter.name for parameter in tuning.parameters]
    return tuple(
        TrialStatus(
            number=number,
            parameters=[TrialParameter(name=name, value=value) for name, value in zip(names, each, strict=True)],
        )
        for number, each in enumerate(numbers[:MOST_TRIALS])
    )


def followed(trial: TrialStatus, state: StepState | None) -> TrialStatus:
    """Return a trial as its step tells of it; one that has ended stays as it ended."""
    if trial.ended:
        return trial
    if state is None:
        return trial.model_copy(update={"state": TrialState.PENDING})
    attempts = {"attempts": max(trial.attempts, state.attempts)}
    match state.phase:
        case StepPhase.SUCCEEDED:
            return trial.model_copy(update=attempts | _success(state))
        case StepPhase.FAILED:
            return trial.model_copy(update=attempts | _failure(headline(explain(state.last_words)[1])))
    running = state.phase is StepPhase.RUNNING
    return trial.model_copy(update=attempts | {"state": TrialState.RUNNING if running else TrialState.PENDING})


def _success(state: StepState) -> dict[str, object]:
    result = state.last_words.result if state.last_words else None
    if not isinstance(result, TrainResult):
        return _failure("it ended without telling its result; its log has the details")
    if result.evaluation_loss is None:
        return _failure("it has no held-out loss: no held-out row has a token that carries loss")
    return {
        "state": TrialState.GIVEN_UP if result.given_up else TrialState.SUCCEEDED,
        "evaluation_loss": result.evaluation_loss,
        "steps": result.steps,
        "resumptions": result.resumptions,
        "digest": result.digest,
    }


def _failure(message: str) -> dict[str, object]:
    return {"state": TrialState.FAILED, "message": shorten(message, _MESSAGE_LENGTH)}


def paused(status: TuningStatus | None) -> TuningStatus | None:
    """Return the trials of a job that runs nothing."""
    if status is None:
        return None
    trials = [followed(trial, None) for trial in status.trials]
    return status.model_copy(update={"trials": trials})


def tuning_status(trials: Sequence[TrialStatus]) -> TuningStatus | None:
    """Return what is told of trials; None before they were drawn."""
    best = best_trial(trials)
    return TuningStatus(best=best.number if best else None, trials=list(trials)) if trials else None


def best_trial(trials: Sequence[TrialStatus]) -> TrialStatus | None:
    """Return the trial with the lowest held-out loss, of equal ones the first; None where none has one."""
    measured = [(trial.evaluation_loss, trial.number, trial) for trial in trials if trial.evaluation_loss is not None]
    return min(measured, key=lambda each: each[:2])[2] if measured else None


def chosen_told(trials: Sequence[TrialStatus]) -> str:
    """Return which trial was chosen, and of what; nothing where none was."""
    best = best_trial(trials)
    if best is None:
        return ""
    counts = [
        f"{count} {word}"
        for word, state in (("given up", TrialState.GIVEN_UP), ("failed", TrialState.FAILED))
        if (count := sum(trial.state is state for trial in trials))
    ]
    others = f" ({', '.join(counts)})" if counts else ""
    numbers = told(best.parameters)
    return (
        f"trial {best.number} of {len(trials)}{others} is the best: {numbers}, held-out loss {best.evaluation_loss:.4f}"
    )


def tuning_outcome(
    tuning: TuningSpec,
    trials: Sequence[TrialStatus],
    *,
    states: Mapping[str, StepState],
    step_of: Callable[[TrialStatus], Step],
    volumes: tuple[Volume, ...],
) -> Outcome:
    """Return where the stage stands that consists of all trials: those that have not ended run in their order."""
    failed = [trial for trial in trials if trial.state is TrialState.FAILED]
    if len(failed) > tuning.max_failed:
        most = f"{len(failed)} of {len(trials)} trials failed, more than spec.tuning.maxFailed ({tuning.max_failed})"
        return _given_up(most, failed[-1], states)
    remaining = [trial for trial in trials if not trial.ended][: tuning.parallelism]
    if remaining:
        each = [
            (trial, step_outcome(step_of(trial), states.get(trial_step(trial.number)), running=Reason.TRAINING))
            for trial in remaining
        ]
        return replace(_together(trials, each), volumes=volumes)
    if best_trial(trials) is None:
        return _given_up(f"none of {len(trials)} trials ended well", failed[-1], states)
    return Outcome(
        StageState.SUCCEEDED, Reason.SUCCEEDED, chosen_told(trials), percent=100, attempts=1, volumes=volumes
    )


def _given_up(message: str, last: TrialStatus, states: Mapping[str, StepState]) -> Outcome:
    state = states.get(trial_step(last.number))
    reason = explain(state.last_words)[0] if state and state.phase is StepPhase.FAILED else Reason.INTERNAL
    words = f"The last was trial {last.number} ({told(last.parameters)}): {last.message}"
    return Outcome(StageState.FAILED, reason, sentences(message, words), attempts=1)


def _together(trials: Sequence[TrialStatus], each: Sequence[tuple[TrialStatus, Outcome]]) -> Outcome:
    """Return trials that run or wait as one outcome: it tells of the first that runs, else of the first."""
    lead, outcome = next((pair for pair in each if pair[1].state is StageState.RUNNING), each[0])
    done = sum(trial.ended for trial in trials)
    percent = (100 * done + sum(other.percent for _, other in each)) // len(trials)
    where = f"trial {lead.number} of {len(trials)} ({told(lead.parameters)})"
    progress = outcome.progress
    return replace(
        outcome,
        message=f"{where}: {outcome.message}" if outcome.message else where,
        percent=percent,
        attempts=max((trial.attempts for trial in trials), default=0),
        # When a trial will end says nothing of the others.
        progress=progress.model_copy(update={"percent": percent, "eta_seconds": None}) if progress else None,
        steps=tuple(step for _, other in each for step in other.steps),
    )
