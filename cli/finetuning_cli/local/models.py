"""The models of a local job: its base model, and what was tuned of it."""

from collections.abc import Mapping
from pathlib import Path

from finetuning_api.base import ClaimRef, ConditionType, Resource
from finetuning_api.finetuningjob import AdapterArtifact, FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import AdapterInput, CandidateInput, JobIdentity, ModelInput, Provenance, ServeConfig
from finetuning_api.sources import Scheme
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.store import Key
from finetuning_cli.local.trust import require_adapter
from finetuning_operator.reconcile.conditions import is_true
from finetuning_operator.reconcile.names import ADAPTER_FOLDER, adapter_claim
from finetuning_operator.reconcile.needs import Role, job_needs, model_input
from finetuning_operator.reconcile.plan import Observed, Settings
from finetuning_workload.errors import UserError

_BASE = "base"


def identity(job: FineTuningJob) -> JobIdentity:
    """Return the object that a program works for."""
    metadata = job.metadata
    return JobIdentity(kind=job.kind, name=metadata.name, namespace=metadata.namespace, uid=metadata.uid)


def candidates_of(
    job: FineTuningJob, *, objects: Mapping[Key, Resource], layout: Layout
) -> tuple[CandidateInput, CandidateInput]:
    """Return base and tuned model. Raises UserError when the job has no result, or a damaged one."""
    adapter = job.status.artifacts.adapter
    base = _base(job, objects, layout)
    if adapter is None or base is None:
        raise _no_result(job)
    require_adapter(layout, job)
    return CandidateInput(name=_BASE, model=base), _tuned(job, base, adapter, layout=layout)


def serve_config(  # one keyword for each option of the command
    job: FineTuningJob,
    *,
    objects: Mapping[Key, Resource],
    layout: Layout,
    host: str,
    port: int,
    tokens: Path | None = None,
) -> ServeConfig:
    """Return what the server is told: base and tuned model under the names that they have on a cluster.

    An adapter that is still being trained is awaited. Raises UserError when there is nothing to serve, or what there is
    is damaged.
    """
    base = _base(job, objects, layout)
    adapter = job.status.artifacts.adapter
    is_full = job.trains_whole_model
    failed = is_true(job.status.conditions, ConditionType.FAILED)
    if base is None or (adapter is None and (is_full or failed)):
        raise _no_result(job)
    require_adapter(layout, job)
    if is_full and adapter is not None:
        model, served_name = _tuned(job, base, adapter, layout=layout).model, job.metadata.name
    else:
        model, served_name = base, base_name(job)
    return ServeConfig(
        job=identity(job),
        model=model,
        served_name=served_name,
        adapters=() if is_full else (_adapter(job, adapter, layout=layout),),
        host=host,
        port=port,
        tokens_path=None if tokens is None else str(tokens.absolute()),
    )


def base_name(job: FineTuningJob) -> str:
    """Return the name of the base model in requests, as on a cluster: that on the hub, else one of our own."""
    parsed, name = job.spec.model.parsed, job.metadata.name
    if parsed.scheme is Scheme.HF:
        return parsed.location
    return _BASE if name != _BASE else f"{name}-base"


def _adapter(job: FineTuningJob, made: AdapterArtifact | None, *, layout: Layout) -> AdapterInput:
    name = job.metadata.name
    if made is None:
        place = ClaimRef(claim_name=adapter_claim(name), path=ADAPTER_FOLDER)
        return AdapterInput(name=name, path=str(layout.claim(place)), awaited=True)
    place = ClaimRef(claim_name=made.claim_name, path=made.path)
    return AdapterInput(name=name, path=str(layout.claim(place)), digest=made.digest)


def _base(job: FineTuningJob, objects: Mapping[Key, Resource], layout: Layout) -> ModelInput | None:
    needs = {wanted.role: wanted for wanted in job_needs(job.spec)}
    return model_input(
        needs[Role.MODEL],
        needs.get(Role.TOKENIZER),
        observed=Observed(resources=dict(objects)),
        settings=Settings(volumes_root=str(layout.volumes), local=True),
    )


def _tuned(job: FineTuningJob, base: ModelInput, adapter: AdapterArtifact, *, layout: Layout) -> CandidateInput:
    folder = str(layout.volumes / adapter.claim_name / adapter.path)
    if not job.trains_whole_model:
        return CandidateInput(name="tuned", model=base, adapter_path=folder, adapter_digest=adapter.digest)
    provenance = Provenance(source=f"pvc://{adapter.claim_name}/{adapter.path}", digest=adapter.digest)
    model = base.model_copy(update={"path": folder, "provenance": provenance})
    return CandidateInput(name="tuned", model=model)


def _no_result(job: FineTuningJob) -> UserError:
    name = job.metadata.name
    hint = f"See how far it is: finetune status {name}"
    return UserError(Reason.WAITING, f"{name} has no tuned model yet ({job.status.phase.value})", hint)
