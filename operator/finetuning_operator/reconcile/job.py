"""FineTuningJob: relocate, check on the CPU, train, evaluate, serve."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from posixpath import join
from typing import Any

from finetuning_api.base import (
    ClaimRef,
    Condition,
    ConditionStatus,
    ConditionType,
    ObjectMeta,
    Resource,
    ResourceRequirements,
    StageState,
)
from finetuning_api.evaluationjob import CandidateSpec, EvaluationJob, EvaluationJobSpec
from finetuning_api.finetuningjob import (
    AdapterArtifact,
    DatasetArtifact,
    EvaluationOptions,
    FineTuningJob,
    FineTuningJobSpec,
    JobArtifacts,
    JobPhase,
    MethodType,
    ModelArtifact,
    ServingSpec,
    ServingStatus,
)
from finetuning_api.inferenceserver import AdapterRef, CanarySpec, InferenceServer, InferenceServerSpec
from finetuning_api.metrics import DEFAULT_AGAINST, Verdict
from finetuning_api.reasons import LIFE_CYCLE_REASONS, Reason
from finetuning_api.runconfig import (
    CandidateInput,
    ChooseConfig,
    DatasetCounts,
    EvaluationInputs,
    JobIdentity,
    ModelInput,
    PreflightConfig,
    PreflightResult,
    ScriptInput,
    TrainConfig,
    TrainingInputs,
    TrainResult,
    TrialInput,
)
from finetuning_api.sources import SourceRef
from finetuning_api.trials import with_parameters
from finetuning_api.tuning import TrialStatus
from finetuning_operator.reconcile.accept import idle_warnings, refusal_of
from finetuning_operator.reconcile.compared import comparison_warnings, shares_inputs
from finetuning_operator.reconcile.conditions import (
    events_between,
    find_condition,
    headline,
    is_terminal,
    is_true,
    short_list,
)
from finetuning_operator.reconcile.dependencies import awaited, job_refs
from finetuning_operator.reconcile.evaluation import WAIT, metrics_of, tuned_model
from finetuning_operator.reconcile.gate import REASONS, gate_condition, gate_message
from finetuning_operator.reconcile.labels import EARLIER_ATTEMPTS
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
from finetuning_operator.reconcile.names import (
    ADAPTER_FOLDER,
    adapter_claim,
    evaluation_name,
    is_owned,
    owned_metadata,
)
from finetuning_operator.reconcile.needs import (
    Need,
    Role,
    artifact_path,
    claim_mount,
    custom_inputs,
    dataset_input,
    input_mounts,
    job_needs,
    model_input,
    provenance,
    relocation_outcome,
    relocations,
    task_inputs,
    warnings,
)
from finetuning_operator.reconcile.plan import ClaimMount, ImageRole, Observed, Plan, Settings, Step, StepPhase, Volume
from finetuning_operator.reconcile.sizes import adapter_bytes
from finetuning_operator.reconcile.stages import (
    WAITS_TO_START,
    Course,
    Outcome,
    StageRule,
    follow,
    is_running,
    remembered,
    sentences,
    step_outcome,
    success_told,
    unmade,
)
from finetuning_operator.reconcile.tuning import (
    TRIALS_FOLDER,
    best_trial,
    chosen_told,
    drawn_trials,
    followed,
    paused,
    trial_step,
    tuning_outcome,
    tuning_status,
)

RELOCATE, PREFLIGHT, TUNE, TRAIN, EVALUATE, SERVE = "relocate", "preflight", "tune", "train", "evaluate", "serve"
CHECKPOINT_FOLDER, CACHE_FOLDER, REPORT_FOLDER = "checkpoints", "cache", "evaluation"
TENSORBOARD_FOLDER = "tensorboard"
"""Folders on the adapter's claim, beside ADAPTER_FOLDER."""
_WAITS_FOR_INPUTS = Outcome(StageState.PENDING, Reason.WAITING, "waits for its inputs")
_CPU_RESOURCES = frozenset({"cpu", "memory", "ephemeral-storage"})


