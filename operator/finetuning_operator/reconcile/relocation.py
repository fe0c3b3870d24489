"""Relocation: measure, make a claim, bring the bytes, convert what needs it; or verify a user's own claim in place."""

import math
from dataclasses import dataclass
from datetime import datetime
from posixpath import join

from finetuning_api.base import ClaimRef, ConditionStatus, ConditionType, StageState
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation, RelocationArtifact, RelocationPhase, RelocationStatus
from finetuning_api.runconfig import (
    ArtifactResult,
    ConvertConfig,
    JobIdentity,
    MeasureConfig,
    MeasureResult,
    Provenance,
    RelocateConfig,
    VerifyConfig,
)
from finetuning_api.sources import Conversion, Scheme, SourceRef
from finetuning_operator.reconcile.accept import refused_paths
from finetuning_operator.reconcile.allowed import refused_source
from finetuning_operator.reconcile.conditions import (
    condition,
    events_between,
    find_condition,
    headline,
    is_true,
    set_condition,
    shorten,
)
from finetuning_operator.reconcile.lifecycle import Refusal, seen
from finetuning_operator.reconcile.needs import claim_mount, is_pinned, made_for_jobs
from finetuning_operator.reconcile.plan import (
    ClaimMount,
    ConfigMapMount,
    ImageRole,
    Observed,
    Plan,
    Settings,
    Step,
    StepPhase,
    Volume,
)
from finetuning_operator.reconcile.stages import (
    Clock,
    Course,
    Outcome,
    StageRule,
    follow,
    remembered,
    seconds_left,
    step_outcome,
)

MEASURE, RELOCATE, CONVERT, VERIFY = "measure", "relocate", "convert", "verify"
LOCAL_PIN = "sha256-"
"""How the revision of a local folder begins: the digest of everything in it, put there by the command."""
_RETRY_SECONDS = 10
"""A failure is kept this long while a job waits for the bytes."""
_FAILURE_SECONDS = 600
"""A failure is kept this long, to be looked at, where no job waits."""
_OFFLINE_SCHEMES = frozenset({Scheme.FILE, Scheme.CONFIGMAP, Scheme.PVC})
_PHASES = {
    MEASURE: RelocationPhase.MEASURING,
    RELOCATE: RelocationPhase.RELOCATING,
    CONVERT: RelocationPhase.CONVERTING,
    VERIFY: RelocationPhase.RELOCATING,
}


@dataclass(frozen=True, slots=True)
class _View:
    """One Relocation, what is observed of it, and what follows from its spec alone."""

    relocation: Relocation
    observed: Observed
    settings: Settings

    @property
    def ref(self) -> SourceRef:
        """What the relocator is told: with the mirror of the installation, without the pin of a local folder.

        It cannot check that pin, because it takes a part of the folder.
        """
        spec = self.relocation.spec
        plain = SourceRef.model_validate(spec.model_dump(include=set(SourceRef.model_fields)))
        if (plain.revision or "").startswith(LOCAL_PIN) and self.scheme is Scheme.FILE:
            return plain.model_copy(update={"revision": None})
        mirror = self.settings.sources.endpoints.of(self.scheme)
        # The bytes are the same by name: a mirror is no part of their identity.
        return plain.model_copy(update={"endpoint": mirror}) if mirror and plain.endpoint is None else plain

    @property
    def scheme(self) -> Scheme:
        return self.relocation.spec.parsed.scheme

    @property
    def converts(self) -> bool:
        return self.relocation.spec.conversion is not Conversion.NONE

    @property
    def in_place(self) -> bool:
        """A user's own claim is used where it is; only what must be converted is copied."""
        return self.scheme is Scheme.PVC and not self.converts

    @property
    def job(self) -> JobIdentity:
        metadata = self.relocation.metadata
        return JobIdentity(
            kind=self.relocation.kind, name=metadata.name, namespace=metadata.namespace, uid=metadata.uid
        )

    @property
    def claim(self) -> str:
        return self.relocation.metadata.name

    @property
    def user_folder(self) -> ClaimRef:
        """Where a pvc:// source lies: the claim is the first part of its location."""
        parsed = self.relocation.spec.parsed
        claim, _, folder = parsed.location.partition("/")
        return ClaimRef(claim_name=claim, path=join(folder, parsed.member) if parsed.member else folder)

    @property
    def measured(self) -> MeasureResult | None:
        result = _result(self.observed, MEASURE)
        return result if isinstance(result, MeasureResult) else None

    @property
    def revision(self) -> str | None:
        """The revision that was measured, now or earlier, or that an artifact which is repaired was made of."""
        if self.measured is not None:
            return self.measured.resolved_revision
        status = self.relocation.status
        return status.artifact.resolved_revision if status.artifact else status.resolved_revision

    @property
    def measured_bytes(self) -> int | None:
        """What the source announced, now or earlier."""
        return self.measured.size_bytes if self.measured else self.relocation.status.measured_bytes

    def path(self, folder: str) -> str:
        return join(self.settings.volumes_root, self.claim, folder)


