"""Adapters that an InferenceServer serves: where they lie, whether they are there yet, and which never fit."""

from dataclasses import dataclass

from finetuning_api.base import ClaimRef, ConditionType
from finetuning_api.inferenceserver import AdapterRef, InferenceServer
from finetuning_api.metrics import Verdict
from finetuning_api.reasons import Reason
from finetuning_api.sources import SourceRef
from finetuning_operator.reconcile.conditions import is_true
from finetuning_operator.reconcile.dependencies import Dependency, dependency, made_adapter, tunes_other_model
from finetuning_operator.reconcile.gate import REASONS
from finetuning_operator.reconcile.names import ADAPTER_FOLDER, adapter_claim, adapter_job
from finetuning_operator.reconcile.needs import server_needs
from finetuning_operator.reconcile.plan import Observed
from finetuning_operator.reconcile.stages import sentences


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter that can be served, now or from the moment that it is complete."""

    name: str
    place: ClaimRef
    digest: str | None = None
    """None where nobody told, and of an awaited adapter: what a server is told must not change when it appears."""
    awaited: bool = False
    expected_from: str = ""
    """The job that is still to make it."""
    failure: str = ""
    """Why it will never be there."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Why an adapter cannot be served, for now or as long as the specification stays as it is."""

    reason: Reason
    message: str


def resolve(server: InferenceServer, index: int, observed: Observed) -> ServedAdapter | Lack:
    """Return where the adapter of this number lies, or why that cannot be told."""
    adapter = server.spec.adapters[index]
    field = f"spec.adapters[{index}].jobRef"
    if adapter.claim is not None:
        if adapter.awaited:
            return _awaited(adapter.name, adapter.claim, adapter_job(adapter.claim.claim_name), observed)
        made = made_adapter(adapter.claim, observed)
        return ServedAdapter(adapter.name, adapter.claim, made.digest if made else None)
    maker = dependency(adapter.job_ref or "", observed)
    misfit = _misfit(server, maker, observed, field=field)
    if misfit:
        return Lack(Reason.INVALID_SPEC, misfit)
    if adapter.awaited and maker.job is not None and is_true(maker.job.status.conditions, ConditionType.RELOCATED):
        place = ClaimRef(claim_name=adapter_claim(maker.name), path=ADAPTER_FOLDER)
        return _awaited(adapter.name, place, maker.name, observed)
    return _finished(adapter, maker, field=field)


def _awaited(name: str, place: ClaimRef, job: str | None, observed: Observed) -> ServedAdapter:
    """Return an adapter that may appear later; the same value, but for what is told of it, before and after."""
    if job is None or made_adapter(place, observed) is not None:
        return ServedAdapter(name, place, awaited=True)
    maker = dependency(job, observed)
    failure = f"adapter {name} will not be served: {maker.failure}" if maker.failure else ""
    return ServedAdapter(name, place, awaited=True, expected_from="" if failure else job, failure=failure)


def _finished(adapter: AdapterRef, maker: Dependency, *, field: str) -> ServedAdapter | Lack:
    """Return the adapter of a job that is complete and did not miss its gate."""
    if maker.failure:
        return Lack(Reason.DEPENDENCY_FAILED, f"{field}: {maker.failure}")
    made = maker.job.status.artifacts.adapter if maker.job else None
    if not maker.complete or made is None:
        return Lack(Reason.WAITING, f"waits for FineTuningJob {maker.told}")
    verdict = maker.job.status.verdict if maker.job else None
    if verdict not in {None, Verdict.PASS}:
        hint = f"To serve it all the same name its claim: {made.claim_name}, path {made.path}"
        message = f"{field}: FineTuningJob {maker.name} did not pass its gate"
        return Lack(REASONS[Verdict(verdict)], sentences(message, hint))
    return ServedAdapter(adapter.name, ClaimRef(claim_name=made.claim_name, path=made.path), made.digest)


def _misfit(server: InferenceServer, maker: Dependency, observed: Observed, *, field: str) -> str:
    """Return why the result of a job can never be an adapter of this server's model; empty where it may be one."""
    spec, job = server.spec, maker.job
    if job is None:
        return ""
    if job.trains_whole_model:
        made = job.status.artifacts.adapter
        place = f"pvc://{made.claim_name}/{made.path}" if made else "its claim"
        hint = f"Create an InferenceServer without it whose spec.model.source is {place}"
        return sentences(f"{field}: FineTuningJob {maker.name} tunes all weights and makes a model, no adapter", hint)
    if tunes_other_model(job, server_needs(server.spec)[0], observed):
        sources = f"{_named(job.spec.model)}, not {_named(spec.model)}"
        return f"{field}: FineTuningJob {maker.name} tunes {sources}; its adapter fits no other model"
    tokenizer = job.spec.tokenizer
    if tokenizer is not None and (spec.tokenizer is None or _named(tokenizer) != _named(spec.tokenizer)):
        hint = f"Set spec.tokenizer.source to {tokenizer.source}"
        return sentences(f"{field}: FineTuningJob {maker.name} trained with the tokenizer {_named(tokenizer)}", hint)
    return ""


def _named(ref: SourceRef) -> str:
    return f"{ref.source}@{ref.revision}" if ref.revision else ref.source