@dataclass(frozen=True, slots=True)
class _View:
    """One FineTuningJob and what is observed of it."""

    job: FineTuningJob
    observed: Observed
    settings: Settings
    now: datetime
    needs: tuple[Need, ...]

    @property
    def name(self) -> str:
        return self.job.metadata.name

    @property
    def claim(self) -> str:
        return adapter_claim(self.name)

    def need(self, role: Role) -> Need | None:
        return next((wanted for wanted in self.needs if wanted.role is role), None)

    @property
    def training_needs(self) -> tuple[Need, ...]:
        return tuple(wanted for wanted in self.needs if wanted.role not in {Role.REFERENCE, Role.METRIC, Role.TASK})

    @property
    def trained(self) -> bool:
        """Whether training ended well, now or in a past that is no longer observed."""
        return is_true(self.job.status.conditions, ConditionType.TRAINED)

    @property
    def evaluation(self) -> EvaluationJob | None:
        found = self.observed.resources.get(("EvaluationJob", evaluation_name(self.name)))
        return found if isinstance(found, EvaluationJob) and is_owned(found, self.job) else None

    @property
    def server(self) -> InferenceServer | None:
        found = self.observed.resources.get(("InferenceServer", self.name))
        return found if isinstance(found, InferenceServer) and is_owned(found, self.job) else None

    @property
    def verdict(self) -> Verdict | None:
        evaluation = self.evaluation
        found = evaluation.status.verdict if evaluation else None
        return found or self.job.status.verdict

    @property
    def trials(self) -> tuple[TrialStatus, ...]:
        """Every trial as it is known by now; none before they were drawn."""
        spec, told = self.job.spec.tuning, self.job.status.tuning
        drawn = self.result(PREFLIGHT)
        if told is None and spec is not None and isinstance(drawn, PreflightResult):
            return drawn_trials(spec, drawn.trials)
        known = told.trials if told else ()
        return tuple(followed(trial, self.observed.steps.get(trial_step(trial.number))) for trial in known)

    def result(self, step: str) -> object:
        state = self.observed.steps.get(step)
        done = state is not None and state.phase is StepPhase.SUCCEEDED
        return state.last_words.result if done and state and state.last_words else None

    def path(self, folder: str) -> str:
        return join(self.settings.volumes_root, self.claim, folder)


