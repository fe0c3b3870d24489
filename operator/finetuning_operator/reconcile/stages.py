"""Stages: an object's life as a list of questions that are asked in order, one active at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from finetuning_api.base import Condition, ConditionType, ProgressStatus, Resource, Stage, StagedStatus, StageState
from finetuning_api.reasons import LIFE_CYCLE_REASONS, Reason
from finetuning_api.runconfig import LastWords, ProgressMetric, TrainerStatus
from finetuning_operator.reconcile.conditions import condition, headline, set_condition, shorten, with_log
from finetuning_operator.reconcile.plan import Observed, Step, StepPhase, StepState, Volume

View = TypeVar("View")

WAITS_TO_START = "waits to start"


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
    pending_since: datetime | None = None
    """Since when something waits for its pod to run; None where nothing does, or nobody knows since when."""
    silent_since: datetime | None = None
    """Since when a program that runs and reported before has not reported."""


@dataclass(frozen=True, slots=True)
class StageRule(Generic[View]):
    """A stage: its name, the condition that tells of it, and the function that decides where it stands."""

    name: str
    decide: Callable[[View], Outcome]
    condition: ConditionType | None = None
    completes: bool = True
    """Whether success of this stage makes the condition true; else it only tells why the condition is not true yet."""
    single: bool = True
    """Whether the stage has one step, whose attempts are its own; several count for themselves."""


@dataclass(frozen=True, slots=True)
class Clock:
    """What time it is, and how long a stage may wait or be silent, in seconds."""

    now: datetime
    stalled_after: int
    pending_deadline: int | None = None
    active_since: datetime | None = None
    """A stage has not waited since before then: time in suspension does not count."""

    def left(self, seconds: int | None, since: datetime | None) -> float | None:
        """Return the seconds until a time since a moment is over, at least 0; None where it never will be."""
        return seconds_left(seconds, since, self.now)


def seconds_left(seconds: int | None, since: datetime | None, now: datetime) -> float | None:
    """Return how many of the seconds since a moment are left, at least 0; None without a limit or a moment."""
    if since is None or seconds is None:
        return None
    return max(0.0, (since + timedelta(seconds=seconds) - now).total_seconds())


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
    wake: float | None = None
    """Seconds until the clock alone changes where the active stage stands."""

    @property
    def reason(self) -> Reason | None:
        """Why the active stage waits or has failed; None while it gets on."""
        if self.active is None:
            return None
        gets_on = self.active.state is StageState.RUNNING and self.active.reason in LIFE_CYCLE_REASONS
        return None if gets_on else self.active.reason

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
    clock: Clock,
) -> Course:
    """Ask the stages in order until one has not succeeded; later ones wait."""
    course = Course(conditions=tuple(conditions))
    previous = {stage.name: stage for stage in stages}
    for rule in rules:
        if course.active is not None:
            course = replace(course, stages=(*course.stages, _waiting(rule.name, previous.get(rule.name))))
            continue
        decided = rule.decide(view)
        outcome, wake = _timed(_counted(decided, previous.get(rule.name)) if rule.single else decided, clock)
        course = replace(
            course,
            stages=(*course.stages, _stage(rule.name, outcome, previous=previous.get(rule.name), now=clock.now)),
            volumes=_merge_volumes(course.volumes, outcome.volumes),
            children=(*course.children, *outcome.children),
            conditions=_told(rule, outcome, course.conditions, generation=generation, now=clock.now),
        )
        if outcome.state not in {StageState.SUCCEEDED, StageState.SKIPPED}:
            course = replace(course, active=outcome, active_name=rule.name, wake=wake)
    return course


def _counted(outcome: Outcome, previous: Stage | None) -> Outcome:
    """Return an outcome whose steps know how often their stage was started before."""
    if previous is None or not previous.attempts:
        return outcome
    steps = tuple(replace(step, earlier_attempts=previous.attempts) for step in outcome.steps)
    return replace(outcome, steps=steps)


def _told(
    rule: StageRule[View], outcome: Outcome, conditions: tuple[Condition, ...], *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    succeeded = outcome.state is StageState.SUCCEEDED
    if rule.condition is None or (succeeded and not rule.completes):
        return conditions
    told = condition(
        rule.condition,
        holds=succeeded,
        reason=outcome.reason,
        message=headline(outcome.message),
        generation=generation,
        now=now,
    )
    return set_condition(conditions, told)


def _timed(outcome: Outcome, clock: Clock) -> tuple[Outcome, float | None]:
    """Return what an outcome is in the light of the clock, and the seconds until that can change."""
    silence = clock.left(clock.stalled_after, outcome.silent_since)
    if outcome.state is StageState.RUNNING and silence == 0:
        message = f"has not reported since {outcome.silent_since:%Y-%m-%dT%H:%M:%SZ}"
        hint = "Its log and the load of its node tell whether it still works"
        return replace(outcome, reason=Reason.STALLED, message=sentences(message, hint, outcome.message)), None
    waiting = _waiting_since(outcome, clock)
    wait = clock.left(clock.pending_deadline, waiting)
    if wait == 0:
        why = f": {outcome.reason}: {outcome.message}" if outcome.reason not in LIFE_CYCLE_REASONS else ""
        message = f"waited {clock.pending_deadline} s{why or ' for its pod to run (pendingDeadlineSeconds)'}"
        late = replace(
            outcome, state=StageState.FAILED, reason=Reason.DEADLINE_EXCEEDED, message=message, steps=(), progress=None
        )
        return late, None
    return outcome, min((each for each in (silence, wait) if each is not None), default=None)


def _waiting_since(outcome: Outcome, clock: Clock) -> datetime | None:
    """Return since when a stage waits for a pod to run: not one that is stopped, nor one whose turn is to come."""
    since = outcome.pending_since
    if since is None or outcome.reason in {Reason.STOPPING, Reason.QUEUED}:
        return None
    return since if clock.active_since is None else max(since, clock.active_since)


def pause(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages of an object whose steps are stopped on purpose: what a stage waited for is told no longer."""
    return tuple(
        stage.model_copy(update={"state": StageState.PENDING, "message": "suspended"})
        if stage.state is StageState.RUNNING or (stage.state is StageState.PENDING and stage.message)
        else stage
        for stage in stages
    )


