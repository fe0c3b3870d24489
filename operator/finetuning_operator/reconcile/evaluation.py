"""EvaluationJob: relocate the candidates, wait for the jobs that make them, then evaluate and decide, or predict."""

from dataclasses import dataclass, replace
from datetime import datetime
from posixpath import join

from finetuning_api.base import ClaimRef, ConditionType, StageState
from finetuning_api.evaluationjob import CandidateSpec, EvaluationJob, EvaluationJobSpec, EvaluationMode
from finetuning_api.finetuningjob import EvaluationOptions, FineTuningJob, JobPhase, StorageSpec, VolumeSpec
from finetuning_api.metrics import Metric
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import (
    CandidateInput,
    DatasetInput,
    EvaluateConfig,
    EvaluateResult,
    JobIdentity,
    ModelInput,
    PredictConfig,
    PredictResult,
)
from finetuning_api.sources import SourceRef
from finetuning_operator.reconcile.accept import idle_warnings, refused_paths
from finetuning_operator.reconcile.allowed import (
    came_with_a_job,
    own_sources,
    refused_amount,
    refused_code,
    refused_source,
)
from finetuning_operator.reconcile.conditions import (
    events_between,
    is_terminal,
    is_true,
    short_list,
)
from finetuning_operator.reconcile.dependencies import awaited, dependency, job_refs, made_adapter
from finetuning_operator.reconcile.gate import gate_condition, gate_message
from finetuning_operator.reconcile.labels import EARLIER_ATTEMPTS, count
from finetuning_operator.reconcile.lifecycle import (
    Common,
    Refusal,
    Writer,
    admit,
    clock_of,
    concerned_since,
    ended,
    soonest,
    time_left,
)
from finetuning_operator.reconcile.names import child_name
from finetuning_operator.reconcile.needs import (
    Need,
    Role,
    claim_mount,
    custom_inputs,
    dataset_input,
    dataset_need,
    input_mounts,
    model_input,
    need,
    own_needs,
    relocation_outcome,
    relocations,
    task_inputs,
    warnings,
)
from finetuning_operator.reconcile.plan import (
    ClaimMount,
    ImageRole,
    Observed,
    Plan,
    Settings,
    Step,
    StepPhase,
    Volume,
)
from finetuning_operator.reconcile.predictions import (
    idle_in_predict,
    predict_config,
    predictions_artifact,
    predictions_volume,
)
from finetuning_operator.reconcile.stages import Course, Outcome, StageRule, follow, step_outcome

WAIT, EVALUATE, PREDICT = "wait", "evaluate", "predict"
REPORT, PREDICTIONS = "report", "predictions"
"""Suffixes of the claims that results are written to."""
_REPORT_BYTES = 256 * 2**20
"""A report holds tables and samples: small, whatever the model."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A candidate with what it needs; ``adapter`` is known once its job has finished."""

    name: str
    model: Need
    tokenizer: Need | None
    adapter: ClaimRef | None = None
    adapter_digest: str | None = None

    @property
    def needs(self) -> tuple[Need, ...]:
        return (self.model,) if self.tokenizer is None else (self.model, self.tokenizer)


@dataclass(frozen=True, slots=True)
class _View:
    """One EvaluationJob and what is observed of it."""

    job: EvaluationJob
    observed: Observed
    settings: Settings
    now: datetime

    @property
    def candidates(self) -> tuple[_Candidate, ...]:
        """Every candidate that can be resolved by now."""
        return _candidates(self.job.spec, self.observed)

    @property
    def dataset(self) -> Need:
        return dataset_need(self.job.spec.dataset, self.job.spec.storage)

    @property
    def needs(self) -> tuple[Need, ...]:
        return evaluation_needs(self.job, observed=self.observed)

    @property
    def predicts(self) -> bool:
        return self.job.spec.mode is EvaluationMode.PREDICT

    @property
    def work(self) -> str:
        """The stage, and its one step, that works with the candidates."""
        return PREDICT if self.predicts else EVALUATE

    @property
    def output(self) -> ClaimRef:
        suffix = PREDICTIONS if self.predicts else REPORT
        return self.job.spec.output or ClaimRef(claim_name=child_name(self.job.metadata.name, suffix))

    @property
    def result(self) -> EvaluateResult | PredictResult | None:
        state = self.observed.steps.get(self.work)
        done = state is not None and state.phase is StepPhase.SUCCEEDED and state.last_words is not None
        result = state.last_words.result if done and state and state.last_words else None
        return result if isinstance(result, PredictResult if self.predicts else EvaluateResult) else None

    @property
    def evaluated(self) -> EvaluateResult | None:
        return self.result if isinstance(self.result, EvaluateResult) else None

    def path(self, place: ClaimRef) -> str:
        return join(self.settings.volumes_root, place.claim_name, place.path).rstrip("/")