def reconcile_job(job: FineTuningJob, *, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Return what a FineTuningJob needs next; a finished one is left as it is, whatever became of its children."""
    old = job.status
    view = _View(job, observed, settings, now, job_needs(job.spec))
    if is_terminal(old.conditions):
        return _kept(view)
    writer = Writer(job.metadata.generation, now)
    admission = admit(job.spec, old, refusal=refusal_of(job, settings), writer=writer)
    if isinstance(admission, Common):
        return _stopped(view, admission)
    course = follow(
        _rules(view),
        view,
        stages=old.stages,
        conditions=admission.conditions,
        generation=writer.generation,
        clock=clock_of(job.spec, since=admission.since, settings=settings, now=now),
    )
    return _running(view, course, _common(view, course, writer=writer, since=admission.since))


def _kept(view: _View) -> Plan:
    """Return the plan of a job that has ended: nothing runs for it but the server that it keeps."""
    job, status = view.job, view.job.status
    served = job.spec.serving is not None and is_true(status.conditions, ConditionType.SERVING)
    if served and (serving := _serving_status(view)) != status.serving:
        status = status.model_copy(update={"serving": serving})
    children = (_inference_server(view),) if served else ()
    return ended(
        status,
        generation=job.metadata.generation,
        ttl=job.spec.ttl_seconds_after_finished,
        now=view.now,
        children=children,
    )


def _rules(view: _View) -> tuple[StageRule[_View], ...]:
    serve = (StageRule(SERVE, _serve, ConditionType.SERVING),) if view.job.spec.serving else ()
    wait = (StageRule(WAIT, _wait, ConditionType.RELOCATED, completes=False),) if job_refs(view.job) else ()
    several = (StageRule(TUNE, _tune, ConditionType.TRAINED, completes=False, single=False),)
    return (
        *wait,
        StageRule(RELOCATE, _relocate, ConditionType.RELOCATED),
        StageRule(PREFLIGHT, _preflight, ConditionType.TRAINED, completes=False),
        *(several if view.job.spec.tuning else ()),
        StageRule(TRAIN, _train, ConditionType.TRAINED),
        StageRule(EVALUATE, _evaluate, ConditionType.EVALUATED),
        *serve,
    )


def _wait(view: _View) -> Outcome:
    """Nothing is begun for a comparison that cannot be made.

    What was begun goes on, whatever becomes of the other jobs: the evaluation tells of it when its turn comes.
    """
    began = any(stage.name == WAIT and stage.state is StageState.SUCCEEDED for stage in view.job.status.stages)
    if began or view.trained:
        return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, percent=100)
    return awaited(job_refs(view.job), view.observed)


def _relocate(view: _View) -> Outcome:
    told = success_told(RELOCATE, view.job.status.stages)
    if view.trained:
        return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, told, percent=100, attempts=1)
    spec = view.job.spec
    children = relocations(
        view.needs, namespace=view.job.metadata.namespace, storage=spec.storage, backoff_limit=spec.backoff_limit
    )
    return relocation_outcome(
        view.needs,
        view.observed,
        children,
        since=concerned_since(view.job.status, settings=view.settings, now=view.now),
        born=None if view.settings.local else view.job.metadata.creation_timestamp,
        told=told,
    )


def _preflight(view: _View) -> Outcome:
    if view.trained:
        return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, percent=100, attempts=1)
    if (done := remembered(PREFLIGHT, stages=view.job.status.stages, observed=view.observed)) is not None:
        return done
    inputs = _training_inputs(view)
    if inputs is None:
        return _WAITS_FOR_INPUTS
    step = Step(
        name=PREFLIGHT,
        image=ImageRole.TRAINER,
        own_image=_script_image(view),
        config=PreflightConfig(
            **_fields(inputs),
            evaluation=_evaluation_inputs(view, inputs.model),
            tuning=view.job.spec.tuning,
            output_path=view.path(ADAPTER_FOLDER),
        ),
        mounts=_mounts(view, view.needs),
        resources=without_accelerators(view.job.spec.resources),
        pod=view.job.spec.pod,
        retries=view.job.spec.backoff_limit,
        priority_class=view.job.spec.priority_class_name,
        queue=view.job.spec.queue_name,
    )
    state = view.observed.steps.get(PREFLIGHT)
    return step_outcome(step, state, running=Reason.PREFLIGHT, volumes=(_volume(view),))


def _tune(view: _View) -> Outcome:
    tuning, inputs, trials = view.job.spec.tuning, _training_inputs(view), view.trials
    if tuning is None or view.trained:
        told = success_told(TUNE, view.job.status.stages)
        return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, told, percent=100, attempts=1)
    if not trials:
        return Outcome(StageState.FAILED, Reason.INTERNAL, "preflight ended without telling which trials there are")
    if inputs is None:
        return _WAITS_FOR_INPUTS
    return tuning_outcome(
        tuning,
        trials,
        states=view.observed.steps,
        step_of=lambda trial: _trial_step(view, inputs, trial),
        volumes=(_volume(view),),
    )


def _trial_step(view: _View, inputs: TrainingInputs, trial: TrialStatus) -> Step:
    """Return the step of one trial: a training with numbers of its own, in a folder of its own."""
    tuning, name = view.job.spec.tuning, str(trial.number)
    method, training = with_parameters((inputs.method, inputs.training), trial.parameters)
    config = TrainConfig(
        **_fields(inputs.model_copy(update={"method": method, "training": training})),
        output_path=view.path(join(TRIALS_FOLDER, name, ADAPTER_FOLDER)),
        checkpoint_path=view.path(join(TRIALS_FOLDER, name, CHECKPOINT_FOLDER)),
        tensorboard_path=view.path(join(TENSORBOARD_FOLDER, trial_step(trial.number))),
        trial=TrialInput(
            number=trial.number, folder=view.path(TRIALS_FOLDER), halving=tuning.halving if tuning else None
        ),
    )
    step = _training_step(view, trial_step(trial.number), config)
    return replace(step, earlier_attempts=trial.attempts)


def _train(view: _View) -> Outcome:
    if view.trained:
        told = success_told(TRAIN, view.job.status.stages)
        return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, told, percent=100, attempts=1, volumes=(_volume(view),))
    step = _choosing_step(view) if view.job.spec.tuning else _only_training_step(view)
    if step is None:
        return _WAITS_FOR_INPUTS
    state = view.observed.steps.get(TRAIN)
    outcome = step_outcome(step, state, running=Reason.TRAINING, volumes=(_volume(view),))
    if outcome.state is not StageState.SUCCEEDED:
        return outcome
    result = view.result(TRAIN)
    if not isinstance(result, TrainResult):
        message = "training ended without telling its result; its log has the details"
        return Outcome(StageState.FAILED, Reason.INTERNAL, message, attempts=outcome.attempts)
    return replace(outcome, message=chosen_told(view.trials) or _course(outcome.attempts, result))


def _only_training_step(view: _View) -> Step | None:
    """Return the step of a job that trains once; None when an input is not there."""
    inputs = _training_inputs(view)
    if inputs is None:
        return None
    config = TrainConfig(
        **_fields(inputs),
        output_path=view.path(ADAPTER_FOLDER),
        checkpoint_path=view.path(CHECKPOINT_FOLDER),
        tensorboard_path=view.path(TENSORBOARD_FOLDER),
    )
    return _training_step(view, TRAIN, config)


def _training_step(view: _View, name: str, config: TrainConfig) -> Step:
    spec = view.job.spec
    return Step(
        name=name,
        image=ImageRole.TRAINER,
        own_image=_script_image(view),
        config=config,
        mounts=_mounts(view, view.training_needs),
        resources=spec.resources,
        pod=spec.pod,
        workers=config.parallelism.workers,
        processes_per_worker=config.parallelism.processes_per_worker,
        retries=spec.backoff_limit,
        priority_class=spec.priority_class_name,
        queue=spec.queue_name,
    )


def _choosing_step(view: _View) -> Step | None:
    """Return the step that makes the best trial's adapter that of the job; None where no trial has one."""
    spec, best = view.job.spec, best_trial(view.trials)
    if best is None or best.digest is None:
        return None
    return Step(
        name=TRAIN,
        image=ImageRole.TRAINER,
        config=ChooseConfig(
            job=_identity(view),
            folder=view.path(TRIALS_FOLDER),
            number=best.number,
            digest=best.digest,
            output_path=view.path(ADAPTER_FOLDER),
            checkpoint_path=view.path(CHECKPOINT_FOLDER),
        ),
        mounts=_mounts(view, ()),
        resources=without_accelerators(spec.resources),
        pod=spec.pod,
        retries=spec.backoff_limit,
        priority_class=spec.priority_class_name,
        queue=spec.queue_name,
    )


def _course(attempts: int, result: TrainResult) -> str:
    return "; ".join(filter(None, (_interruptions(attempts, result), _damages(result), _choice(result))))


def _damages(result: TrainResult) -> str:
    """Return which checkpoints a training could not go on from; nothing where all were intact."""
    steps = result.damaged_checkpoints
    if not steps:
        return ""
    numbers = f"{', '.join(map(str, steps[:-1]))} and {steps[-1]}" if len(steps) > 1 else str(steps[0])
    were = "checkpoints of steps {} were" if len(steps) > 1 else "the checkpoint of step {} was"
    return f"{were.format(numbers)} damaged and passed over: look at the adapter's volume"


def _choice(result: TrainResult) -> str:
    """Return which weights early stopping chose; nothing where it was not asked for."""
    if result.best_step is None:
        return ""
    end = "stopped early at" if result.stopped_early else "trained to"
    return f"{end} step {result.steps}, kept step {result.best_step} with the lowest held-out loss"


def _interruptions(attempts: int, result: TrainResult) -> str:
    """Return how often a training that ended well was started again; nothing where it never was.

    The cluster counts what failed, the training what it saved since: the pod of a drained node leaves nothing behind by
    which it could be counted, and an attempt that was killed at once has saved nothing.
    """
    resumed_from = result.resumed_from_step
    if resumed_from is None:
        return f"started {attempts} times, the last time from the beginning" if attempts > 1 else ""
    again = max(attempts - 1, result.resumptions)
    return f"resumed {again} time{'' if again == 1 else 's'}, the last time from step {resumed_from}"


def _evaluate(view: _View) -> Outcome:
    if not view.job.spec.evaluation.enabled:
        return Outcome(StageState.SKIPPED, Reason.NOT_REQUESTED, "evaluation.enabled is false")
    if is_true(view.job.status.conditions, ConditionType.EVALUATED):
        return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, percent=100, attempts=1)
    child, wanted = view.evaluation, _evaluation_job(view, suspend=False)
    if child is None:
        return unmade(wanted, view.observed)
    failed = find_condition(child.status.conditions, ConditionType.FAILED)
    if failed is not None and is_true([failed], ConditionType.FAILED):
        return Outcome(StageState.FAILED, failed.reason, failed.message, attempts=1, children=(wanted,))
    if is_true(child.status.conditions, ConditionType.COMPLETE):
        return Outcome(StageState.SUCCEEDED, Reason.SUCCEEDED, percent=100, attempts=1, children=(wanted,))
    return _evaluating(child, wanted)


