"""What became of a pod, a Job or a request, in words for a user: facts are gathered here, the table explains them."""

import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pydantic import ValidationError
from pydantic_core import from_json

from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import TERMINATION_LOG_BYTES, LastWords
from finetuning_operator.cluster.errors import ApiError
from finetuning_operator.cluster.facts import End, JobFacts, PodFacts, Told
from finetuning_operator.cluster.failure_table import RULES, SIGNAL_BASE, Fact, Source
from finetuning_operator.cluster.texts import clean, last_line

_LONGEST_WORDS = 4 * TERMINATION_LOG_BYTES
"""Bytes that are looked at: a node passes on 4096, or 12 KiB for several containers."""

_AFTERTHOUGHT = re.compile(r"\s*(?:no new claims to deallocate,?\s*)?preemption: .*", re.DOTALL)
"""What the scheduler adds about pods that it might displace: it says the same of the nodes once more."""

_REASON_OF = {
    ExitCode.DONE: Reason.SUCCEEDED,
    ExitCode.USER_ERROR: Reason.INTERNAL,
    ExitCode.INTERRUPTED: Reason.INTERRUPTED,
    ExitCode.ENVIRONMENT: Reason.INTERNAL,
}

_LOST = LastWords(
    reason=Reason.NODE_LOST,
    message="the pod ended without telling how",
    hint="Its node was lost or removed; the stage starts again and goes on from what was saved.",
)


def explain(facts: Iterable[Fact]) -> LastWords | None:
    """Return the first of the facts that the table explains, in words."""
    told = (rule.explain(fact) for fact in facts for rule in RULES)
    return next((words for words in told if words is not None), None)


def explain_pod(pod: PodFacts) -> LastWords | None:
    """Return why a pod failed or does not run, None where it says nothing of note."""
    if pod.end and pod.end.exit_code != ExitCode.DONE and not pod.waits:
        # Of a program that ends at once the kubelet may tell while its pod is still said to be pending.
        return explain_ended_pod(pod)
    return explain(_facts_of(pod))


def explain_disruption(pod: PodFacts) -> LastWords | None:
    """Return what took a pod away from outside, None where nothing did."""
    return explain(fact for fact in _facts_of(pod) if fact.source in {Source.POD, Source.DISRUPTION})


def explain_ended_pod(pod: PodFacts) -> LastWords:
    """Return the last words of a pod that ended: its program's own, or what others tell of it."""
    code = pod.end.exit_code if pod.end else None
    said = own_words(pod)
    taken = None if pod.succeeded or code == ExitCode.USER_ERROR else explain_disruption(pod)
    if taken is not None and (said is None or code in {ExitCode.DONE, ExitCode.INTERRUPTED}):
        return taken
    if said is not None:
        return said
    if pod.end is None or (pod.end.exit_code == ExitCode.DONE and not pod.succeeded):
        return _LOST
    told = explain([_end_fact(pod.end, pod.memory_limit)])
    return told or LastWords(reason=Reason.SUCCEEDED, message=last_line(pod.end.message))


def explain_restart(pod: PodFacts) -> LastWords | None:
    """Return why the program of a pod ended that is started again and again, None where it did not end."""
    end = pod.end or pod.last_end
    if end is None or any(wait.told.reason != "CrashLoopBackOff" for wait in pod.waits):
        return None
    if end.exit_code == ExitCode.DONE:
        return LastWords(reason=Reason.CRASHED, message="the program ends by itself, and should go on")
    return explain_ended_pod(replace(pod, phase="Failed", end=end, waits=(), status=None, disruption=None))


def own_words(pod: PodFacts) -> LastWords | None:
    """Return what a pod's program said itself, None where it said nothing that can be read.

    Programs that leave words end with a code of the contract; another code means that something ended them.
    """
    if pod.end is None or pod.end.exit_code not in set(ExitCode) or pod.end.reason == "OOMKilled":
        return None
    return read_last_words(pod.end.message, unknown=_REASON_OF[ExitCode(pod.end.exit_code)])