def step_outcome(step: Step, state: StepState | None, *, running: Reason, volumes: tuple[Volume, ...] = ()) -> Outcome:
    """Return where a stage stands that consists of one step."""
    if state is None:
        return Outcome(StageState.PENDING, Reason.PENDING, WAITS_TO_START, steps=(step,), volumes=volumes)
    if state.phase is StepPhase.SUCCEEDED:
        return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, percent=100, attempts=state.attempts, volumes=volumes)
    if state.phase is StepPhase.FAILED:
        reason, message = explain(state.last_words)
        told = with_log(message, state.log_tail)
        return Outcome(StageState.FAILED, reason, told, attempts=state.attempts, volumes=volumes)
    progress = progress_status(state.progress)
    outcome = Outcome(
        StageState.RUNNING,
        running,
        percent=progress.percent if progress else 0,
        attempts=state.attempts,
        progress=progress,
        steps=(step,),
        volumes=volumes,
        silent_since=_silent_since(state),
    )
    return _pending(outcome, state) if state.phase is StepPhase.PENDING else _warned(outcome, state)


def _warned(outcome: Outcome, state: StepState) -> Outcome:
    """Return the outcome of a step that runs, with what will be lost when it ends."""
    if not state.leaving_claims:
        return outcome
    claims = ", ".join(state.leaving_claims)
    message = f"somebody deleted claim {claims}: it goes, with everything on it, when this pod ends"
    hint = "That cannot be taken back. Copy what you need while the pod runs"
    return replace(outcome, reason=Reason.VOLUME_UNAVAILABLE, message=sentences(message, hint))


def is_running(status: StagedStatus) -> bool:
    """Return whether a stage of an object runs now, rather than waiting for its pod or its turn."""
    return any(stage.state is StageState.RUNNING for stage in status.stages)


def unmade(child: Resource, observed: Observed) -> Outcome:
    """Return where a stage stands whose object is not there: why not, where that is known."""
    words = observed.hindrances.get((child.kind, child.metadata.name))
    if words is None:
        return Outcome(StageState.PENDING, Reason.PENDING, WAITS_TO_START, children=(child,))
    return Outcome(StageState.PENDING, words.reason, sentences(words.message, words.hint), children=(child,))


def _pending(outcome: Outcome, state: StepState) -> Outcome:
    """Return the outcome of a step that waits, the first time or again."""
    reason = Reason.RETRYING if state.attempts else Reason.PENDING
    words, again = state.hindrance, state.last_words if state.attempts else None
    message = sentences(
        sentences(words.message, words.hint) if words else "",
        f"tries again after: {explain(again)[1]}" if again else "",
    )
    return replace(
        outcome,
        state=StageState.PENDING,
        reason=words.reason if words else reason,
        message=shorten(message),
        pending_since=state.started_at,
        silent_since=None,
    )


def _silent_since(state: StepState) -> datetime | None:
    """Return the last sign of life of a program that reports; what an earlier attempt reported does not count."""
    if state.progress is None:
        return None
    reported = state.progress.last_updated_time
    return max(reported, state.started_at) if state.started_at else reported


def remembered(name: str, *, stages: Sequence[Stage], observed: Observed) -> Outcome | None:
    """Return the success of a stage whose step nobody can tell of any more: its pod, say, was cleared away.

    Only for a stage of which later ones need nothing but that it succeeded: it is not worth stopping them for.
    """
    stage = next((stage for stage in stages if stage.name == name and stage.state is StageState.SUCCEEDED), None)
    if stage is None or name in observed.steps:
        return None
    return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, percent=100, attempts=stage.attempts)


def success_told(name: str, stages: Sequence[Stage]) -> str:
    """Return what a stage said of its success; nothing where it has not succeeded."""
    return next((each.message for each in stages if each.name == name and each.state is StageState.SUCCEEDED), "")


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
        # What is known of a finished stage, or of one whose Job is gone, may be less than what was seen before.
        attempts=max(outcome.attempts, previous.attempts if previous else 0),
        message=shorten(headline(outcome.message)),
    )


def _waiting(name: str, previous: Stage | None) -> Stage:
    start = previous.start_time if previous else None
    return Stage(name=name, state=StageState.PENDING, start_time=start)


def _merge_volumes(volumes: tuple[Volume, ...], more: tuple[Volume, ...]) -> tuple[Volume, ...]:
    names = {volume.name for volume in volumes}
    return (*volumes, *(volume for volume in more if volume.name not in names))