def _evaluating(child: EvaluationJob, wanted: EvaluationJob) -> Outcome:
    """Return the stage as its EvaluationJob tells it; what hinders the child is told of the stage."""
    progress = child.status.progress
    ended = {StageState.SUCCEEDED, StageState.SKIPPED}
    active = next((stage for stage in child.status.stages if stage.state not in ended), None)
    hindered = (each.reason for each in child.status.conditions if each.reason not in LIFE_CYCLE_REASONS)
    runs = is_running(child.status)
    return Outcome(
        StageState.RUNNING if runs else StageState.PENDING,
        next(hindered, Reason.EVALUATING if runs else Reason.PENDING),
        # A child that has told nothing yet is as one that is not there: to tell the difference would be a write.
        WAITS_TO_START if not child.status.stages else active.message if active else "",
        percent=progress.percent if progress and active and active.name == EVALUATE else 0,
        attempts=next((stage.attempts for stage in child.status.stages if stage.name == EVALUATE), 0),
        progress=progress,
        children=(wanted,),
    )


def _serve(view: _View) -> Outcome:
    serving = view.job.spec.serving
    if serving is None or view.settings.local:
        message = f"a run serves nothing; serve the result here with: finetune serve {view.name}"
        return Outcome(StageState.SKIPPED, Reason.NOT_REQUESTED, message)
    verdict = view.verdict
    if serving.after_gate and verdict is not None and verdict is not Verdict.PASS:
        return Outcome(StageState.SKIPPED, REASONS[verdict], "the gate did not pass and serving.afterGate is true")
    wanted = _inference_server(view)
    return unmade(wanted, view.observed) if view.server is None else _serving(view.server, wanted)