def reconcile_relocation(relocation: Relocation, *, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Return what a Relocation needs next; one that is Ready or Failed runs nothing, and is kept for its time."""
    old = relocation.status
    if is_true(old.conditions, ConditionType.FAILED):
        return _kept_failure(relocation, observed, now)
    if is_true(old.conditions, ConditionType.READY):
        claim = old.artifact.claim.claim_name if old.artifact else ""
        return _lost(relocation, claim, now) if claim in observed.lost else _kept(relocation, observed, now)
    view = _View(relocation, observed, settings)
    named = (("spec", relocation.spec),)
    refused = refused_paths(named, settings) or refused_source(named, settings.sources)
    if refused is not None:
        return _refused(view, refused, now)
    course = follow(
        _rules(view),
        view,
        stages=old.stages,
        conditions=old.conditions,
        generation=relocation.metadata.generation,
        clock=Clock(now, stalled_after=settings.stalled_after_seconds),
    )
    artifact = None if course.active else _artifact(view)
    status = _status(view, course, artifact=artifact, now=now)
    return Plan(
        status=status,
        steps=course.active.steps if course.active else (),
        volumes=course.volumes,
        events=events_between(old.conditions, status.conditions),
        requeue_after=course.wake,
    )


def _kept(relocation: Relocation, observed: Observed, now: datetime) -> Plan:
    """Return the plan of an artifact: its time runs from when the last object that uses it has ended."""
    status = seen(relocation.status, relocation.metadata.generation)
    ttl = relocation.spec.ttl_seconds_after_unused
    if ttl is None:
        return Plan(status=status)
    unused_since = None if observed.users else status.last_used_time or now
    if unused_since != status.last_used_time:
        status = status.model_copy(update={"last_used_time": unused_since})
    left = seconds_left(ttl, unused_since, now)
    return Plan(status=status, expired=left == 0, requeue_after=left or None)


def _lost(relocation: Relocation, claim: str, now: datetime) -> Plan:
    """Return the plan of an artifact whose claim somebody deleted: whoever needs it makes a new object for it.

    One that a user made stays, and tells what happened.
    """
    old = relocation.status
    if made_for_jobs(relocation):
        return Plan(status=old, expired=True)
    message = f"claim {claim} is gone, and what was brought with it; delete this Relocation and create it again"
    conditions = tuple(old.conditions)
    for kind, holds in ((ConditionType.READY, False), (ConditionType.FAILED, True)):
        told = condition(
            kind,
            holds=holds,
            reason=Reason.VOLUME_UNAVAILABLE,
            message=message,
            generation=relocation.metadata.generation,
            now=now,
        )
        conditions = set_condition(conditions, told)
    failed = {"phase": RelocationPhase.FAILED, "reason": Reason.VOLUME_UNAVAILABLE, "conditions": list(conditions)}
    status = old.model_copy(update=failed)
    return Plan(status=status, events=events_between(old.conditions, conditions))


def _kept_failure(relocation: Relocation, observed: Observed, now: datetime) -> Plan:
    """Return the plan of a failure. What was made for jobs makes room for another try; a user's own object stays.

    Jobs that waited for it fail with it at once, so that a job which is left came later, and waits for the next try.
    Servers never end: they wait for it as long as a failure is kept anyway.
    """
    if not made_for_jobs(relocation):
        return _kept(relocation, observed, now)
    failed = find_condition(relocation.status.conditions, ConditionType.FAILED)
    since = failed.last_transition_time if failed else now
    waiting = any(not user.startswith("InferenceServer/") for user in observed.users)
    left = seconds_left(_RETRY_SECONDS if waiting else _FAILURE_SECONDS, since, now)
    status = seen(relocation.status, relocation.metadata.generation)
    return Plan(status=status, expired=left == 0, requeue_after=left or None)


def _rules(view: _View) -> tuple[StageRule[_View], ...]:
    if view.in_place:
        return (StageRule(VERIFY, _verify),)
    spec = view.relocation.spec
    measured = () if view.settings.local or _given_size(view) else (StageRule(MEASURE, _measure),)
    converted = (StageRule(CONVERT, _convert),) if spec.conversion is not Conversion.NONE else ()
    return (*measured, StageRule(RELOCATE, _relocate), *converted)


def _given_size(view: _View) -> str | None:
    return view.relocation.spec.volume.size or view.relocation.spec.size


def _measure(view: _View) -> Outcome:
    if (done := remembered(MEASURE, stages=view.relocation.status.stages, observed=view.observed)) is not None:
        return done
    mounts, source_mount = _source_mounts(view)
    step = Step(
        name=MEASURE,
        image=ImageRole.RELOCATOR,
        config=MeasureConfig(
            job=view.job, source=view.ref, source_mount=source_mount, stall_seconds=view.settings.stall_seconds
        ),
        mounts=mounts,
        secret=_secret(view),
        network=view.scheme not in _OFFLINE_SCHEMES,
        retries=view.relocation.spec.backoff_limit,
    )
    return step_outcome(step, view.observed.steps.get(MEASURE), running=Reason.MEASURING)


def _relocate(view: _View) -> Outcome:
    mounts, source_mount = _source_mounts(view)
    step = Step(
        name=RELOCATE,
        image=ImageRole.RELOCATOR,
        config=RelocateConfig(
            job=view.job,
            source=view.ref,
            source_mount=source_mount,
            destination=view.path("source" if view.converts else "artifact"),
            resolved_revision=view.revision,
            stall_seconds=view.settings.stall_seconds,
        ),
        mounts=(*mounts, claim_mount(view.claim, view.settings, read_only=False)),
        secret=_secret(view),
        network=view.scheme not in _OFFLINE_SCHEMES,
        retries=view.relocation.spec.backoff_limit,
    )
    state = view.observed.steps.get(RELOCATE)
    return _with_artifact(
        view, RELOCATE, step_outcome(step, state, running=Reason.RELOCATING, volumes=(_volume(view),))
    )


def _convert(view: _View) -> Outcome:
    raw = _result(view.observed, RELOCATE)
    if not isinstance(raw, ArtifactResult):
        return _without_result(RELOCATE)
    step = Step(
        name=CONVERT,
        image=ImageRole.TRAINER,
        config=ConvertConfig(
            job=view.job,
            source=view.path("source"),
            destination=view.path("artifact"),
            provenance=Provenance(
                source=view.relocation.spec.parsed.canonical,
                resolved_revision=raw.resolved_revision,
                digest=raw.digest,
            ),
        ),
        mounts=(claim_mount(view.claim, view.settings, read_only=False),),
        retries=view.relocation.spec.backoff_limit,
    )
    state = view.observed.steps.get(CONVERT)
    return _with_artifact(view, CONVERT, step_outcome(step, state, running=Reason.CONVERTING, volumes=(_volume(view),)))


def _verify(view: _View) -> Outcome:
    folder = view.user_folder
    step = Step(
        name=VERIFY,
        image=ImageRole.RELOCATOR,
        config=VerifyConfig(
            job=view.job,
            source=view.ref,
            path=join(view.settings.volumes_root, folder.claim_name, folder.path).rstrip("/"),
        ),
        mounts=(claim_mount(folder.claim_name, view.settings),),
        retries=view.relocation.spec.backoff_limit,
    )
    return _with_artifact(view, VERIFY, step_outcome(step, view.observed.steps.get(VERIFY), running=Reason.RELOCATING))


def _with_artifact(view: _View, step: str, outcome: Outcome) -> Outcome:
    """A step that succeeded without telling its digest is not trusted."""
    if outcome.state is StageState.SUCCEEDED and not isinstance(_result(view.observed, step), ArtifactResult):
        return _without_result(step)
    return outcome


def _without_result(step: str) -> Outcome:
    message = f"{step} ended without telling its result; delete the object and try again"
    return Outcome(StageState.FAILED, Reason.INTERNAL, message)


def _source_mounts(view: _View) -> tuple[tuple[ClaimMount | ConfigMapMount, ...], str | None]:
    """Return the mount that holds a source inside the cluster, and its folder."""
    if view.scheme is Scheme.CONFIGMAP:
        name = view.relocation.spec.parsed.location.partition("/")[0]
        path = join(view.settings.config_maps_root, name)
        return (ConfigMapMount(config_map=name, path=path),), path
    if view.scheme is Scheme.PVC:
        mount = claim_mount(view.user_folder.claim_name, view.settings)
        return (mount,), mount.path
    return (), None


def _secret(view: _View) -> str | None:
    reference = view.relocation.spec.secret_ref
    return reference.name if reference else None


def _volume(view: _View) -> Volume:
    spec = view.relocation.spec
    size = _given_size(view)
    measured = view.measured_bytes
    growth = view.settings.conversion_factor if view.converts else 1.0
    return Volume(
        name=view.claim,
        spec=spec.volume.model_copy(update={"size": size}),
        profile=spec.profile,
        size_bytes=None if measured is None else math.ceil(measured * growth * view.settings.size_margin),
    )


def _result(observed: Observed, step: str) -> object:
    state = observed.steps.get(step)
    if state is None or state.phase is not StepPhase.SUCCEEDED or state.last_words is None:
        return None
    return state.last_words.result


def _artifact(view: _View) -> RelocationArtifact | None:
    last = VERIFY if view.in_place else CONVERT if view.converts else RELOCATE
    result = _result(view.observed, last)
    if not isinstance(result, ArtifactResult):
        return None
    brought = _result(view.observed, RELOCATE)
    revision = result.resolved_revision or (brought.resolved_revision if isinstance(brought, ArtifactResult) else None)
    return RelocationArtifact(
        claim=view.user_folder if view.in_place else ClaimRef(claim_name=view.claim, path="artifact"),
        digest=result.digest,
        size_bytes=result.size_bytes,
        files=result.files,
        format=result.format,
        resolved_revision=revision,
    )


def _status(view: _View, course: Course, *, artifact: RelocationArtifact | None, now: datetime) -> RelocationStatus:
    old, active = view.relocation.status, course.active
    ready = active is None
    reason = active.reason if active else Reason.SUCCEEDED
    message = course.failure if course.failed else (active.message if active else "")
    told = condition(
        ConditionType.READY,
        holds=ready,
        reason=reason,
        message=headline(message),
        generation=view.relocation.metadata.generation,
        now=now,
    )
    conditions = set_condition(course.conditions, told)
    if course.failed:
        failed = {"type": ConditionType.FAILED, "status": ConditionStatus.TRUE, "message": shorten(message)}
        conditions = set_condition(conditions, told.model_copy(update=failed))
    transferred = _result(view.observed, RELOCATE)
    return RelocationStatus(
        observed_generation=view.relocation.metadata.generation,
        phase=_phase(course),
        reason=course.reason,
        start_time=old.start_time or now,
        completion_time=(old.completion_time or now) if ready else None,
        measured_bytes=view.measured_bytes,
        resolved_revision=view.revision,
        transferred_bytes=(
            transferred.transferred_bytes if isinstance(transferred, ArtifactResult) else old.transferred_bytes
        ),
        progress=active.progress if active else None,
        stages=list(course.stages),
        conditions=list(conditions),
        artifact=artifact or old.artifact,
        last_used_time=old.last_used_time,
        warnings=_warnings(view, artifact),
    )


def _phase(course: Course) -> RelocationPhase:
    if course.active is None:
        return RelocationPhase.READY
    if course.failed:
        return RelocationPhase.FAILED
    return _PHASES[course.active_name] if course.active.attempts else RelocationPhase.PENDING


def _warnings(view: _View, artifact: RelocationArtifact | None) -> list[str]:
    if artifact is None or is_pinned(view.ref):
        return []
    source = view.relocation.spec.source
    revision = artifact.resolved_revision
    if revision is None:
        advice = f"{source} is not pinned: what was brought has the digest {artifact.digest}; set checksum to pin it"
    else:
        advice = f"{source} is not pinned: revision {revision} was brought and is kept; set revision to pin it"
    return [shorten(advice, 1024)]


def _refused(view: _View, refusal: Refusal, now: datetime) -> Plan:
    relocation = view.relocation
    told = condition(
        ConditionType.FAILED,
        holds=True,
        reason=refusal.reason,
        message=refusal.message,
        generation=relocation.metadata.generation,
        now=now,
    )
    status = relocation.status.model_copy(
        update={
            "observed_generation": relocation.metadata.generation,
            "phase": RelocationPhase.FAILED,
            "reason": refusal.reason,
            "conditions": list(set_condition(relocation.status.conditions, told)),
        }
    )
    return Plan(status=status, events=events_between(relocation.status.conditions, status.conditions))