def reconcile_evaluation(job: EvaluationJob, *, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Return what an EvaluationJob needs next; a finished one is left as it is."""
    old = job.status
    if is_terminal(old.conditions):
        # What belongs to a job is deleted with it and not before: the job copies the results.
        ttl = None if _is_stage(job) else job.spec.ttl_seconds_after_finished
        return ended(old, generation=job.metadata.generation, ttl=ttl, now=now)
    writer = Writer(job.metadata.generation, now)
    view = _View(job, observed, settings, now)
    admission = admit(job.spec, old, refusal=_refusal(view), writer=writer)
    if isinstance(admission, Common):
        return _plan(view, admission)
    course = follow(
        _rules(view),
        view,
        stages=old.stages,
        conditions=admission.conditions,
        generation=writer.generation,
        clock=clock_of(job.spec, since=admission.since, settings=settings, now=now),
    )
    return _plan(view, _common(view, course, writer=writer, since=admission.since), course)


def _is_stage(job: EvaluationJob) -> bool:
    """Return whether an EvaluationJob is a stage of a FineTuningJob, which tells what concerns both."""
    return any(owner.kind == FineTuningJob.__name__ for owner in job.metadata.owner_references)


def evaluation_needs(job: EvaluationJob, *, observed: Observed) -> tuple[Need, ...]:
    """Return everything that an EvaluationJob relocates, as far as its candidates are known by now."""
    of_candidates = (wanted for candidate in _candidates(job.spec, observed) for wanted in candidate.needs)
    metric = own_needs(job.spec, job.spec.storage) if job.spec.mode is EvaluationMode.EVALUATE else ()
    return (dataset_need(job.spec.dataset, job.spec.storage), *of_candidates, *metric)


def _rules(view: _View) -> tuple[StageRule[_View], ...]:
    wait = (StageRule(WAIT, _wait, ConditionType.RELOCATED, completes=False),) if job_refs(view.job) else ()
    return (
        *wait,
        StageRule("relocate", _relocate, ConditionType.RELOCATED),
        StageRule(view.work, _work, ConditionType.PREDICTED if view.predicts else ConditionType.EVALUATED),
    )


def _wait(view: _View) -> Outcome:
    state, observed = view.observed.steps.get(view.work), view.observed
    if state is not None and state.phase in {StepPhase.RUNNING, StepPhase.SUCCEEDED}:
        # What runs holds its claims, also those that go when it ends.
        observed = replace(observed, lost=frozenset())
    return awaited(job_refs(view.job), observed)


def _relocate(view: _View) -> Outcome:
    spec = view.job.spec
    children = relocations(
        view.needs,
        namespace=view.job.metadata.namespace,
        storage=spec.storage,
        backoff_limit=spec.backoff_limit,
    )
    return relocation_outcome(
        view.needs,
        view.observed,
        children,
        since=concerned_since(view.job.status, settings=view.settings, now=view.now),
        born=None if view.settings.local else view.job.metadata.creation_timestamp,
    )


def _work(view: _View) -> Outcome:
    dataset = dataset_input(view.job.spec.dataset, view.dataset, observed=view.observed, settings=view.settings)
    inputs = [(candidate, _model(view, candidate)) for candidate in view.candidates]
    ready = [(candidate, model) for candidate, model in inputs if model is not None]
    complete = all(wanted.artifact(view.observed) is not None for wanted in view.needs)
    if dataset is None or len(ready) != len(view.job.spec.candidates) or not complete:
        return Outcome(StageState.PENDING, Reason.WAITING, "waits for its inputs")
    spec = view.job.spec
    candidates = tuple(_candidate_input(view, *pair) for pair in ready)
    step = Step(
        name=view.work,
        image=ImageRole.SERVER if view.predicts else ImageRole.EVALUATOR,
        config=_config(view, dataset, candidates),
        mounts=_mounts(view),
        resources=spec.resources,
        pod=spec.pod,
        retries=spec.backoff_limit,
        priority_class=spec.priority_class_name,
        queue=spec.queue_name,
        earlier_attempts=_earlier_attempts(view.job),
    )
    state = view.observed.steps.get(view.work)
    running = Reason.PREDICTING if view.predicts else Reason.EVALUATING
    outcome = step_outcome(step, state, running=running, volumes=_volumes(view))
    if outcome.state is StageState.SUCCEEDED and view.result is None:
        message = f"the program ({view.work}) ended without telling its result; its log has the details"
        return Outcome(StageState.FAILED, Reason.INTERNAL, message, attempts=outcome.attempts)
    return outcome


def _earlier_attempts(job: EvaluationJob) -> int:
    """Return how often the work was started by an EvaluationJob whose place this one took."""
    return count(job.metadata.annotations.get(EARLIER_ATTEMPTS, ""))


def _config(
    view: _View, dataset: DatasetInput, candidates: tuple[CandidateInput, ...]
) -> EvaluateConfig | PredictConfig:
    spec, metadata = view.job.spec, view.job.metadata
    if view.predicts:
        return predict_config(view.job, candidates=candidates, dataset=dataset, output_path=view.path(view.output))
    return EvaluateConfig(
        job=JobIdentity(kind=view.job.kind, name=metadata.name, namespace=metadata.namespace, uid=metadata.uid),
        candidates=candidates,
        dataset=dataset,
        metrics=metrics_of(spec),
        gate=tuple(spec.gate),
        limit=spec.limit,
        custom=custom_inputs(spec, storage=spec.storage, observed=view.observed, settings=view.settings),
        tasks=task_inputs(spec, storage=spec.storage, observed=view.observed, settings=view.settings),
        max_length=spec.max_length,
        generation=spec.generation,
        bootstrap_samples=spec.bootstrap_samples,
        seed=spec.seed,
        output_path=view.path(view.output),
        cache_path=view.settings.scores_path,
    )


def _mounts(view: _View) -> tuple[ClaimMount, ...]:
    """Return every claim once: the output's writable, all others read-only."""
    output = claim_mount(view.output.claim_name, view.settings, read_only=False)
    inputs = input_mounts(view.needs, view.observed, view.settings)
    adapters = [
        claim_mount(candidate.adapter.claim_name, view.settings)
        for candidate in view.candidates
        if candidate.adapter is not None
    ]
    mounts = {mount.claim: mount for mount in (*inputs, *adapters)} | {output.claim: output}
    return tuple(mounts.values())


def _volumes(view: _View) -> tuple[Volume, ...]:
    if view.job.spec.output is not None:
        return ()
    if view.predicts:
        data = view.dataset.artifact(view.observed)
        size = data.size_bytes if data else 0
        return (predictions_volume(view.output.claim_name, view.job.spec, dataset_bytes=size),)
    spec = view.job.spec.storage
    volume = Volume(
        name=view.output.claim_name,
        spec=VolumeSpec(storage_class_name=spec.adapter.storage_class_name, access_modes=spec.adapter.access_modes),
        profile=spec.profile,
        size_bytes=_REPORT_BYTES,
    )
    return (volume,)


def _candidate_input(view: _View, candidate: _Candidate, model: ModelInput) -> CandidateInput:
    return CandidateInput(
        name=candidate.name,
        model=model,
        adapter_path=view.path(candidate.adapter) if candidate.adapter else None,
        adapter_digest=candidate.adapter_digest,
    )


def _model(view: _View, candidate: _Candidate) -> ModelInput | None:
    return model_input(candidate.model, candidate.tokenizer, observed=view.observed, settings=view.settings)


def _candidates(spec: EvaluationJobSpec, observed: Observed) -> tuple[_Candidate, ...]:
    resolved = (_resolve(candidate, storage=spec.storage, observed=observed) for candidate in spec.candidates)
    return tuple(candidate for candidate in resolved if candidate is not None)


def _resolve(candidate: CandidateSpec, *, storage: StorageSpec, observed: Observed) -> _Candidate | None:
    if candidate.model is not None:
        role = Role.REFERENCE if candidate.name == "reference" else Role.MODEL
        tokenizer = need(candidate.tokenizer, Role.TOKENIZER, storage) if candidate.tokenizer else None
        made = made_adapter(candidate.adapter, observed) if candidate.adapter else None
        return _Candidate(
            candidate.name,
            need(candidate.model, role, storage),
            tokenizer,
            adapter=candidate.adapter,
            adapter_digest=made.digest if made else None,
        )
    job = dependency(candidate.job_ref or "", observed).job
    adapter = job.status.artifacts.adapter if job else None
    if job is None or adapter is None:
        return None
    place = ClaimRef(claim_name=adapter.claim_name, path=adapter.path)
    tokenizer = need(job.spec.tokenizer, Role.TOKENIZER, storage) if job.spec.tokenizer else None
    if job.trains_whole_model:
        return _Candidate(candidate.name, need(tuned_model(place, adapter.digest), Role.MODEL, storage), tokenizer)
    return _Candidate(
        candidate.name,
        need(job.spec.model, Role.MODEL, storage),
        tokenizer,
        adapter=place,
        adapter_digest=adapter.digest,
    )


def metrics_of(options: EvaluationOptions) -> tuple[Metric, ...]:
    """Return the metrics that are asked for, each once."""
    return tuple(dict.fromkeys(metric for requested in options.metrics for metric in requested.metrics()))


def tuned_model(place: ClaimRef, digest: str) -> SourceRef:
    """Return the source of a fully tuned model on a claim; its digest tells it from an older one in the same place."""
    return SourceRef(source=f"pvc://{place.claim_name}/{place.path}", checksum=digest)


def _refusal(view: _View) -> Refusal | None:
    """Return why an evaluation is not accepted; what is forbidden later does not end one that was."""
    refs: list[tuple[str, SourceRef | None]] = [("spec.dataset", view.job.spec.dataset)]
    refs.extend(own_sources("spec", view.job.spec))
    for index, candidate in enumerate(view.job.spec.candidates):
        refs.append((f"spec.candidates[{index}].model", candidate.model))
        refs.append((f"spec.candidates[{index}].tokenizer", candidate.tokenizer))
    paths = refused_paths(refs, view.settings)
    amounts = view.job.spec.resources
    accepted = is_true(view.job.status.conditions, ConditionType.ACCEPTED)
    if paths is not None or accepted or came_with_a_job(view.job, amounts, view.observed):
        return paths
    asked = (("spec.resources", amounts),)
    bounds = view.settings.bounds
    return (
        refused_source(refs, view.settings.sources)
        or refused_code("spec.custom", view.job.spec.custom, bounds)
        or refused_amount(asked, bounds)
    )


def _common(view: _View, course: Course, *, writer: Writer, since: datetime) -> Common:
    if course.failed and course.active is not None:
        refusal = Refusal(course.active.reason, course.failure)
        return writer.failed(refusal, conditions=course.conditions, stages=course.stages, start=since)
    if course.active is not None:
        return Common(
            conditions=course.conditions,
            stages=course.stages,
            phase=_phase(course),
            start_time=since,
            completion_time=None,
            generation=writer.generation,
            progress=course.active.progress,
            reason=course.reason,
        )
    result = view.evaluated
    conditions = gate_condition(
        writer,
        course.conditions,
        verdict=result.verdict if result else None,
        message=gate_message(result.gates) if result else "",
    )
    return Common(
        conditions=writer.set(conditions, ConditionType.COMPLETE, holds=True, reason=Reason.SUCCEEDED),
        stages=course.stages,
        phase=JobPhase.COMPLETE,
        start_time=since,
        completion_time=writer.now,
        generation=writer.generation,
    )


def _phase(course: Course) -> JobPhase:
    phases = {WAIT: JobPhase.PENDING, "relocate": JobPhase.RELOCATING, PREDICT: JobPhase.PREDICTING}
    return phases.get(course.active_name, JobPhase.EVALUATING)


def _plan(view: _View, common: Common, course: Course | None = None) -> Plan:
    old = view.job.status
    status = old.model_copy(update={**common.fields(), **_findings(view, course)})
    events = events_between(old.conditions, status.conditions)
    if course is None or common.finished:
        return Plan(status=status, children=course.children if course else (), events=events)
    return Plan(
        status=status,
        steps=course.active.steps if course.active else (),
        volumes=course.volumes,
        children=course.children,
        events=events,
        requeue_after=soonest(course.wake, time_left(view.job.spec, common.start_time, view.now)),
    )


def _findings(view: _View, course: Course | None) -> dict[str, object]:
    """Return the fields of the status that only an EvaluationJob has."""
    result = view.result
    found: dict[str, object] = {}
    if course is not None:
        noted = (
            *view.job.status.warnings,
            *(() if _is_stage(view.job) else idle_warnings(view.job.spec, view.settings)),
            *(idle_in_predict(view.job.spec) if view.predicts else ()),
            *warnings(view.needs, view.observed),
            *(result.warnings if result else ()),
        )
        found["warnings"] = short_list(noted)
    if isinstance(result, PredictResult):
        found["predictions"] = predictions_artifact(view.output, result)
    elif result is not None:
        found |= {
            "evaluation": list(result.rows),
            "verdict": result.verdict,
            "gates": list(result.gates),
            "report": view.output,
        }
    return found
