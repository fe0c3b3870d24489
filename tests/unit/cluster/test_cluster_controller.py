"""One pass after the other over an API server in memory: what is made, what is told, what is tried again."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.batch import condition, ended_pod, running_pod, stamp
from tests.support.fake_api import FakeApi
from tests.support.lifecycle import job, relocation
from tests.support.objects import DIGEST, NOW

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords, TrainerStatus
from finetuning_operator.cluster.api import TokenBucket
from finetuning_operator.cluster.apply import Applier
from finetuning_operator.cluster.cache import Cache
from finetuning_operator.cluster.controller import Controller
from finetuning_operator.cluster.errors import (
    ApiError,
    Conflict,
    NamespaceTerminating,
    NotLeader,
    QuotaExceeded,
    Unavailable,
)
from finetuning_operator.cluster.event_board import EventBoard
from finetuning_operator.cluster.inquiries import Inquirer
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.metrics import Metrics
from finetuning_operator.cluster.options import Options
from finetuning_operator.cluster.progress.address import ProgressKey
from finetuning_operator.cluster.progress.store import ProgressStore
from finetuning_operator.cluster.queue import WorkQueue
from finetuning_operator.cluster.recorder import Recorder
from finetuning_operator.cluster.report import Reporter
from finetuning_operator.cluster.statuses import ProgressBudget
from finetuning_operator.cluster.view import View

MODEL = ObjectKey("Relocation", "team", "model")
MEASURE = ObjectKey("Job", "team", "model-measure")
POLICIES = [("apply", f"NetworkPolicy/finetuning-{name}") for name in ("isolated", "serving", "open")]


@dataclass
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Core:
    """The core without its process: events are what ``see`` is told, workers are what ``settle`` does."""

    api: FakeApi = field(default_factory=FakeApi)
    clock: Clock = field(default_factory=Clock)
    cache: Cache = field(default_factory=Cache)
    progress_per_second: float = 10.0
    looked: list[ObjectKey] = field(default_factory=list)
    """Who was looked at, in order."""

    def __post_init__(self) -> None:
        self.queue: WorkQueue[ObjectKey] = WorkQueue(clock=self.clock, jitter=lambda: 0.0)
        self.progress, self.metrics = ProgressStore(), Metrics()
        turns = TokenBucket(rate=1.0, burst=2, clock=self.clock)
        self.controller = Controller(
            self.api,
            self.cache,
            self.queue,
            view=View(self.cache, self.progress),
            applier=Applier(self.api, self.cache, Options(), wake=self.wake, wake_later=self.wake_later),
            reporter=Reporter(
                self.api,
                self.cache,
                Recorder(self.api, instance="test"),
                metrics=self.metrics,
                delay=1.0,
                budget=ProgressBudget(per_second=self.progress_per_second),
                wake=self.wake,
                clock=self.clock,
            ),
            inquirer=Inquirer(self.api, EventBoard(self.api, turns, clock=self.clock), turns),
            progress=self.progress,
            metrics=self.metrics,
            settings=Options().settings,
            now=self.now,
        )

    def now(self) -> datetime:
        return datetime.fromtimestamp(1_772_000_000 + self.clock.seconds, UTC)

    def wake(self, keys: Iterable[ObjectKey]) -> None:
        for key in keys:
            self.queue.add(key)

    def wake_later(self, keys: Iterable[ObjectKey], seconds: float) -> None:
        for key in keys:
            self.queue.add_after(key, seconds)

    def see(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Store an object as somebody else would, and hear of it."""
        stored = self.api.store(manifest)
        self.wake(self.cache.put(stored["kind"], stored))
        return stored

    def settle(self) -> None:
        """Work until nothing is due."""

        async def work() -> None:
            for _ in range(100):
                if (key := self.queue.pop()) is None:
                    return
                self.looked.append(key)
                await self.controller._attempt(key)
                self.queue.done(key)
            pytest.fail(f"there is no end of work: {self.api.writes[-10:]}")

        asyncio.run(work())

    def due(self) -> list[ObjectKey]:
        """Take what is due now, and leave it undone."""
        taken = []
        while (key := self.queue.pop()) is not None:
            taken.append(key)
            self.queue.done(key)
        return taken

    def later(self, seconds: float) -> None:
        self.clock.seconds += seconds
        self.settle()

    def status(self, key: ObjectKey) -> dict[str, Any]:
        found: dict[str, Any] = self.api.objects[key].get("status", {})
        return found


def message(status: dict[str, Any], stage: str) -> str:
    return next((str(each.get("message", "")) for each in status.get("stages", ()) if each["name"] == stage), "")


