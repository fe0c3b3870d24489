"""From what a cluster shows of a step or a server to what reconciling knows of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords, TrainerStatus
from finetuning_operator.cluster.diagnose import Diagnosis
from finetuning_operator.cluster.facts import (
    PodFacts,
    deleted,
    find_condition,
    number,
    part,
    parts,
    read_conditions,
    read_pod,
    text,
)
from finetuning_operator.cluster.failures import (
    explain_ended_pod,
    explain_event,
    explain_job,
    explain_pod,
    explain_restart,
)
from finetuning_operator.cluster.jobview import JobView, seconds
from finetuning_operator.reconcile.plan import ServerState, StepPhase, StepState

STOPPING = LastWords(reason=Reason.STOPPING, message="the step is being stopped: it saves and ends")
_REVISION = "deployment.kubernetes.io/revision"
"""Annotation of a Deployment with the number of its newest description."""
_VOLUME_PATIENCE = timedelta(seconds=10)
"""How long a claim may take to get its volume before anybody is told: for some moments every new one has none."""


def observe_step(
    job: Mapping[str, object],
    pods: Sequence[Mapping[str, object]],
    *,
    now: datetime,
    progress: TrainerStatus | None = None,
    diagnosis: Diagnosis | None = None,
) -> StepState | None:
    """Return where a step stands by its Job and the Job's pods.

    None is a step as if it was never started: its Job is complete, but the pod that had its result is gone.
    """
    view = JobView.read(job, pods, now=now)
    if view.job.deleted:
        lost = next((pod for pod in view.pods if not pod.ended and view.is_lost(pod)), None)
        return _pending(view, progress, hindrance=_lost(lost) if lost else STOPPING)
    if view.is_behind:
        return _running(view, progress)
    if view.job.condition("Failed"):
        return _failed(view, progress, diagnosis)
    if view.job.condition("Complete", "SuccessCriteriaMet") or _has_told_its_result(view):
        return _succeeded(view, progress)
    if view.all_running or view.job.condition("FailureTarget"):
        return _running(view, progress)
    state = _pending(view, progress, hindrance=_hindrance(view, diagnosis))
    return replace(state, last_words=_earlier_words(view), log_tail=_log_tail(view, diagnosis))


def observe_server(
    deployment: Mapping[str, object], pods: Sequence[Mapping[str, object]], diagnosis: Diagnosis | None = None
) -> ServerState:
    """Return where a server stands by its Deployment and the Deployment's pods."""
    spec, status = part(deployment, "spec"), part(deployment, "status")
    if deleted(deployment):
        return ServerState(hindrance=STOPPING)
    wanted, replicas = number(spec, "replicas"), number(status, "replicas")
    ready = number(status, "readyReplicas")
    updated = number(status, "updatedReplicas")
    seen = number(status, "observedGeneration") >= number(part(deployment, "metadata"), "generation")
    current = seen and updated == replicas == wanted
    hindered = not current or ready < wanted
    hindrance = _server_hindrance(status, pods, diagnosis) if hindered else None
    return ServerState(
        replicas=replicas,
        ready=ready,
        wanted=wanted,
        current=current,
        revision=_revision(deployment),
        hindrance=_stalled(deployment, hindrance, answers=ready > 0) if hindered else None,
    )


def _succeeded(view: JobView, progress: TrainerStatus | None) -> StepState | None:
    pod = view.success
    if pod is None:
        return None
    return StepState(
        StepPhase.SUCCEEDED,
        attempts=_attempts(view),
        started_at=pod.started_at or view.job.started_at,
        finished_at=pod.ended_at or view.job.completed_at,
        last_words=explain_ended_pod(pod),
        progress=progress,
    )


def _failed(view: JobView, progress: TrainerStatus | None, diagnosis: Diagnosis | None) -> StepState:
    pod = view.culprit
    told = view.job.condition("Failed")
    return StepState(
        StepPhase.FAILED,
        attempts=_attempts(view, least=1),
        started_at=(pod.started_at if pod else None) or view.job.started_at,
        finished_at=(pod.ended_at if pod else None) or (told.at if told else None),
        last_words=_final_words(view, pod),
        progress=progress,
        log_tail=_log_tail(view, diagnosis),
    )


def _running(view: JobView, progress: TrainerStatus | None) -> StepState:
    started = [pod.started_at for pod in view.pods if pod.running and pod.started_at]
    return StepState(
        StepPhase.RUNNING,
        attempts=_attempts(view, least=1),
        started_at=max(started, default=view.job.started_at),
        last_words=_earlier_words(view),
        progress=progress,
    )


def _pending(view: JobView, progress: TrainerStatus | None, *, hindrance: LastWords | None) -> StepState:
    return StepState(
        StepPhase.PENDING,
        attempts=_attempts(view),
        started_at=view.pending_since,
        progress=progress,
        hindrance=hindrance,
    )


def _has_told_its_result(view: JobView) -> bool:
    """Return whether the only worker left its result, which the Job's own status repeats a second later."""
    pod = view.success
    if pod is None or view.job.indexed or view.job.condition("FailureTarget"):
        return False
    words = explain_ended_pod(pod)
    return words.reason is Reason.SUCCEEDED and words.result is not None