def read_last_words(message: str, *, unknown: Reason) -> LastWords | None:
    """Return the last words of a termination message, None where it has none.

    A message that was cut off, or that has fields of wrong types, gives what can be read; a result only as a whole.
    ``unknown`` is the reason where the words give none that this release knows.
    """
    encoded = message.encode(errors="replace")
    if len(encoded) > _LONGEST_WORDS:
        return None
    try:
        words = LastWords.model_validate_json(encoded)
    except ValidationError:
        return _salvage(encoded, unknown=unknown)
    return words.model_copy(update={"message": clean(words.message, 4096), "hint": clean(words.hint)})


def _salvage(encoded: bytes, *, unknown: Reason) -> LastWords | None:
    try:
        told = from_json(encoded, allow_inf_nan=False, allow_partial="trailing-strings")
    except ValueError:
        return None
    fields = {name: text for name, text in told.items() if isinstance(text, str)} if isinstance(told, dict) else {}
    known = fields.get("reason") in set(Reason)
    message, hint = clean(fields.get("message", "")), clean(fields.get("hint", ""))
    if not known and not message:
        return None
    return LastWords(reason=Reason(fields["reason"]) if known else unknown, message=message, hint=hint)


def explain_job(job: JobFacts) -> LastWords | None:
    """Return why a Job failed for good, None where it has not."""
    told = job.condition("Failed", "FailureTarget")
    return explain([Fact(Source.JOB, told.reason, told.message, details={"job": job.name})]) if told else None


def explain_event(reason: str, message: str, *, about: str = "") -> LastWords | None:
    """Return what a warning means; ``about`` names its object. None where it does not hinder."""
    return explain([Fact(Source.EVENT, reason, message, details={"about": about})])


def explain_queue(told: Told, *, queue: str, evicted: Told | None = None) -> LastWords | None:
    """Return why Kueue does not admit a Job, and why it stopped it where it had admitted it before."""
    words = explain([Fact(Source.QUEUE, told.reason, told.message, details={"queue": queue})])
    if words is None or evicted is None or evicted is told:
        return words
    return words.model_copy(update={"message": f"{words.message}. Kueue took it back: {clean(evicted.message)}"})


def explain_api_error(error: ApiError) -> LastWords:
    """Return an answer of the API server in words."""
    classes = [each.__name__ for each in type(error).__mro__ if issubclass(each, ApiError)]
    words = explain(Fact(Source.API, name, error.message) for name in classes)
    return words or LastWords(reason=Reason.API_UNAVAILABLE, message=clean(error.message))


def _facts_of(pod: PodFacts) -> Iterator[Fact]:
    details = {"pod": pod.name, "node": pod.node, "image": clean(pod.image), "claims": ", ".join(pod.claims)}
    if pod.status:
        yield Fact(Source.POD, pod.status.reason, pod.status.message, details=details)
    if pod.disruption:
        yield Fact(Source.DISRUPTION, pod.disruption.reason, pod.disruption.message, details=details)
    for wait in pod.waits:
        image = {"image": clean(pod.image or wait.image)}
        yield Fact(Source.WAITING, wait.told.reason, wait.told.message, details=details | image)
    if pod.end:
        yield _end_fact(pod.end, pod.memory_limit)
    if pod.unscheduled and not pod.ended:
        message = _AFTERTHOUGHT.sub("", pod.unscheduled.message)
        yield Fact(Source.SCHEDULER, pod.unscheduled.reason, message, details=details)


def _end_fact(end: End, memory_limit: str) -> Fact:
    said = last_line(end.message)
    details = {
        "code": str(end.exit_code),
        "signal": _signal_name(end.exit_code),
        "said": f": {said}" if said else " without a word",
        "limit": f" of {clean(memory_limit, 64)}" if memory_limit else "",
    }
    return Fact(Source.ENDED, end.reason, end.message, exit_code=end.exit_code, details=details)


def _signal_name(exit_code: int) -> str:
    try:
        return signal.Signals(exit_code - SIGNAL_BASE).name
    except ValueError:
        return f"signal {exit_code - SIGNAL_BASE}"