def test_a_new_object_gets_its_child_at_once_and_its_status_after_the_delay() -> None:
    core = Core()
    core.see(relocation("team"))
    core.settle()
    assert core.api.writes == [*POLICIES, ("create", "Job/model-measure")]
    core.later(1.0)
    assert core.api.writes[4:] == [("status", "Relocation/model")]


def test_what_is_empty_is_not_written() -> None:
    core = Core()
    core.see(relocation("team"))
    core.settle()
    core.later(1.0)

    status = core.status(MODEL)
    assert "warnings" not in status
    assert [sorted(stage) for stage in status["stages"]] == [["attempts", "name", "percent", "state"]] * 2
    assert [each["message"] for each in status["conditions"]] == [""]


def test_nothing_is_written_when_everything_is_looked_at_again() -> None:
    core = Core()
    core.see(job("team"))
    core.settle()
    core.later(2.0)
    written = list(core.api.writes)
    core.controller.revisit(within=0.0)
    core.later(600.0)
    assert core.api.writes == written


def test_what_is_looked_at_again_comes_evenly_over_the_time_given() -> None:
    core = Core()
    for name in ("a", "b", "c"):
        core.see(job("team", name))
    assert len(core.due()) == 3
    core.controller.revisit(within=30.0)
    for _ in range(3):
        assert len(core.due()) == 1
        core.clock.seconds += 10.0
    assert core.due() == []


def test_others_have_a_turn_before_each_of_many_looks_that_wait_for_nothing() -> None:
    core = Core()
    jobs = [ObjectKey("FineTuningJob", "team", f"gone-{number}") for number in range(20)]

    async def run() -> dict[ObjectKey, int]:
        turns, seen = 0, dict[ObjectKey, int]()

        def done(key: ObjectKey) -> None:
            seen[key] = turns
            if len(seen) == len(jobs):
                core.queue.close()

        core.queue.done = done  # type: ignore[method-assign]  # what a worker does last
        core.wake(jobs)
        workers = asyncio.gather(*(core.controller.work() for _ in range(4)))
        while not workers.done():
            turns += 1
            await asyncio.sleep(0)
        return seen

    seen = asyncio.run(run())

    assert len(set(seen.values())) == len(jobs)


def test_others_have_a_turn_between_the_parts_of_one_look() -> None:
    core = Core()
    core.see(relocation("team"))

    async def run() -> int:
        look, turns = asyncio.ensure_future(core.controller._attempt(MODEL)), 0
        while not look.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(run()) > 3


def getting_on(
    core: Core, *models: ObjectKey
) -> tuple[Callable[[ObjectKey, int], None], Callable[[ObjectKey], object]]:
    """Have models measured, and return what reports their progress, and what tells the progress of their statuses."""
    for key in models:
        core.see(relocation("team", key.name))
    core.settle()
    for key in models:
        measure = core.api.objects[ObjectKey("Job", "team", f"{key.name}-measure")]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "uid": measure["metadata"]["uid"], "controller": True}
        running = running_pod(f"{key.name}-measure-1")
        head = running["metadata"] | {"ownerReferences": [owner]}
        core.see({"apiVersion": "v1", "kind": "Pod", **running, "metadata": head})
    core.later(2.0)

    def report(key: ObjectKey, percent: int) -> None:
        step = ProgressKey(key.namespace, key.kind, key.name, "measure")
        status = TrainerStatus(last_updated_time=core.now(), progress_percentage=percent)
        core.progress.put(step, status, uid=core.api.objects[key]["metadata"]["uid"])
        core.controller.progressed(key)

    def told(key: ObjectKey) -> object:
        return core.status(key).get("progress", {}).get("percent")

    return report, told


def test_who_has_a_turn_for_telling_its_progress_is_not_looked_at_before() -> None:
    core = Core(progress_per_second=0.01)
    models = [MODEL, ObjectKey("Relocation", "team", "other")]
    report, told_of = getting_on(core, *models)

    def told() -> list[object]:
        return [told_of(key) for key in models]

    core.clock.seconds += 20.0
    for key in models:
        report(key, 10)
    assert core.due() == models
    core.wake(models)
    core.later(0.0)
    core.later(20.0)
    assert told() == [10, None]
    report(models[1], 20)
    assert core.due() == []
    core.later(200.0)
    assert told() == [10, 20]
    report(models[1], 30)
    assert core.due() == []


def test_a_job_that_gets_on_is_looked_at_once_for_each_time_that_this_is_told() -> None:
    core = Core(progress_per_second=0.01)
    report, told = getting_on(core, MODEL)
    core.clock.seconds += 20.0
    report(MODEL, 10)
    core.settle()
    core.later(20.0)
    core.looked.clear()
    for percent in (20, 30, 40):
        report(MODEL, percent)
        core.later(100.0)
        assert told(MODEL) == percent
    assert core.looked == [MODEL] * 3