def _serving(child: InferenceServer, wanted: InferenceServer) -> Outcome:
    """Return the stage as its InferenceServer tells it. Only a refusal ends it: everything else can be mended."""
    conditions = child.status.conditions
    accepted, ready = (find_condition(conditions, each) for each in (ConditionType.ACCEPTED, ConditionType.READY))
    if accepted is not None and accepted.status is ConditionStatus.FALSE:
        return Outcome(StageState.FAILED, accepted.reason, accepted.message, attempts=1, children=(wanted,))
    if wanted.spec.replicas == 0 or is_true(conditions, ConditionType.READY):
        return Outcome(StageState.SUCCEEDED, Reason.SERVING, percent=100, attempts=1, children=(wanted,))
    return Outcome(
        StageState.RUNNING if child.status.ready_replicas else StageState.PENDING,
        ready.reason if ready else Reason.PENDING,
        ready.message if ready else "waits for the server",
        attempts=1,
        children=(wanted,),
    )


def _training_inputs(view: _View) -> TrainingInputs | None:
    """Return what preflight and training share; None when an input is not there."""
    spec = view.job.spec
    data, base = view.need(Role.DATASET), view.need(Role.MODEL)
    if data is None or base is None:
        return None
    model = model_input(base, view.need(Role.TOKENIZER), observed=view.observed, settings=view.settings)
    dataset = dataset_input(spec.dataset, data, observed=view.observed, settings=view.settings)
    script = _script(view)
    if model is None or dataset is None or (spec.script is not None and script is None):
        return None
    return TrainingInputs(
        job=_identity(view),
        model=model,
        dataset=dataset,
        method=spec.method,
        training=spec.training,
        # One machine is one worker: the result is the same, however many share the work.
        parallelism=spec.parallelism.model_copy(update={"workers": 1}) if view.settings.local else spec.parallelism,
        script=script,
        cache_path=view.path(CACHE_FOLDER),
    )


def _identity(view: _View) -> JobIdentity:
    metadata = view.job.metadata
    return JobIdentity(kind=view.job.kind, name=view.name, namespace=metadata.namespace, uid=metadata.uid)


def _script(view: _View) -> ScriptInput | None:
    """Return the user's own program; None where there is none, or not yet."""
    spec, wanted = view.job.spec.script, view.need(Role.SCRIPT)
    artifact = wanted.artifact(view.observed) if wanted else None
    if spec is None or wanted is None or artifact is None:
        return None
    return ScriptInput(
        path=artifact_path(artifact, view.settings),
        command=tuple(spec.command),
        provenance=provenance(wanted, artifact),
    )


def _script_image(view: _View) -> str | None:
    """Return the image that both preflight and training run in; None is the installation's own."""
    return view.job.spec.script.image if view.job.spec.script else None


def _fields(inputs: TrainingInputs) -> dict[str, Any]:
    """Return what two configurations share, for both to be made of the same."""
    return {name: getattr(inputs, name) for name in TrainingInputs.model_fields}


def _evaluation_inputs(view: _View, base: ModelInput) -> EvaluationInputs | None:
    """Return what will be evaluated; None without an evaluation. What is tuned has the tokenizer of its base model.

    Results of other jobs are among it where they read what this job reads; others are not relocated yet.
    """
    options, reference = view.job.spec.evaluation, view.need(Role.REFERENCE)
    if not options.enabled:
        return None
    other = model_input(reference, None, observed=view.observed, settings=view.settings) if reference else None
    alike = {name: base for name in options.job_refs if shares_inputs(view.job, name, view.observed)}
    models = {"base": base, "tuned": base} | ({"reference": other} if other else {}) | alike
    return EvaluationInputs(
        candidates=tuple(CandidateInput(name=name, model=model) for name, model in models.items()),
        metrics=metrics_of(options),
        gate=tuple(rule for rule in options.gate if (rule.against or DEFAULT_AGAINST) in models),
        limit=options.limit,
        custom=custom_inputs(options, storage=view.job.spec.storage, observed=view.observed, settings=view.settings),
        tasks=task_inputs(options, storage=view.job.spec.storage, observed=view.observed, settings=view.settings),
    )


