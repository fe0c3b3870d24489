"""What is done for a job that has ended: its exports and its tracking are steps that change nothing else of it."""

from datetime import datetime
from typing import Final

from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import JobIdentity, LastWords
from finetuning_operator.reconcile.plan import Settings, StepPhase, StepState
from finetuning_operator.reconcile.stages import seconds_left, sentences

RETRIES: Final = 5
LOCAL_RETRIES: Final = 2
"""Of what tells others about a job: somebody waits for the end of a run on one machine."""
PATIENCE_SECONDS: Final = 3600
"""How long a pod may wait for, say, a Secret that is not there, where nothing else is said."""


def identity(job: FineTuningJob) -> JobIdentity:
    """Return the job as its programs know it."""
    metadata = job.metadata
    return JobIdentity(kind=job.kind, name=metadata.name, namespace=metadata.namespace, uid=metadata.uid)


def patience(job: FineTuningJob, state: StepState | None, *, settings: Settings, now: datetime) -> float | None:
    """Return the seconds for which a step may still wait for its pod; None where it does not, or for ever."""
    if state is None or state.phase is not StepPhase.PENDING or settings.local:
        return None
    if state.hindrance is not None and state.hindrance.reason is Reason.QUEUED:
        return None
    return seconds_left(job.spec.pending_deadline_seconds or PATIENCE_SECONDS, state.started_at, now)


def trouble(state: StepState) -> str:
    """Return what keeps a step from running, or what an earlier attempt failed of."""
    words: LastWords | None = state.hindrance or state.last_words
    return sentences(words.message, words.hint) if words and state.phase is StepPhase.PENDING else ""