def test_the_same_plan_after_a_restart_makes_nothing_twice() -> None:
    first = Core()
    first.see(relocation("team"))
    first.settle()
    second = Core(api=first.api)
    second.cache.put("Relocation", first.api.objects[MODEL])
    second.controller.prime()
    second.settle()
    assert [write for write in first.api.writes if write[0] == "create"] == [("create", "Job/model-measure")]


@pytest.mark.parametrize("error", [Unavailable("no answer"), ApiError("odd", status=418), RuntimeError("a mistake")])
def test_a_pass_that_failed_is_repeated_after_its_backoff(error: Exception) -> None:
    core = Core()
    core.api.refuse("create", error)
    core.see(relocation("team"))
    core.settle()
    assert MEASURE not in core.api.objects
    core.later(0.01)
    assert MEASURE in core.api.objects


def test_a_refusal_is_told_in_the_status_and_tried_again() -> None:
    core = Core()
    core.api.refuse("create", *[QuotaExceeded("exceeded quota: small", status=403)] * 3)
    core.see(relocation("team"))
    core.settle()
    core.later(1.0)
    assert "quota" in message(core.status(MODEL), "measure")
    for _ in range(4):
        core.later(1.0)
    assert MEASURE in core.api.objects
    core.later(1.0)
    assert "quota" not in message(core.status(MODEL), "measure")


def test_only_what_has_failed_is_counted_as_a_failure_and_that_once() -> None:
    core = Core()

    def failures() -> list[tuple[str, float]]:
        (family,) = [each for each in core.metrics.registry.collect() if each.name == "finetuning_failures"]
        return [(each.labels["reason"], each.value) for each in family.samples if each.name.endswith("_total")]

    core.api.refuse("create", *[QuotaExceeded("exceeded quota: small", status=403)] * 3)
    core.see(relocation("team"))
    for _ in range(6):
        core.later(1.0)
    assert failures() == []

    measure = core.api.objects[MEASURE]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "uid": measure["metadata"]["uid"], "controller": True}
    ended = ended_pod(exit_code=1, words=LastWords(reason=Reason.REVISION_NOT_FOUND, message="no v1"))
    core.see({"apiVersion": "v1", "kind": "Pod", **ended, "metadata": ended["metadata"] | {"ownerReferences": [owner]}})
    core.see(measure | {"status": {"conditions": [condition("Failed")], "failed": 1, "startTime": stamp()}})
    core.settle()
    core.controller.revisit(within=0.0)
    core.later(1.0)
    assert failures() == [("RevisionNotFound", 1.0)]


def test_a_status_that_somebody_else_changed_meanwhile_is_computed_anew() -> None:
    core = Core()
    core.see(relocation("team"))
    core.settle()
    changed = core.api.objects[MODEL]
    changed["metadata"]["labels"] = {"team": "a"}
    core.api.store(changed)
    core.later(1.0)
    core.later(1.0)
    assert core.status(MODEL)["phase"] == "Pending"
    assert core.api.objects[MODEL]["metadata"]["labels"] == {"team": "a"}
    assert [write for write in core.api.writes if write[0] == "status"] == [("status", "Relocation/model")]


def test_an_object_that_is_gone_is_forgotten_quietly() -> None:
    core = Core()
    core.see(relocation("team"))
    core.settle()
    core.api.remove(MODEL)
    core.later(1.0)
    assert MODEL not in core.cache
    assert core.queue.failures(MODEL) == 0


def test_work_that_nobody_needs_any_more_is_dropped() -> None:
    core = Core()
    core.api.refuse("apply", NamespaceTerminating("going", status=403))
    core.see(relocation("team"))
    core.settle()
    assert (core.queue.failures(MODEL), core.queue.next_due_seconds) == (0, None)


def test_work_that_a_late_renewal_interrupts_is_taken_up_again() -> None:
    core = Core()
    core.api.refuse("apply", NotLeader("not leading"))
    core.see(relocation("team"))
    core.settle()
    assert core.queue.failures(MODEL) == 1
    assert core.queue.next_due_seconds is not None