def _mounts(view: _View, needs: Sequence[Need]) -> tuple[ClaimMount, ...]:
    inputs = input_mounts(needs, view.observed, view.settings)
    return (*inputs, claim_mount(view.claim, view.settings, read_only=False))


def without_accelerators(resources: ResourceRequirements) -> ResourceRequirements:
    """Preflight runs on the CPU: it must not wait for, nor hold, an accelerator."""
    return ResourceRequirements(
        requests={name: amount for name, amount in resources.requests.items() if name in _CPU_RESOURCES},
        limits={name: amount for name, amount in resources.limits.items() if name in _CPU_RESOURCES},
    )


def _volume(view: _View) -> Volume:
    spec = view.job.spec
    data, base = view.need(Role.DATASET), view.need(Role.MODEL)
    found = [wanted.artifact(view.observed) if wanted else None for wanted in (data, base)]
    sizes = [artifact.size_bytes if artifact else 0 for artifact in found]
    planned = adapter_bytes(spec, dataset=sizes[0], model=sizes[1])
    return Volume(
        name=view.claim,
        spec=spec.storage.adapter,
        profile=spec.storage.profile,
        size_bytes=planned if all(found) else None,
        retention=spec.storage.retention,
    )


def _evaluation_job(view: _View, *, suspend: bool) -> EvaluationJob:
    spec, options = view.job.spec, view.job.spec.evaluation
    candidates = [
        CandidateSpec(name="base", model=spec.model, tokenizer=spec.tokenizer),
        _tuned_candidate(view),
    ]
    if options.reference is not None:
        candidates.append(CandidateSpec(name="reference", model=options.reference))
    candidates += [CandidateSpec(name=name, job_ref=name) for name in options.job_refs]
    return EvaluationJob(
        metadata=_evaluation_metadata(view),
        spec=EvaluationJobSpec(
            **{name: getattr(options, name) for name in EvaluationOptions.model_fields},
            candidates=candidates,
            dataset=spec.dataset,
            output=ClaimRef(claim_name=view.claim, path=REPORT_FOLDER),
            resources=spec.resources,
            pod=spec.pod,
            storage=spec.storage,
            suspend=suspend,
            pending_deadline_seconds=spec.pending_deadline_seconds,
            backoff_limit=spec.backoff_limit,
            priority_class_name=spec.priority_class_name,
            queue_name=spec.queue_name,
        ),
    )


def _evaluation_metadata(view: _View) -> ObjectMeta:
    """Return the head of the EvaluationJob; of one that takes the place of another, how often that was started."""
    head = owned_metadata(view.job, evaluation_name(view.name))
    earlier = next((stage.attempts for stage in view.job.status.stages if stage.name == EVALUATE), 0)
    if view.evaluation is not None or not earlier:
        return head
    return head.model_copy(update={"annotations": {EARLIER_ATTEMPTS: str(earlier)}})


def _tuned_candidate(view: _View) -> CandidateSpec:
    spec = view.job.spec
    place = ClaimRef(claim_name=view.claim, path=ADAPTER_FOLDER)
    if spec.method.type is not MethodType.FULL:
        return CandidateSpec(name="tuned", model=spec.model, tokenizer=spec.tokenizer, adapter=place)
    return CandidateSpec(name="tuned", model=_full_model(view), tokenizer=spec.tokenizer)


def _full_model(view: _View) -> SourceRef:
    adapter = _adapter(view)
    return tuned_model(ClaimRef(claim_name=view.claim, path=ADAPTER_FOLDER), adapter.digest if adapter else "")


def _inference_server(view: _View) -> InferenceServer:
    """Return the server of the result. Of one that serves early nothing changes when the adapter appears."""
    spec, serving = view.job.spec, view.job.spec.serving or ServingSpec()
    full = spec.method.type is MethodType.FULL
    place = ClaimRef(claim_name=view.claim, path=ADAPTER_FOLDER)
    return InferenceServer(
        metadata=owned_metadata(view.job, view.name),
        spec=InferenceServerSpec(
            model=_full_model(view) if full else spec.model,
            tokenizer=spec.tokenizer,
            adapters=[] if full else [AdapterRef(name=view.name, claim=place, awaited=not serving.after_gate)],
            canary=_canary(view),
            replicas=_replicas(view),
            auth_secret_ref=serving.auth_secret_ref,
            expose=serving.expose,
            resources=serving.resources or spec.resources,
            pod=spec.pod,
            storage=spec.storage,
            priority_class_name=spec.priority_class_name,
        ),
    )


