"""Exports: what is made of the result of a job for others, at its end or when it is asked for later.

As a notification, an export is steps of a job that has ended: its stages never run again. What it comes to stands in
the status, and never changes anything else of the job. The adapter is read and never written: what is served and
evaluated stays what it is, and a merged model, which is as large as its base model in 32 bits, gets a claim of its own.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from posixpath import join
from typing import Final, cast

from finetuning_api.base import Condition, ConditionStatus, ConditionType, Resource
from finetuning_api.export import ExportFormat, ExportSpec, ExportState, ExportStatus
from finetuning_api.finetuningjob import (
    AdapterArtifact,
    FineTuningJob,
    FineTuningJobSpec,
    FineTuningJobStatus,
    VolumeSpec,
)
from finetuning_api.metrics import Verdict
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ArtifactResult, ExportConfig, PushConfig, PushResult
from finetuning_operator.reconcile.afterwards import RETRIES, identity, patience, trouble
from finetuning_operator.reconcile.conditions import find_condition, headline, is_terminal, shorten
from finetuning_operator.reconcile.job import without_accelerators
from finetuning_operator.reconcile.lifecycle import Writer, soonest
from finetuning_operator.reconcile.names import export_claim
from finetuning_operator.reconcile.needs import (
    Need,
    Role,
    claim_mount,
    input_mounts,
    job_needs,
    model_input,
    relocations,
)
from finetuning_operator.reconcile.plan import (
    Event,
    ImageRole,
    Observed,
    Plan,
    Settings,
    Step,
    StepPhase,
    StepState,
    Volume,
)
from finetuning_operator.reconcile.stages import explain, sentences

MERGED_FOLDER: Final = "merged"
_FLOOR_BYTES: Final = 2**30
_WIDER: Final = 2
"""Weights of 16 bits are twice as large in 32."""
_REASONS: Final = {
    ExportState.PENDING: Reason.EXPORTING,
    ExportState.FAILED: Reason.EXPORT_FAILED,
    ExportState.SKIPPED: Reason.NOT_REQUESTED,
}
"""What is told of all exports together; the first that holds of one of them."""
_ENDED: Final = frozenset({ExportState.DONE, ExportState.FAILED, ExportState.SKIPPED})


@dataclass(frozen=True, slots=True)
class _Look:
    """A job that has ended, and what is seen of its exports."""

    job: FineTuningJob
    status: FineTuningJobStatus
    observed: Observed
    settings: Settings
    now: datetime

    @property
    def claim(self) -> str:
        return export_claim(self.job.metadata.name)

    @property
    def needs(self) -> tuple[Need, ...]:
        return merge_needs(self.job.spec)

    def need(self, role: Role) -> Need | None:
        return next((wanted for wanted in self.needs if wanted.role is role), None)

    def merges(self, spec: ExportSpec) -> bool:
        """Whether something must be made: what method full leaves is a whole model already."""
        return spec.format is ExportFormat.MERGED and not self.job.trains_whole_model

    def patience(self, state: StepState | None) -> float | None:
        """Return the seconds for which a step may still wait for its pod; None where it does not, or for ever."""
        return patience(self.job, state, settings=self.settings, now=self.now)


@dataclass(frozen=True, slots=True)
class _Turn:
    """Where one export stands, and what it needs to get on."""

    record: ExportStatus
    steps: tuple[Step, ...] = ()
    volumes: tuple[Volume, ...] = ()
    children: tuple[Resource, ...] = ()
    wait: float | None = None


def with_exports(job: FineTuningJob, plan: Plan, *, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Return the plan of a job with what its exports need once it has ended; it is kept until they have, too."""
    stored = job.status.exports
    status = cast("FineTuningJobStatus", plan.status)
    if not (stored or job.spec.exports) or not is_terminal(status.conditions):
        return plan
    look = _Look(job, status, observed, settings, now)
    turns = [_turn(look, spec) for spec in job.spec.exports]
    records = [turn.record for turn in turns]
    waits = [turn.wait for turn in turns]
    if records != stored:
        status = status.model_copy(update={"exports": records, "conditions": list(_conditions(look, records))})
    # What became of the last of them is written, and told, before the job goes.
    due = plan.expired and (records != stored or is_exporting(job))
    if due and all(record.state in _ENDED for record in records):
        waits.append(0.0)
    return replace(
        plan,
        status=status,
        steps=(*plan.steps, *(step for turn in turns for step in turn.steps)),
        volumes=(*plan.volumes, *{each.name: each for turn in turns for each in turn.volumes}.values()),
        children=(*plan.children, *_distinct([child for turn in turns for child in turn.children])),
        events=(*plan.events, *_failures(stored, records)),
        requeue_after=soonest(plan.requeue_after, *waits),
        expired=plan.expired and not due,
    )


