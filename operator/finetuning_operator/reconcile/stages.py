"""Stages: an object's life as a list of questions that are asked in order, one active at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Generic, TypeVar

from finetuning_api.base import Condition, ConditionType, ProgressStatus, Resource, Stage, StageState
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords, ProgressMetric, TrainerStatus
from finetuning_operator.reconcile.conditions import condition, set_condition, shorten
from finetuning_operator.reconcile.plan import Step, StepPhase, StepState, Volume

View = TypeVar("View")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one stage says of itself, and what it needs to exist to get on."""

    state: StageState
    reason: Reason
    message: str = ""
    percent: int = 0
    attempts: int = 0
    progress: ProgressStatus | None = None
    steps: tuple[Step, ...] = ()
    volumes: tuple[Volume, ...] = ()
    children: tuple[Resource, ...] = ()


@dataclass(frozen=True, slots=True)
class StageRule(Generic[View]):
    """A stage: its name, the condition that tells of it, and the function that decides where it stands."""

    name: str
    decide: Callable[[View], Outcome]
    condition: ConditionType | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """Where an object stands after its stages were asked in order."""

    stages: tuple[Stage, ...] = ()
    conditions: tuple[Condition, ...] = ()
    active: Outcome | None = None
    """The stage that has not succeeded; None when all have."""
    active_name: str = ""
    volumes: tuple[Volume, ...] = field(default=())
    children: tuple[Resource, ...] = field(default=())

    @property
    def failed(self) -> bool:
        """Whether a stage failed for good."""
        return self.active is not None and self.active.state is StageState.FAILED

    @property
    def failure(self) -> str:
        """What failed, as a sentence that names the stage."""
        return f"{self.active_name}: {self.active.message}" if self.active is not None else ""


def follow(
    rules: Sequence[StageRule[View]],
    view: View,
    *,
    stages: Sequence[Stage],
    conditions: Sequence[Condition],
    generation: int,
    now: datetime,
) -> Course:
    """Ask the stages in order until one has not succeeded; later ones wait."""
    course = Course(conditions=tuple(conditions))
    previous = {stage.name: stage for stage in stages}
    for rule in rules:
        if course.active is not None:
            course = replace(course, stages=(*course.stages, _waiting(rule.name, previous.get(rule.name))))
            continue
        outcome = rule.decide(view)
        course = replace(
            course,
            stages=(*course.stages, _stage(rule.name, outcome, previous=previous.get(rule.name), now=now)),
            volumes=_merge_volumes(course.volumes, outcome.volumes),
            children=(*course.children, *outcome.children),
        )
        if rule.condition is not None:
            told = condition(
                rule.condition,
                holds=outcome.state is StageState.SUCCEEDED,
                reason=outcome.reason,
                message=outcome.message,
                generation=generation,
                now=now,
            )
            course = replace(course, conditions=set_condition(course.conditions, told))
        if outcome.state not in {StageState.SUCCEEDED, StageState.SKIPPED}:
            course = replace(course, active=outcome, active_name=rule.name)
    return course


def pause(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages of an object whose steps are stopped on purpose."""
    return tuple(
        stage.model_copy(update={"state": StageState.PENDING, "message": "suspended"})
        if stage.state is StageState.RUNNING
        else stage
        for stage in stages
    )


def step_outcome(step: Step, state: StepState | None, *, running: Reason, volumes: tuple[Volume, ...] = ()) -> Outcome:
    """Return where a stage stands that consists of one step."""
    if state is None:
        return Outcome(StageState.PENDING, Reason.PENDING, "waits to start", steps=(step,), volumes=volumes)
    if state.phase is StepPhase.SUCCEEDED:
        return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, percent=100, attempts=state.attempts, volumes=volumes)
    if state.phase is StepPhase.FAILED:
        reason, message = explain(state.last_words)
        return Outcome(StageState.FAILED, reason, message, attempts=state.attempts, volumes=volumes)
    pending = state.phase is StepPhase.PENDING
    progress = progress_status(state.progress)
    return Outcome(
        StageState.PENDING if pending else StageState.RUNNING,
        (Reason.RETRYING if state.attempts else Reason.PENDING) if pending else running,
        _step_message(state),
        percent=progress.percent if progress else 0,
        attempts=state.attempts,
        progress=progress,
        steps=(step,),
        volumes=volumes,
    )


def explain(words: LastWords | None) -> tuple[Reason, str]:
    """Return the reason of a failed step and what happened together with what to do."""
    if words is None:
        return Reason.BACKOFF_LIMIT_EXCEEDED, "the program ended without a word; its log has the details"
    if words.reason is Reason.SUCCEEDED:
        return Reason.INTERNAL, "the program failed although it reported success; its log has the details"
    return words.reason, sentences(words.message, words.hint)


def sentences(*texts: str) -> str:
    """Return texts one after the other, with a full stop between them where one does not bring its own."""
    given = [text.strip() for text in texts if text.strip()]
    closed = [text if text.endswith((".", "!", "?", ":")) else f"{text}." for text in given[:-1]]
    return " ".join((*closed, *given[-1:]))


def progress_status(status: TrainerStatus | None) -> ProgressStatus | None:
    """Return a program's report in the words of the status; values that are no numbers are left out."""
    if status is None:
        return None
    values = {metric.name: _number(metric.value) for metric in status.metrics}
    step, total = values.get(ProgressMetric.STEP), values.get(ProgressMetric.TOTAL_STEPS)
    speed = values.get(ProgressMetric.TOKENS_PER_SECOND)
    return ProgressStatus(
        percent=status.progress_percentage or 0,
        step=None if step is None or step < 0 else int(step),
        total_steps=None if total is None or total < 0 else int(total),
        eta_seconds=status.estimated_remaining_seconds,
        tokens_per_second=None if speed is None or speed < 0 else speed,
        loss=values.get(ProgressMetric.LOSS),
        updated_at=status.last_updated_time,
    )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _step_message(state: StepState) -> str:
    if state.phase is StepPhase.PENDING and state.last_words is not None and state.attempts:
        return shorten(f"tries again after: {explain(state.last_words)[1]}")
    return ""


def _stage(name: str, outcome: Outcome, *, previous: Stage | None, now: datetime) -> Stage:
    started = previous.start_time if previous else None
    completed = previous.completion_time if previous else None
    if started is None and (outcome.state is StageState.RUNNING or outcome.attempts):
        started = now
    ended = outcome.state in {StageState.SUCCEEDED, StageState.FAILED}
    return Stage(
        name=name,
        state=outcome.state,
        start_time=started,
        completion_time=(completed or now) if ended else None,
        percent=outcome.percent,
        attempts=outcome.attempts,
        message=shorten(outcome.message),
    )


def _waiting(name: str, previous: Stage | None) -> Stage:
    start = previous.start_time if previous else None
    return Stage(name=name, state=StageState.PENDING, start_time=start)


def _merge_volumes(volumes: tuple[Volume, ...], more: tuple[Volume, ...]) -> tuple[Volume, ...]:
    names = {volume.name for volume in volumes}
    return (*volumes, *(volume for volume in more if volume.name not in names))
