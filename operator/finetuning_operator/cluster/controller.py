"""The heart: one key at a time is looked at, planned for, made so, and told about, until nothing is left to do."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetuning_api.base import Resource
from finetuning_api.runconfig import LastWords
from finetuning_operator.cluster.api import ClusterApi, Propagation
from finetuning_operator.cluster.apply import Applied, Applier
from finetuning_operator.cluster.cache import Cache
from finetuning_operator.cluster.errors import ApiError, Conflict, NamespaceTerminating, NotFound, NotLeader
from finetuning_operator.cluster.inquiries import Answers, Inquirer
from finetuning_operator.cluster.jsonlog import about
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import CLAIM, NETWORK_POLICY, OWN_KINDS
from finetuning_operator.cluster.metrics import Metrics
from finetuning_operator.cluster.progress.address import Owner
from finetuning_operator.cluster.progress.store import ProgressStore
from finetuning_operator.cluster.queue import WorkQueue
from finetuning_operator.cluster.report import Reporter
from finetuning_operator.cluster.statuses import StatusClock
from finetuning_operator.cluster.view import Known, Obstacle, StepJob, UnreadableObjectError, View
from finetuning_operator.reconcile import reconcile
from finetuning_operator.reconcile.lifecycle import soonest
from finetuning_operator.reconcile.plan import Observed, Plan, Settings, StepPhase

_LOGGER = logging.getLogger(__name__)
_ACTIVE = frozenset({StepPhase.PENDING, StepPhase.RUNNING})
_SHORTEST_PAUSE = 0.05
"""Seconds; the clock of plans has whole seconds, so a moment that has just come may be seen a little later."""


@dataclass(slots=True)
class _Memory:
    """What is remembered of one life of an object; a restart begins without it."""

    uid: str
    held: StatusClock = field(default_factory=StatusClock)
    obstacles: dict[str, Obstacle] = field(default_factory=dict)
    hindrances: dict[tuple[str, str], LastWords] = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)
    lost: frozenset[str] = frozenset()

    def note(self, applied: Applied, now: datetime) -> bool:
        """Remember what keeps anything from being made, and of steps since when; return whether that is news."""
        told = {step: each.words for step, each in applied.blocked.items() if each.words is not None}
        known, before = self.obstacles, self.hindrances
        self.obstacles = {
            step: Obstacle(words, known[step].since if step in known else now) for step, words in told.items()
        }
        self.hindrances = {name: each.words for name, each in applied.others.items() if each.words is not None}
        return (self.obstacles, self.hindrances) != (known, before)


@dataclass(frozen=True, slots=True)
class _Next:
    """When an object is looked at again."""

    seconds: float | None = None
    failed: bool = False
    """Whether to leave it to the backoff."""


class Controller:
    """Works keys off the queue. Any number of workers may run; the queue keeps them from the same key."""

    def __init__(  # noqa: PLR0913  (the parts that it joins)
        self,
        api: ClusterApi,
        cache: Cache,
        queue: WorkQueue[ObjectKey],
        *,
        view: View,
        applier: Applier,
        reporter: Reporter,
        inquirer: Inquirer,
        progress: ProgressStore,
        metrics: Metrics,
        settings: Settings,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._cache = cache
        self._queue = queue
        self._view = view
        self._applier = applier
        self._reporter = reporter
        self._inquirer = inquirer
        self._progress = progress
        self._metrics = metrics
        self._settings = settings
        self._now = now
        self._turns = asyncio.Lock()
        self._memories: dict[ObjectKey, _Memory] = {}
        self._settled: dict[ObjectKey, tuple[str, int]] = {}
        """Identities at which objects had ended and nothing was left to do: most of all objects, in a long life."""

    def wake(self, keys: Iterable[ObjectKey]) -> None:
        """Have objects looked at."""
        for key in keys:
            self._queue.add(key)

    def progressed(self, key: ObjectKey) -> None:
        """Have an object looked at whose step has got on, unless it has a turn for telling that: then it waits for it.

        With a thousand reporting jobs a turn comes every minute or two, and to look at each with each of its reports
        would keep other reports waiting, only to find that it is not its turn.
        """
        memory = self._memories.get(key)
        if memory is None or memory.held.turn is None:
            self._queue.add(key)

    def prime(self) -> None:
        """Learn who reads what, before anything is decided by who is in use; then have every object looked at."""
        for kind in OWN_KINDS:
            for key in self._cache.keys(kind):
                if not self._cache.is_finished(key):
                    resource = self._view.readable(key)
                    if resource is not None:
                        self._cache.refer(key, self._view.references(key, resource))
                self._queue.add(key)

    def revisit(self, *, within: float) -> None:
        """Have everything looked at that has not ended, spread evenly over so many seconds.

        A thousand looks at once would keep reports of progress waiting for seconds. What is known to have changed is
        woken by that.
        """
        unfinished = [key for kind in OWN_KINDS for key in self._cache.keys(kind) if not self._cache.is_finished(key)]
        for place, key in enumerate(unfinished):
            self._queue.add_after(key, within * place / len(unfinished))

    async def work(self) -> None:
        """Work until the queue is closed."""
        while (key := await self._queue.get()) is not None:
            await self._give_way()
            with about(key):
                await self._attempt(key)
            self._queue.done(key)

    async def _give_way(self) -> None:
        """Let everybody else have a turn before the next part of a look, also where none waits for anything.

        A whole look takes ten milliseconds and more. One worker at a time: else all of them would go on at once.
        """
        async with self._turns:
            await asyncio.sleep(0)

    async def _attempt(self, key: ObjectKey) -> None:
        started = time.monotonic()
        result = "error"
        try:
            result = self._schedule(key, await self._process(key))
        except NamespaceTerminating:
            self._queue.forget(key)
            result = "gone"
        except NotLeader:
            # A renewal that is answered late makes this process lead again, and then somebody waits for this.
            self._queue.add_failed(key)
            result = "not leading"
        except (Conflict, NotFound) as error:
            result = await self._refresh(key, error) if key.kind in OWN_KINDS else "gone"
        except ApiError as error:
            self._retry(key, error)
        except Exception:
            # One object that trips over a mistake of ours must not stop the others.
            _LOGGER.exception("reconciling failed; it is tried again")
            self._retry(key, None)
        self._metrics.reconciled(key.kind, result=result, seconds=time.monotonic() - started)

    def _schedule(self, key: ObjectKey, following: _Next) -> str:
        if following.failed:
            self._queue.add_failed(key)
        else:
            self._queue.forget(key)
        if following.seconds is not None:
            self._queue.add_after(key, max(following.seconds, _SHORTEST_PAUSE))
        return "blocked" if following.failed else "ok"

    def _retry(self, key: ObjectKey, error: ApiError | None) -> None:
        seconds = self._queue.add_failed(key)
        self._metrics.retried(key.kind)
        if error is not None:
            _LOGGER.warning("%s; tried again in %.2f s", error, seconds)

    async def _refresh(self, key: ObjectKey, error: ApiError) -> str:
        """Look at what the API server has now: what was computed from is old, or gone."""
        try:
            found = await self._api.get(OWN_KINDS[key.kind], key.namespace, key.name)
        except NotFound:
            self.wake(self._cache.forget(key))
            self._queue.forget(key)
            return "gone"
        except ApiError as second:
            self._retry(key, second)
            return "error"
        if self._cache.put(key.kind, found):
            self._queue.add(key)
        else:
            self._retry(key, error)
        return "conflict"

    async def _process(self, key: ObjectKey) -> _Next:
        """Bring one object a step further. Raises ApiError."""
        if key.kind == NETWORK_POLICY.kind:
            if self._cache.works_in(key.namespace):
                await self._applier.protect(key.namespace)
            return _Next()
        identity = self._cache.identity(key)
        if identity is None or self._cache.is_deleting(key):
            # Nothing is made for it any more; what it owns goes with it.
            self._forget(key)
            return _Next()
        if self._settled.get(key) == identity:
            return _Next()
        try:
            resource = self._view.resource(key)
        except UnreadableObjectError as error:
            return await self._refuse(key, error)
        if resource is None:
            return _Next()
        return await self._reconcile(key, resource, self._remember(key, identity[0]))

    async def _refuse(self, key: ObjectKey, error: UnreadableObjectError) -> _Next:
        # What has ended stays as whoever could read it left it.
        if not self._cache.is_finished(key):
            await self._reporter.refuse(key, str(error))
        return _Next()

    async def _reconcile(self, key: ObjectKey, resource: Resource, memory: _Memory) -> _Next:
        targets = self._view.references(key, resource)
        self.wake(self._cache.refer(key, targets))
        now = self._now().replace(microsecond=0)
        jobs = self._view.step_jobs(resource)
        inquire = await self._inquire(resource, memory, jobs=jobs, now=now)
        memory.lost = await self._lost(key, resource)
        await self._give_way()
        observed, plan = self._plan(key, resource, memory=memory, targets=targets, jobs=jobs, now=now)
        if plan.expired:
            kind = OWN_KINDS[key.kind]
            uid = resource.metadata.uid
            await self._api.delete(kind, key.namespace, key.name, uid=uid, propagation=Propagation.BACKGROUND)
            return _Next()
        if self._reporter.publishes(resource, plan):
            # It changes the object, so the next pass, which is woken by it, goes on.
            await self._reporter.report(key, resource, plan, held=memory.held)
            return _Next(_SHORTEST_PAUSE)
        await self._give_way()
        applied = await self._applier.realise(resource, plan, observed=observed, jobs=jobs)
        if memory.note(applied, now):
            # What hinders was met only now, and is part of what is told.
            observed, plan = self._plan(key, resource, memory=memory, targets=targets, jobs=jobs, now=now)
        await self._give_way()
        held = await self._reporter.report(key, resource, plan, held=memory.held)
        if self._is_settled(key, plan, observed, applied=applied, held=held):
            self._settle(key)
        return _next(applied, soonest(plan.requeue_after, held, inquire))

    async def _inquire(
        self, resource: Resource, memory: _Memory, *, jobs: tuple[StepJob, ...], now: datetime
    ) -> float | None:
        """Find out what the cache does not tell; return the seconds until there is more to find out."""
        waits = [await self._inquirer.ask_about_jobs(memory.answers, jobs, now=now)]
        for _, deployment in self._view.deployments(resource):
            pods = self._view.server_pods(resource)
            waits.append(await self._inquirer.ask_about_server(memory.answers, deployment, pods, now=now))
        return soonest(*waits)

    async def _lost(self, key: ObjectKey, resource: Resource) -> frozenset[str]:
        """Return the claims that are gone: with what an object has brought, or with the results that it evaluates.

        One that goes counts as gone where nobody needs it.
        """
        lost = [name for name in self._view.promised_claims(key, resource) if await self._is_lost(key, name)]
        return frozenset(lost)

    async def _is_lost(self, key: ObjectKey, name: str) -> bool:
        claim = ObjectKey(CLAIM.kind, key.namespace, name)
        if claim in self._cache:
            return self._cache.is_deleting(claim) and not self._view.users(key)
        try:
            # That of a user is not watched.
            await self._api.get(CLAIM, key.namespace, name)
        except NotFound:
            return True
        return False

    def _plan(
        self,
        key: ObjectKey,
        resource: Resource,
        *,
        memory: _Memory,
        targets: frozenset[ObjectKey],
        jobs: tuple[StepJob, ...],
        now: datetime,
    ) -> tuple[Observed, Plan]:
        known = Known(
            obstacles=memory.obstacles,
            hindrances=memory.hindrances,
            lost=memory.lost,
            diagnoses=memory.answers.diagnoses,
        )
        observed = self._view.observed(key, resource, targets=targets, jobs=jobs, known=known, now=now)
        return observed, reconcile(resource, observed=observed, now=now, settings=self._settings)

    def _is_settled(
        self, key: ObjectKey, plan: Plan, observed: Observed, *, applied: Applied, held: float | None
    ) -> bool:
        if key.kind not in {"FineTuningJob", "EvaluationJob"} or not self._cache.is_finished(key):
            return False
        active = any(state.phase in _ACTIVE for state in observed.steps.values())
        waits = plan.requeue_after is not None or held is not None
        return not (active or waits or plan.children or plan.steps) and applied.complete

    def _settle(self, key: ObjectKey) -> None:
        identity = self._cache.identity(key)
        self._forget(key)
        self._view.drop(key)
        if identity is not None:
            self._settled[key] = identity

    def _remember(self, key: ObjectKey, uid: str) -> _Memory:
        memory = self._memories.get(key)
        if memory is None or memory.uid != uid:
            self._forget(key)
            memory = self._memories[key] = _Memory(uid)
        return memory

    def _forget(self, key: ObjectKey) -> None:
        self._settled.pop(key, None)
        memory = self._memories.pop(key, None)
        if memory is not None:
            self._progress.forget(_owner(key, memory.uid))
        self.wake(self._cache.refer(key, frozenset()))


def _owner(key: ObjectKey, uid: str) -> Owner:
    return Owner(namespace=key.namespace, kind=key.kind, name=key.name, uid=uid)


def _next(applied: Applied, seconds: float | None) -> _Next:
    failed = not applied.complete and applied.retry_seconds is None
    return _Next(soonest(seconds, applied.retry_seconds), failed=failed)