def _canary(view: _View) -> CanarySpec | None:
    asked = view.job.spec.serving.canary if view.job.spec.serving else None
    return CanarySpec(name=asked.name, weight=asked.weight, adapter=view.name) if asked else None


def _early_server(view: _View, course: Course) -> InferenceServer | None:
    """Return the server of a job that does not wait for its gate, as soon as its model is there.

    None once the stages themselves ask for it, and where the result is a whole model, which is there only at the end.
    """
    serving = view.job.spec.serving
    late = serving is None or serving.after_gate or view.job.spec.method.type is MethodType.FULL
    asked = any(isinstance(child, InferenceServer) for child in course.children)
    if late or asked or view.settings.local or not is_true(course.conditions, ConditionType.RELOCATED):
        return None
    return _inference_server(view)


def _idle_server(view: _View, conditions: Sequence[Condition]) -> InferenceServer | None:
    """Return the early server of a job that failed before it had anything to serve, as it is to be: without pods."""
    if view.server is None or is_true(conditions, ConditionType.TRAINED):
        return None
    wanted = _inference_server(view)
    return wanted.model_copy(update={"spec": wanted.spec.model_copy(update={"replicas": 0})})


def _replicas(view: _View) -> int:
    """Return the replicas of the server: what the job asks for, until somebody else, like an autoscaler, scaled it."""
    asked, server = view.job.spec.serving, view.server
    wanted = asked.replicas if asked else 0
    told = view.job.status.serving
    return server.spec.replicas if server and told and told.replicas == wanted else wanted


def _serving_status(view: _View) -> ServingStatus | None:
    """Return where the result is served. The number that was asked for counts as told once the server has it."""
    server, old = view.server, view.job.status.serving
    if server is None or view.job.spec.serving is None:
        return old
    wanted = view.job.spec.serving.replicas
    told = wanted if server.spec.replicas == wanted else old.replicas if old else None
    return ServingStatus(url=server.status.url or (old.url if old else ""), replicas=told)


def _common(view: _View, course: Course, *, writer: Writer, since: datetime) -> Common:
    conditions = course.conditions
    evaluation = view.evaluation
    if evaluation is not None and is_true(conditions, ConditionType.EVALUATED):
        message = gate_message(evaluation.status.gates)
        conditions = gate_condition(writer, conditions, verdict=evaluation.status.verdict, message=message)
    conditions = _early_serving(view, course, conditions, writer=writer)
    if course.failed and course.active is not None:
        refusal = Refusal(course.active.reason, course.failure)
        return writer.failed(refusal, conditions=conditions, stages=course.stages, start=since)
    done = course.active is None
    if done:
        conditions = writer.set(conditions, ConditionType.COMPLETE, holds=True, reason=Reason.SUCCEEDED)
    return Common(
        conditions=conditions,
        stages=course.stages,
        phase=_phase(course),
        start_time=since,
        completion_time=writer.now if done else None,
        generation=writer.generation,
        progress=course.active.progress if course.active else None,
        reason=course.reason,
    )


def _early_serving(
    view: _View, course: Course, conditions: tuple[Condition, ...], *, writer: Writer
) -> tuple[Condition, ...]:
    """Return the conditions with what is told of a server that runs beside the stages."""
    wanted = _early_server(view, course)
    if wanted is None:
        return conditions
    if course.failed and not is_true(conditions, ConditionType.TRAINED):
        message = "the job failed before it had anything to serve"
        return writer.set(conditions, ConditionType.SERVING, holds=False, reason=Reason.STOPPING, message=message)
    told = unmade(wanted, view.observed) if view.server is None else _serving(view.server, wanted)
    answers = told.state is StageState.SUCCEEDED
    return writer.set(
        conditions, ConditionType.SERVING, holds=answers, reason=told.reason, message=headline(told.message)
    )


def _phase(course: Course) -> JobPhase:
    if course.active is None:
        return JobPhase.COMPLETE
    phases = {
        WAIT: JobPhase.PENDING,
        RELOCATE: JobPhase.RELOCATING,
        PREFLIGHT: JobPhase.PREPARING,
        TUNE: JobPhase.TRAINING,
        TRAIN: JobPhase.TRAINING,
        EVALUATE: JobPhase.EVALUATING,
    }
    return phases.get(course.active_name, JobPhase.SERVING)


