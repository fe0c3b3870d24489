"""Telling what a plan says of its object: its events, and its status, which is held back where nobody waits for it."""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from finetuning_api.base import ApiModel, ConditionStatus, ConditionType, Resource, Stage, StageState
from finetuning_api.finetuningjob import JobPhase
from finetuning_api.reasons import Reason
from finetuning_operator.cluster.api import ClusterApi
from finetuning_operator.cluster.cache import Cache
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import OWN_KINDS
from finetuning_operator.cluster.metrics import Metrics
from finetuning_operator.cluster.recorder import Recorder
from finetuning_operator.cluster.statuses import ProgressBudget, StatusClock, Urgency, urgency
from finetuning_operator.reconcile.conditions import shorten
from finetuning_operator.reconcile.plan import Event, Plan

_SECONDS_OF_ONE = 0.02
"""How much longer an ordinary change is held for each object that waits for work."""
_LONGEST_RUSH_SECONDS = 10.0
_ENDED_STAGES = frozenset({StageState.SUCCEEDED, StageState.FAILED})


class Reporter:
    """Writes statuses and events. A status is written at the version that it was computed from, or not at all."""

    def __init__(  # noqa: PLR0913  (what it writes with, and when)
        self,
        api: ClusterApi,
        cache: Cache,
        recorder: Recorder,
        *,
        metrics: Metrics,
        delay: float,
        budget: ProgressBudget,
        wake: Callable[[Iterable[ObjectKey]], None],
        waiting: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``waiting`` says how many objects wait for work: in a rush, what they need goes before what is told."""
        self._api = api
        self._cache = cache
        self._recorder = recorder
        self._metrics = metrics
        self._delay = delay
        self._budget = budget
        self._wake = wake
        self._waiting = waiting
        self._clock = clock

    async def report(self, key: ObjectKey, resource: Resource, plan: Plan, *, held: StatusClock) -> float | None:
        """Write the events and the status of a plan when it is time to.

        Returns the seconds until a change that is held back is due, None where nothing is. What is written of mere
        progress is followed by more, so its next turn is given at once. Raises ApiError.
        """
        stored = _status(resource)
        if plan.status is stored:
            return held.wait({}, {}, now=self._clock(), delay=self._delay)
        old, new = stored.to_wire(), plan.status.to_wire()
        rush = min(self._waiting() * _SECONDS_OF_ONE, _LONGEST_RUSH_SECONDS)
        wait = held.wait(old, new, now=self._clock(), delay=self._delay + rush)
        moves = urgency(old, new) is Urgency.PROGRESS
        if wait == 0 and moves:
            wait = self._budget.wait(held, self._clock())
        if wait is None or wait > 0:
            return wait
        if not _is_part_of_a_job(resource):
            # Before the status: after a crash in between they are told again, and by their names that changes nothing.
            for event in plan.events:
                await self._recorder.record(key, resource.metadata.uid, event)
        written = await self._write(key, resource, new)
        # The event of this write will tell nothing new, so whoever waits for it is woken here; the object itself has
        # nothing to do about its own progress.
        self._wake(written - {key} if moves else written)
        held.wrote(self._clock())
        self._count(resource, plan)
        return self._budget.wait(held, self._clock()) if moves else None

    def publishes(self, resource: Resource, plan: Plan) -> bool:
        """Return whether a status must be written before anything is made that reads it."""
        return bool(_adapter(_status(resource)) != _adapter(plan.status))

    async def refuse(self, key: ObjectKey, message: str) -> None:
        """Say in the status of an object that it cannot be read. To say it again writes nothing. Raises ApiError."""
        manifest = self._cache.get(key)
        if manifest is None:
            return
        head, status = manifest["metadata"], manifest.get("status") or {}
        told: dict[str, Any] = {
            "type": ConditionType.ACCEPTED.value,
            "status": ConditionStatus.FALSE.value,
            "reason": Reason.INVALID_SPEC.value,
            "message": shorten(message),
            "observedGeneration": head.get("generation", 0),
        }
        conditions = status.get("conditions") or []
        old: dict[str, Any] = next((each for each in conditions if each.get("type") == told["type"]), {})
        if old.items() >= told.items():
            return
        told["lastTransitionTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        others = [each for each in conditions if each.get("type") != told["type"]]
        self._wake(await self._patch(key, {**status, "conditions": [told, *others]}, version=head["resourceVersion"]))
        event = Event(Reason.INVALID_SPEC, message, warning=True)
        await self._recorder.record(key, head["uid"], event)

    async def _write(self, key: ObjectKey, resource: Resource, status: dict[str, object]) -> frozenset[ObjectKey]:
        raw = (self._cache.get(key) or {}).get("status") or {}
        # What a newer version of the operator keeps there is not ours to drop.
        known = {field.alias for field in type(_status(resource)).model_fields.values()}
        foreign = {name: value for name, value in raw.items() if name not in known}
        return await self._patch(key, foreign | _telling(status), version=resource.metadata.resource_version)

    async def _patch(self, key: ObjectKey, status: dict[str, object], *, version: str) -> frozenset[ObjectKey]:
        """Write a status and return whom that concerns."""
        kind = OWN_KINDS[key.kind]
        written = await self._api.patch_status(kind, key.namespace, key.name, status=status, resource_version=version)
        return self._cache.put(key.kind, written)

    def _count(self, resource: Resource, plan: Plan) -> None:
        old, new = _stages(_status(resource)), _stages(plan.status)
        for name, stage in new.items():
            ended = stage.state in _ENDED_STAGES and stage.start_time and stage.completion_time
            before = old.get(name)
            if ended and stage.start_time and stage.completion_time and (before is None or before.state != stage.state):
                seconds = (stage.completion_time - stage.start_time).total_seconds()
                self._metrics.stage_ended(resource.kind, stage=name, seconds=seconds)
        reason = _failure(plan.status)
        if reason is not None and _failure(_status(resource)) is None:
            self._metrics.failed(resource.kind, reason=reason.value)


def _status(resource: Resource) -> ApiModel:
    found: ApiModel = resource.status  # type: ignore[attr-defined]  # Every kind of this API has one.
    return found


def _failure(status: ApiModel) -> Reason | None:
    """Return why an object has failed; None where it has not, also where something keeps it waiting."""
    # Every kind calls its failure so.
    return getattr(status, "reason", None) if getattr(status, "phase", None) == JobPhase.FAILED else None


def _is_part_of_a_job(resource: Resource) -> bool:
    """Whether another object tells the same: a job tells how its evaluation ended."""
    return resource.kind == "EvaluationJob" and bool(resource.metadata.owner_references)


def _telling(part: Any) -> Any:  # noqa: ANN401  (any part of a JSON document)
    """Return a part of a status without empty lists and messages: ``kubectl describe`` shows a line for each.

    Conditions stay as they are: their message is a required field in Kubernetes.
    """
    if isinstance(part, list):
        return [_telling(each) for each in part]
    if not isinstance(part, dict):
        return part
    kept = {name: value if name == "conditions" else _telling(value) for name, value in part.items()}
    return {name: value for name, value in kept.items() if value not in ([], {}) and (name, value) != ("message", "")}


def _adapter(status: ApiModel) -> object:
    return getattr(getattr(status, "artifacts", None), "adapter", None)


def _stages(status: ApiModel) -> dict[str, Stage]:
    return {stage.name: stage for stage in getattr(status, "stages", ())}