def test_nothing_is_made_for_an_object_on_its_way_out() -> None:
    core = Core()
    manifest = relocation("team")
    manifest["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    core.see(manifest)
    core.settle()
    assert core.api.writes == []


def test_an_object_that_cannot_be_read_is_told_so_once_and_others_go_on() -> None:
    core = Core()
    broken = ObjectKey("Relocation", "team", "broken")
    core.see(relocation("team", "broken", source={"from": "the future"}))
    core.see(relocation("team"))
    core.settle()
    conditions = core.status(broken)["conditions"]
    told = [(each["type"], each["status"], each["reason"]) for each in conditions]
    assert told == [("Accepted", "False", "InvalidSpec")]
    assert "spec.source" in conditions[0]["message"]
    assert MEASURE in core.api.objects
    written = len(core.api.writes)
    core.controller.revisit(within=0.0)
    core.settle()
    assert len(core.api.writes) == written


def test_fields_of_a_status_that_this_version_does_not_know_are_kept() -> None:
    core = Core()
    core.see(relocation("team") | {"status": {"fromTheFuture": {"a": 1}}})
    core.settle()
    core.later(1.0)
    assert core.status(MODEL)["fromTheFuture"] == {"a": 1}
    assert core.status(MODEL)["phase"] == "Pending"


@pytest.mark.parametrize("owner_is_there", [True, False])
def test_a_child_of_another_life_is_waited_for_while_the_garbage_collector_takes_it(
    owner_is_there: bool,  # noqa: FBT001  (a case of the test)
) -> None:
    core = Core()
    reference = {"apiVersion": "finetuning.dev/v1alpha1", "kind": "Relocation", "uid": "before", "controller": True}
    name = "other" if owner_is_there else "model"
    if owner_is_there:
        other = relocation("team", "other")
        other["metadata"]["uid"] = "before"
        core.see(other)
        core.settle()
    head = {"name": "model-measure", "namespace": "team", "ownerReferences": [reference | {"name": name}]}
    core.see({"apiVersion": "batch/v1", "kind": "Job", "metadata": head})
    core.see(relocation("team"))
    core.settle()
    core.later(1.0)
    told = message(core.status(MODEL), "measure")
    assert ("belongs to Relocation other" in told) is owner_is_there
    stale = core.api.remove(MEASURE)
    core.wake(core.cache.remove("Job", stale))
    core.later(60.0)
    assert (
        core.api.objects[MEASURE]["metadata"]["ownerReferences"][0]["uid"]
        == (core.api.objects[MODEL]["metadata"]["uid"])
    )


def test_a_conflict_without_a_newer_object_backs_off() -> None:
    core = Core()
    core.api.refuse("status", *[Conflict("odd", status=409)] * 3)
    core.see(relocation("team"))
    core.settle()
    core.later(1.0)
    for _ in range(3):
        core.later(1.0)
    assert core.status(MODEL)["phase"] == "Pending"


def test_policies_of_a_namespace_without_pods_are_not_put_back() -> None:
    core = Core()
    core.queue.add(ObjectKey("NetworkPolicy", "elsewhere", ""))
    core.settle()
    assert core.api.writes == []


def answering(core: Core) -> ObjectKey:
    """Have a server whose model is there, and return its Deployment."""
    key = ObjectKey("InferenceServer", "team", "answers")
    spec = {"model": {"source": "hf://acme/tiny", "revision": "v1"}}
    head = {"name": key.name, "namespace": key.namespace}
    core.see({"apiVersion": "finetuning.dev/v1alpha1", "kind": key.kind, "metadata": head, "spec": spec})
    core.settle()
    [model] = [each for each in core.api.objects.values() if each["kind"] == "Relocation"]
    claim = model["metadata"]["name"]
    core.see({"kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": "team"}, "spec": {}})
    artifact = {"claim": {"claimName": claim, "path": "artifact"}, "digest": DIGEST, "bytes": 1, "files": 1}
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Succeeded",
        "message": "",
        "lastTransitionTime": NOW.isoformat(),
    }
    core.see(model | {"status": {"phase": "Ready", "conditions": [ready], "artifact": artifact}})
    core.settle()
    return ObjectKey("Deployment", key.namespace, key.name)


def edit(core: Core, key: ObjectKey, **change: object) -> None:
    """Change the specification of an object as somebody else would."""
    stored = core.api.objects[key]
    core.see(stored | {"spec": stored["spec"] | change})
    core.settle()


def test_a_server_that_somebody_changed_is_mended_with_one_write() -> None:
    core = Core()
    deployment = answering(core)
    before = core.api.objects[deployment]["spec"]
    core.api.writes.clear()
    edit(core, deployment, replicas=7)
    assert core.api.objects[deployment]["spec"] == before
    assert core.api.writes == [("replace", "Deployment/answers")]


def test_what_an_admission_webhook_insists_on_is_written_once_and_then_left() -> None:
    core = Core()
    deployment = answering(core)
    core.api.admit = lambda manifest: manifest | {"spec": manifest["spec"] | {"replicas": 7}}  # type: ignore[method-assign]
    core.api.writes.clear()
    edit(core, deployment, replicas=7)
    assert core.api.writes == [("replace", "Deployment/answers")]
    core.controller.revisit(within=0.0)
    core.settle()
    assert core.api.writes == [("replace", "Deployment/answers")]