def _running(view: _View, course: Course, common: Common) -> Plan:
    old = view.job.status
    tuning = tuning_status(view.trials)
    told = {"tuning": paused(tuning) if common.finished else tuning}
    status = old.model_copy(update={**common.fields(), **_findings(view), **told})
    events = events_between(old.conditions, status.conditions)
    server = _idle_server(view, common.conditions) if course.failed else _early_server(view, course)
    children = (*course.children, server) if server else course.children
    if common.finished:
        return Plan(status=status, children=children, volumes=course.volumes, events=events)
    return Plan(
        status=status,
        steps=course.active.steps if course.active else (),
        volumes=course.volumes,
        children=children,
        events=events,
        requeue_after=soonest(course.wake, time_left(view.job.spec, common.start_time, view.now)),
    )


def _stopped(view: _View, common: Common) -> Plan:
    """Return the plan of a job that runs nothing; an evaluation under way is stopped with it."""
    old = view.job.status
    status = old.model_copy(update={**common.fields(), "tuning": paused(old.tuning)})
    stopped = view.evaluation is not None and not is_terminal(view.evaluation.status.conditions)
    children: tuple[Resource, ...] = (_evaluation_job(view, suspend=True),) if stopped else ()
    if common.finished and (server := _idle_server(view, common.conditions)) is not None:
        children = (*children, server)
    return Plan(status=status, children=children, events=events_between(old.conditions, status.conditions))


def _findings(view: _View) -> dict[str, object]:
    """Return the fields of the status that only a FineTuningJob has."""
    evaluation, preflight = view.evaluation, view.result(PREFLIGHT)
    noted = (
        *view.job.status.warnings,
        *idle_warnings(view.job.spec, view.settings),
        *_flattery(view.job.spec),
        *warnings(view.needs, view.observed),
        *comparison_warnings(view.job, view.observed),
        *(preflight.warnings if isinstance(preflight, PreflightResult) else ()),
        *(evaluation.status.warnings if evaluation else ()),
    )
    found: dict[str, object] = {"artifacts": _artifacts(view), "warnings": short_list(noted)}
    if evaluation is not None and evaluation.status.evaluation:
        found |= {"evaluation": list(evaluation.status.evaluation), "verdict": evaluation.status.verdict}
    if (serving := _serving_status(view)) is not None:
        found["serving"] = serving
    return found


def _flattery(spec: FineTuningJobSpec) -> tuple[str, ...]:
    """Return what to know of scores on rows that decided already."""
    if spec.tuning is None or not spec.evaluation.enabled:
        return ()
    told = "the held-out rows chose the best trial and are evaluated as well: its scores are a little too good"
    return (sentences(told, "To have them exact, evaluate the job on other rows (an EvaluationJob with jobRef)"),)


def _artifacts(view: _View) -> JobArtifacts:
    old = view.job.status.artifacts
    return JobArtifacts(adapter=_adapter(view), model=_model(view) or old.model, dataset=_dataset(view) or old.dataset)


def _adapter(view: _View) -> AdapterArtifact | None:
    trained = view.result(TRAIN)
    if not isinstance(trained, TrainResult):
        return view.job.status.artifacts.adapter
    return AdapterArtifact(
        claim_name=view.claim, path=ADAPTER_FOLDER, digest=trained.digest, size_bytes=trained.size_bytes
    )


def _model(view: _View) -> ModelArtifact | None:
    wanted = view.need(Role.MODEL)
    artifact = wanted.artifact(view.observed) if wanted else None
    if wanted is None or artifact is None:
        return None
    return ModelArtifact(relocation=wanted.name, resolved_revision=artifact.resolved_revision, digest=artifact.digest)


def _dataset(view: _View) -> DatasetArtifact | None:
    wanted = view.need(Role.DATASET)
    artifact = wanted.artifact(view.observed) if wanted else None
    if wanted is None or artifact is None:
        return None
    counts = _counts(view)
    old = view.job.status.artifacts.dataset
    if counts is None:
        return old or DatasetArtifact(relocation=wanted.name, digest=artifact.digest)
    return DatasetArtifact(
        relocation=wanted.name,
        rows=counts.rows,
        train_rows=counts.train_rows,
        test_rows=counts.test_rows,
        columns=[column[:256] for column in counts.columns[:256]],
        digest=artifact.digest,
    )


def _counts(view: _View) -> DatasetCounts | None:
    for result in (view.result(TRAIN), view.result(PREFLIGHT)):
        if isinstance(result, TrainResult | PreflightResult):
            return result.dataset
    return None
