"""One object as reconciling sees it: parsed, with its steps, its servers, and the other objects that it reads."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from finetuning_api.base import ConditionType, Resource, StagedStatus, StageState
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.inferenceserver import InferenceServer
from finetuning_api.relocation import Relocation
from finetuning_api.runconfig import LastWords, ProgressMetric, TrainerMetric, TrainerStatus
from finetuning_operator.cluster.cache import Cache, claims_held, step_of
from finetuning_operator.cluster.diagnose import Diagnosis
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import CLAIM
from finetuning_operator.cluster.observe import observe_server, observe_step
from finetuning_operator.cluster.progress.address import ProgressKey
from finetuning_operator.cluster.progress.store import ProgressStore
from finetuning_operator.reconcile import labels, references
from finetuning_operator.reconcile.conditions import is_true
from finetuning_operator.reconcile.dependencies import job_refs
from finetuning_operator.reconcile.plan import Observed, ServerState, StepPhase, StepState

MODELS: Mapping[str, type[Resource]] = {
    "FineTuningJob": FineTuningJob,
    "EvaluationJob": EvaluationJob,
    "Relocation": Relocation,
    "InferenceServer": InferenceServer,
}
_PARSED_OBJECTS = 1024
"""Objects that are kept parsed: what is worked on, and what many of them share."""


class UnreadableObjectError(ValueError):
    """A stored object is not what this version understands. The message names the field and what is wrong."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a step cannot be started, as the API server or the placement of its volumes tells it."""

    words: LastWords
    since: datetime


@dataclass(frozen=True, slots=True)
class StepJob:
    """The Job of a step with its pods."""

    key: ObjectKey
    step: str
    job: dict[str, Any]
    pods: tuple[dict[str, Any], ...]

    @property
    def uid(self) -> str:
        """Identity of the Job."""
        return str(self.job["metadata"]["uid"])

    @property
    def deleting(self) -> bool:
        """Whether the Job is on its way out."""
        return "deletionTimestamp" in self.job["metadata"]


@dataclass(frozen=True, slots=True)
class Known:
    """What the operator knows of one object beyond the cache."""

    obstacles: Mapping[str, Obstacle] = field(default_factory=dict)
    """By step."""
    hindrances: Mapping[tuple[str, str], LastWords] = field(default_factory=dict)
    """What keeps everything else from being made, by kind and name."""
    lost: frozenset[str] = frozenset()
    diagnoses: Mapping[str, Diagnosis | None] = field(default_factory=dict)
    """By the name of the Job or Deployment."""