def merge_needs(spec: FineTuningJobSpec) -> tuple[Need, ...]:
    """Return what a merge reads besides the adapter."""
    return tuple(wanted for wanted in job_needs(spec) if wanted.role in {Role.MODEL, Role.TOKENIZER})


def is_exporting(job: FineTuningJob) -> bool:
    """Return whether a job that has ended has exports that are neither done nor given up."""
    if not is_terminal(job.status.conditions):
        return False
    return any(_stored(job, spec).state not in _ENDED for spec in job.spec.exports)


def _stored(job: FineTuningJob, spec: ExportSpec) -> ExportStatus:
    """Return what the status tells of an export; one that asks for something else under the same name is new."""
    asked = {"name": spec.name, "format": spec.format, "to": spec.to}
    found = (record for record in job.status.exports if asked == record.model_dump(include=set(asked)))
    return next(found, ExportStatus.model_validate(asked))


def _turn(look: _Look, spec: ExportSpec) -> _Turn:
    record = _stored(look.job, spec)
    if record.state in _ENDED:
        return _Turn(record)
    made = look.status.artifacts.adapter
    if made is None:
        return _Turn(_ended(record, ExportState.SKIPPED, "the job made nothing to export"))
    gated = bool(look.job.spec.evaluation.gate) and look.status.verdict is not Verdict.PASS
    if spec.after_gate and gated:
        hint = "To export it all the same set afterGate to false"
        return _Turn(_ended(record, ExportState.SKIPPED, sentences("the result did not pass the gate", hint)))
    if not _is_allowed(spec, look.settings):
        message = f"{spec.endpoint or spec.to} is no place that this installation lets jobs reach"
        hint = "Have it added (relocation.allowedSources, relocation.allowedEndpoints)"
        return _Turn(_ended(record, ExportState.FAILED, sentences(message, hint)))
    if not look.merges(spec):
        record = _lies(record, made.claim_name, made.path, digest=made.digest, size=made.size_bytes)
    elif record.digest is None:
        turn = _merge(look, spec, record, made)
        if turn.record.digest is None:
            return turn
        record = turn.record
    return _push(look, spec, record)


def _is_allowed(spec: ExportSpec, settings: Settings) -> bool:
    """Whether an administrator lets jobs reach a destination: the rules are those of sources."""
    destination, policy = spec.destination, settings.sources
    return destination is None or (policy.allows_source(destination) and policy.allows_endpoint(destination))


def _merge(look: _Look, spec: ExportSpec, record: ExportStatus, made: AdapterArtifact) -> _Turn:
    """Return where the merge stands; the record of one that is done names the folder that it left."""
    name = f"export-{_mark(spec)}"
    state = look.observed.steps.get(name)
    result = state.last_words.result if state and state.last_words else None
    if state is not None and state.phase is StepPhase.SUCCEEDED and isinstance(result, ArtifactResult):
        return _Turn(_lies(record, look.claim, MERGED_FOLDER, digest=result.digest, size=result.size_bytes))
    job = look.job
    # What was relocated for the training may be gone again.
    children = relocations(
        look.needs, namespace=job.metadata.namespace, storage=job.spec.storage, backoff_limit=job.spec.backoff_limit
    )
    base = look.need(Role.MODEL)
    artifact = base.artifact(look.observed) if base else None
    model = (
        model_input(base, look.need(Role.TOKENIZER), observed=look.observed, settings=look.settings) if base else None
    )
    if artifact is None or model is None:
        failure = _relocation_failure(look)
        if failure:
            return _Turn(_ended(record, ExportState.FAILED, failure))
        return _Turn(_told(record, "waits for its base model"), children=children)
    known = look.status.artifacts.model
    if known is not None and known.digest != artifact.digest:
        message = f"the base model is not the one of the training any more: {artifact.digest}, not {known.digest}"
        return _Turn(_ended(record, ExportState.FAILED, message))
    folder = join(look.settings.volumes_root, look.claim, MERGED_FOLDER)
    step = Step(
        name=name,
        image=ImageRole.TRAINER,
        config=ExportConfig(
            job=identity(job),
            model=model,
            adapter_path=join(look.settings.volumes_root, made.claim_name, made.path),
            adapter_digest=made.digest,
            output_path=folder,
        ),
        mounts=(
            *input_mounts(look.needs, look.observed, look.settings),
            claim_mount(made.claim_name, look.settings),
            claim_mount(look.claim, look.settings, read_only=False),
        ),
        resources=without_accelerators(job.spec.resources),
        pod=job.spec.pod,
        retries=job.spec.backoff_limit,
        priority_class=job.spec.priority_class_name,
        queue=job.spec.queue_name,
    )
    turn = _stepped(look, record, step, doing="is merged")
    return replace(turn, children=children, volumes=(_volume(look, artifact.size_bytes),))