def _attempts(view: JobView, *, least: int = 0) -> int:
    """Return how many times the step was started, also by Jobs that are gone; this one did it ``least`` times.

    A pod that never ran is no attempt, one that was taken away is.
    """
    began = [pod.index for pod in view.pods if pod.ended or pod.started_at]
    by_pods = max((began.count(index) for index in set(began)), default=0)
    # The Job of a pod that seems to run may have counted its end already.
    running = 0 if view.is_behind else sum(pod.running for pod in view.pods)
    counted = view.job.failed + view.job.succeeded + running
    return view.job.earlier_attempts + max(least, by_pods, -(-counted // view.job.workers))


def _final_words(view: JobView, pod: PodFacts | None) -> LastWords | None:
    """Return what a Job failed of; a deadline is the Job's own doing, all else is its last pod's."""
    verdict = explain_job(view.job)
    overdue = verdict is not None and verdict.reason is Reason.DEADLINE_EXCEEDED
    return verdict if overdue or pod is None else _words_of(view, pod)


def _earlier_words(view: JobView) -> LastWords | None:
    pod = view.culprit
    return None if pod is None else _words_of(view, pod)


def _words_of(view: JobView, pod: PodFacts) -> LastWords:
    words = explain_ended_pod(pod)
    if view.job.workers == 1:
        return words
    return words.model_copy(update={"message": f"worker {pod.index}: {words.message}"})


def _log_tail(view: JobView, diagnosis: Diagnosis | None) -> tuple[str, ...]:
    culprit = view.culprit
    return diagnosis.log_tail if diagnosis and culprit and diagnosis.log_of == culprit.uid else ()


def _hindrance(view: JobView, diagnosis: Diagnosis | None) -> LastWords | None:
    # Whoever asked may have asked about a pod that is gone by now.
    concerned = {view.job.uid, *(pod.uid for pod in view.waiting)}
    known = diagnosis.hindrance if diagnosis and diagnosis.uid in concerned else None
    if view.job.suspended:
        return _suspension(view, known)
    told = (_lost(pod) if view.is_lost(pod) else explain_pod(pod) for pod in view.waiting)
    explained = next((words for words in told if words is not None), None)
    # The scheduler knows only that a claim has no volume; the claim's own Events know why.
    vague = explained is None or explained.reason is Reason.VOLUME_UNAVAILABLE
    if known and vague:
        return known
    return None if vague and _has_just_begun_to_wait(view) else explained


def _has_just_begun_to_wait(view: JobView) -> bool:
    return view.pending_since is not None and view.now - view.pending_since < _VOLUME_PATIENCE


def _lost(pod: PodFacts) -> LastWords:
    return LastWords(
        reason=Reason.NODE_LOST,
        message=f"the pod {pod.name} should have ended, but its node {pod.node} does not answer",
        hint="A new pod starts when the cluster has given the node up, so that two never write the same volume. If the"
        " node is gone for good, delete its Node object.",
    )


def _suspension(view: JobView, known: LastWords | None) -> LastWords:
    queue = view.job.queue
    if queue:
        return known or LastWords(reason=Reason.QUEUED, message=f"waits in the queue {queue}")
    return LastWords(
        reason=Reason.SUSPENDED,
        message=f"the Job {view.job.name} was suspended by somebody else",
        hint="Set spec.suspend of the Job to false.",
    )


def _revision(deployment: Mapping[str, object]) -> int:
    told = text(part(part(deployment, "metadata"), "annotations"), _REVISION)
    return int(told) if told.isascii() and told.isdecimal() else 0


def _stalled(deployment: Mapping[str, object], known: LastWords | None, *, answers: bool) -> LastWords | None:
    """Return what hinders a server, and that its rollout is given up where its Deployment says so."""
    told = find_condition(parts(part(deployment, "status"), "conditions"), "Progressing", status="False")
    if told is None or told.reason != "ProgressDeadlineExceeded":
        return known
    seconds_given = number(part(deployment, "spec"), "progressDeadlineSeconds")
    why = f": {known.message}" if known and known.message else ""
    back = "Its former replicas go on answering; apply the former specification to go back to it." if answers else ""
    return LastWords(
        reason=Reason.ROLLOUT_STALLED,
        message=f"the newest description made no progress for {seconds_given} s{why}",
        hint=" ".join(filter(None, (known.hint if known else "", back))),
    )


def _server_hindrance(
    status: Mapping[str, object], pods: Sequence[Mapping[str, object]], diagnosis: Diagnosis | None
) -> LastWords | None:
    refused = dict(read_conditions(status)).get("ReplicaFailure")
    if refused is not None:
        return explain_event(refused.reason, refused.message)
    newest_first = sorted(map(read_pod, pods), key=lambda pod: -seconds(pod.created_at))
    waiting = [pod for pod in newest_first if not pod.ready and not pod.deleted_at]
    told = (explain_restart(pod) or explain_pod(pod) for pod in waiting)
    known = diagnosis.hindrance if diagnosis and diagnosis.uid in {pod.uid for pod in waiting} else None
    return next((words for words in told if words), None) or known