class View:
    """Reads objects out of the cache. Parsed objects are kept by uid and version, so each is parsed once."""

    def __init__(
        self,
        cache: Cache,
        progress: ProgressStore,
        *,
        idle_since: Callable[[str, Sequence[Mapping[str, Any]]], datetime | None] = lambda _uid, _pods: None,
        asked_at: Callable[[str], datetime | None] = lambda _uid: None,
    ) -> None:
        """``idle_since`` tells since when a server of a uid, with its pods, was asked nothing.

        ``asked_at`` tells when one was last asked something that had no pod to answer.
        """
        self._cache = cache
        self._progress = progress
        self._idle_since = idle_since
        self._asked_at = asked_at
        self._parsed: OrderedDict[ObjectKey, tuple[tuple[str, int], Resource]] = OrderedDict()

    def resource(self, key: ObjectKey) -> Resource | None:
        """Return an object of ours, None where it is not known. Raises UnreadableObjectError."""
        identity = self._cache.identity(key)
        if identity is None:
            self._parsed.pop(key, None)
            return None
        found = self._parsed.get(key)
        if found is None or found[0] != identity:
            found = (identity, parse(key.kind, self._cache.get(key) or {}))
            self._parsed[key] = found
        self._parsed.move_to_end(key)
        if len(self._parsed) > _PARSED_OBJECTS:
            self._parsed.popitem(last=False)
        return found[1]

    def drop(self, key: ObjectKey) -> None:
        """Keep an object no longer parsed: nothing is left to do with it."""
        self._parsed.pop(key, None)

    def references(self, key: ObjectKey, resource: Resource) -> frozenset[ObjectKey]:
        """Return the objects that reconciling one reads."""
        namespace = key.namespace
        found = references(resource, lambda kind, name: self.readable(ObjectKey(kind, namespace, name)))
        return frozenset(ObjectKey(kind, namespace, name) for kind, name in found) - {key}

    def readable(self, key: ObjectKey) -> Resource | None:
        """Return an object that another one reads; None while it is unknown, unreadable or being deleted."""
        try:
            return None if self._cache.is_deleting(key) else self.resource(key)
        except UnreadableObjectError:
            return None

    def promised_claims(self, key: ObjectKey, resource: Resource) -> tuple[str, ...]:
        """Return the claims on which something lies as statuses say: an object's own, or those of jobs it evaluates."""
        if isinstance(resource, Relocation):
            return _brought_claim(resource)
        names = () if self._cache.is_finished(key) else job_refs(resource)
        jobs = (self.readable(ObjectKey(FineTuningJob.__name__, key.namespace, name)) for name in names)
        made = [job.status.artifacts.adapter for job in jobs if isinstance(job, FineTuningJob)]
        return tuple(adapter.claim_name for adapter in made if adapter is not None)

    def step_jobs(self, resource: Resource) -> tuple[StepJob, ...]:
        """Return the Jobs of an object's steps, by its uid: those of an earlier object of the same name are not its."""
        found = []
        for key in self._cache.children(resource.metadata.uid, "Job"):
            job = self._cache.get(key)
            if job is not None and (step := step_of(job.get("spec") or {})):
                found.append(StepJob(key, step, job, self._pods(job)))
        return tuple(found)

    def deployments(self, resource: Resource) -> tuple[tuple[ObjectKey, dict[str, Any]], ...]:
        """Return the Deployments of an object's servers."""
        keys = self._cache.children(resource.metadata.uid, "Deployment")
        found = ((key, self._cache.get(key)) for key in keys)
        return tuple((key, deployment) for key, deployment in found if deployment is not None)

    def observed(
        self,
        key: ObjectKey,
        resource: Resource,
        *,
        targets: Iterable[ObjectKey],
        jobs: tuple[StepJob, ...],
        known: Known,
        now: datetime,
    ) -> Observed:
        """Return everything that the plan of an object may depend on; ``targets`` are the objects that it reads."""
        read = {(target.kind, target.name): self.readable(target) for target in targets}
        return Observed(
            steps=self._steps(resource, jobs, known=known, now=now),
            resources={name: found for name, found in read.items() if found is not None},
            servers=self._servers(resource, known),
            users=self.users(key),
            lost=known.lost,
            hindrances=dict(known.hindrances),
        )

    def _steps(
        self, resource: Resource, jobs: tuple[StepJob, ...], *, known: Known, now: datetime
    ) -> dict[str, StepState]:
        states = {step: _hindered(obstacle) for step, obstacle in known.obstacles.items()}
        for found in jobs:
            state = observe_step(
                found.job,
                found.pods,
                now=now,
                progress=self._reported(resource, found.step),
                diagnosis=known.diagnoses.get(found.key.name),
            )
            if state is not None:
                states[found.step] = replace(state, leaving_claims=self._leaving_claims(found))
        return states

    def _leaving_claims(self, job: StepJob) -> tuple[str, ...]:
        """Return the claims on their way out that the pods of a step mount. Those of users are not watched."""
        held = {claim for pod in job.pods for claim in claims_held(pod)}
        namespace = job.key.namespace
        return tuple(sorted(name for name in held if self._cache.is_deleting(ObjectKey(CLAIM.kind, namespace, name))))

    def _reported(self, resource: Resource, step: str) -> TrainerStatus | None:
        """Return the newest report of a step: after a restart the one that was written last, until the next comes."""
        head = resource.metadata
        place = ProgressKey(namespace=head.namespace, kind=resource.kind, name=head.name, step=step)
        return self._progress.get(place, uid=head.uid) or written_progress(resource, step)

    def _servers(self, resource: Resource, known: Known) -> dict[str, ServerState]:
        states: dict[str, ServerState] = {}
        for key, deployment in self.deployments(resource):
            pods = self.server_pods(resource)
            state = observe_server(deployment, pods, known.diagnoses.get(key.name))
            uid = resource.metadata.uid
            states[key.name] = replace(state, idle_since=self._idle_since(uid, pods), asked_at=self._asked_at(uid))
        for (kind, name), words in known.hindrances.items():
            if kind == "Deployment":
                states[name] = replace(states.get(name, ServerState()), current=False, hindrance=words)
        return states

    def users(self, key: ObjectKey) -> tuple[str, ...]:
        """Return the unfinished objects that refer to one."""
        users = (user for user in self._cache.referrers(key) if user in self._cache)
        return tuple(f"{user.kind}/{user.name}" for user in users if not self._cache.is_finished(user))

    def _pods(self, job: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        keys = self._cache.children(job["metadata"]["uid"], "Pod")
        return tuple(pod for key in keys if (pod := self._cache.get(key)) is not None)

    def server_pods(self, resource: Resource) -> tuple[dict[str, Any], ...]:
        """Return the pods of an object's servers: they belong to ReplicaSets, which nobody watches, so labels tell."""
        owner = ObjectKey(resource.kind, resource.metadata.namespace, resource.metadata.name)
        pods = (self._cache.get(key) for key in self._cache.pods(owner))
        return tuple(
            pod for pod in pods if pod is not None and labels.STEP not in (pod["metadata"].get("labels") or {})
        )


def _brought_claim(resource: Relocation) -> tuple[str, ...]:
    """Return the claim with what a Relocation says that it has brought."""
    if not is_true(resource.status.conditions, ConditionType.READY) or resource.status.artifact is None:
        return ()
    return (resource.status.artifact.claim.claim_name,)


def _hindered(obstacle: Obstacle) -> StepState:
    return StepState(StepPhase.PENDING, attempts=0, started_at=obstacle.since, hindrance=obstacle.words)


def written_progress(resource: Resource, step: str) -> TrainerStatus | None:
    """Return the progress in the status of an object as the report that it was made of, if it is that of a step."""
    status = getattr(resource, "status", None)
    if not isinstance(status, StagedStatus) or status.progress is None or status.progress.updated_at is None:
        return None
    running = (stage.name for stage in status.stages if stage.state is StageState.RUNNING)
    if step not in running:
        return None
    told = status.progress
    values = {
        ProgressMetric.STEP: told.step,
        ProgressMetric.TOTAL_STEPS: told.total_steps,
        ProgressMetric.TOKENS_PER_SECOND: told.tokens_per_second,
        ProgressMetric.LOSS: told.loss,
    }
    return TrainerStatus(
        last_updated_time=status.progress.updated_at,
        progress_percentage=told.percent,
        estimated_remaining_seconds=told.eta_seconds,
        metrics=tuple(
            TrainerMetric(name=name, value=str(value)) for name, value in values.items() if value is not None
        ),
    )


def parse(kind: str, manifest: Mapping[str, Any]) -> Resource:
    """Parse a stored object; fields that this version does not know are ignored. Raises UnreadableObjectError."""
    try:
        return MODELS[kind].model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = f"{place}: {first['msg']}; this version of the operator cannot read the object"
        raise UnreadableObjectError(message) from None