def _relocation_failure(look: _Look) -> str:
    """Return why what a merge reads cannot be brought; empty where it is there or may come."""
    for wanted in look.needs:
        found = wanted.find(look.observed)
        failed = find_condition(found.status.conditions, ConditionType.FAILED) if found else None
        if failed is not None and failed.status is ConditionStatus.TRUE:
            return f"{wanted.role}: {headline(failed.message)}"
    return ""


def _push(look: _Look, spec: ExportSpec, record: ExportStatus) -> _Turn:
    destination = spec.destination
    if destination is None or record.claim_name is None or record.path is None or record.digest is None:
        return _Turn(_ended(record, ExportState.DONE, ""))
    name = f"push-{_mark(spec)}"
    state = look.observed.steps.get(name)
    result = state.last_words.result if state and state.last_words else None
    if state is not None and state.phase is StepPhase.SUCCEEDED and isinstance(result, PushResult):
        done = record.model_copy(update={"pushed_revision": result.revision})
        return _Turn(_ended(done, ExportState.DONE, ""))
    step = Step(
        name=name,
        image=ImageRole.RELOCATOR,
        config=PushConfig(
            job=identity(look.job),
            path=join(look.settings.volumes_root, record.claim_name, record.path),
            digest=record.digest,
            destination=destination,
            stall_seconds=look.settings.stall_seconds,
        ),
        mounts=(claim_mount(record.claim_name, look.settings),),
        secret=spec.secret_ref.name if spec.secret_ref else None,
        network=True,
        retries=RETRIES,
    )
    return _stepped(look, record, step, doing="is pushed")


def _stepped(look: _Look, record: ExportStatus, step: Step, *, doing: str) -> _Turn:
    """Return the export whose next step has not ended well."""
    state = look.observed.steps.get(step.name)
    if state is None:
        return _Turn(_told(record, doing), steps=(step,))
    if state.phase is StepPhase.SUCCEEDED:
        return _Turn(_ended(record, ExportState.FAILED, f"{step.name} ended without telling its result"))
    if state.phase is StepPhase.FAILED:
        return _Turn(_ended(record, ExportState.FAILED, explain(state.last_words)[1]))
    wait, hindered = look.patience(state), trouble(state)
    if wait == 0:
        late = sentences("its pod did not get to run in time", hindered)
        return _Turn(_ended(record, ExportState.FAILED, late))
    return _Turn(_told(record, hindered or doing), steps=(step,), wait=wait)


def _told(record: ExportStatus, message: str) -> ExportStatus:
    return record.model_copy(update={"message": shorten(message)})


def _ended(record: ExportStatus, state: ExportState, message: str) -> ExportStatus:
    return record.model_copy(update={"state": state, "message": shorten(message)})


def _lies(record: ExportStatus, claim: str, path: str, *, digest: str, size: int) -> ExportStatus:
    return record.model_copy(update={"claim_name": claim, "path": path, "digest": digest, "size_bytes": size})


def _mark(spec: ExportSpec) -> str:
    """Return what tells the steps of an export from those of every other one, of another form of itself too."""
    return hashlib.sha256(json.dumps(spec.to_wire(), sort_keys=True).encode()).hexdigest()[:8]


def _volume(look: _Look, base_bytes: int) -> Volume:
    storage = look.job.spec.storage
    needed = int(look.settings.size_margin * _WIDER * base_bytes)
    return Volume(
        name=look.claim,
        # Class and modes as the adapter's, beside which it is mounted; its size is another one.
        spec=VolumeSpec(
            storage_class_name=storage.adapter.storage_class_name, access_modes=storage.adapter.access_modes
        ),
        profile=storage.profile,
        size_bytes=max(_FLOOR_BYTES, needed),
        retention=storage.retention,
    )


def _distinct(children: Sequence[Resource]) -> tuple[Resource, ...]:
    return tuple({(child.kind, child.metadata.name): child for child in children}.values())


def _conditions(look: _Look, records: Sequence[ExportStatus]) -> tuple[Condition, ...]:
    """Return the conditions with what is told of all exports together."""
    states = {record.state for record in records}
    told = "; ".join(f"{record.name}: {record.message}" for record in records if record.message)
    reason = next((reason for state, reason in _REASONS.items() if state in states), Reason.SUCCEEDED)
    return Writer(look.job.metadata.generation, look.now).set(
        look.status.conditions,
        ConditionType.EXPORTED,
        holds=reason is Reason.SUCCEEDED,
        reason=reason,
        message=told,
    )


def _failures(before: Sequence[ExportStatus], after: Sequence[ExportStatus]) -> tuple[Event, ...]:
    known = {record.name for record in before if record.state is ExportState.FAILED}
    failed = [record for record in after if record.state is ExportState.FAILED and record.name not in known]
    return tuple(
        Event(Reason.EXPORT_FAILED, shorten(f"export {record.name}: {record.message}", 1024), warning=True)
        for record in failed
    )
