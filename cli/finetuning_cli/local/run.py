"""One local run: load objects, reconcile, make it so, wait, and again, until what the manifest asks for is done."""

import signal
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Protocol

from finetuning_api.base import Resource
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob, Preset
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation, RelocationPhase
from finetuning_api.validation import validate_update
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.progress_server import ProgressServer
from finetuning_cli.local.steps import PROGRAMS, Runner
from finetuning_cli.local.store import Key, Store, key_of
from finetuning_cli.local.trust import damage, require_adapter, restart
from finetuning_cli.local.wake import Wake
from finetuning_cli.manifest import Manifest
from finetuning_operator.reconcile import reconcile, references
from finetuning_operator.reconcile.conditions import is_terminal
from finetuning_operator.reconcile.dependencies import job_refs
from finetuning_operator.reconcile.export import is_exporting
from finetuning_operator.reconcile.notify import is_notifying
from finetuning_operator.reconcile.plan import ImageRole, Observed, Plan, Settings
from finetuning_operator.reconcile.track import is_tracking
from finetuning_workload.errors import UserError
from finetuning_workload.files import explained_os_errors, write_atomically

_TICK_SECONDS = 1.0
_MOST_ROUNDS = 64
"""Rounds of reconciling without waiting; far more than a chain of children is long."""


class Display(Protocol):
    """Whoever shows a run to the user."""

    def show(self, objects: Mapping[Key, Resource], roots: tuple[Key, ...]) -> None:
        """Show where everything stands."""

    def note(self, text: str) -> None:
        """Say one thing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    objects: Mapping[Key, Resource]
    roots: tuple[Key, ...]
    stopped_by: signal.Signals | None
    transferred_bytes: int
    """Bytes that came over the network in this run."""


class LocalRun:
    """Realises the plans of what a manifest asks for and of everything that follows from it."""

    def __init__(
        self,
        layout: Layout,
        manifest: Manifest,
        *,
        lock: int,
        display: Display,
        programs: Mapping[ImageRole, str] = PROGRAMS,
        presets: Mapping[str, Preset] = MappingProxyType({}),
    ) -> None:
        self._layout = layout
        self._manifest = manifest
        self._display = display
        self._settings = Settings(
            volumes_root=str(layout.volumes),
            config_maps_root=str(layout.config_maps),
            scores_path=str(layout.scores),
            local=True,
            presets=presets,
        )
        self._store = Store(layout)
        self._wake = Wake()
        self._progress = ProgressServer(self._wake.notify)
        self._runner = Runner(layout, lock=lock, progress=self._progress, secrets=manifest.secrets, programs=programs)
        self._objects: dict[Key, Resource] = {}
        self._active: dict[Key, None] = {}
        """What this run works on, in the order it was met."""
        self._brought: set[Key] = set()
        """Relocations that were not ready when this run met them."""
        self._stops_told = 0

    def run(self) -> Outcome:
        """Work until everything that the manifest asks for has ended, or until a signal; call in the main thread."""
        try:
            with self._wake.signals():
                self._prepare()
                self._loop()
        finally:
            # Whatever still runs after an error saves and ends by itself; it keeps the lock until then.
            self._runner.drain()
            self._progress.close()
            self._wake.close()
        return Outcome(
            objects=self._objects,
            roots=self._roots,
            stopped_by=self._wake.stop_signal,
            transferred_bytes=self._transferred(),
        )

    @property
    def _roots(self) -> tuple[Key, ...]:
        return tuple(key_of(resource) for resource in self._manifest.resources)

    def _prepare(self) -> None:
        with explained_os_errors("write the state folder"):
            write_atomically(self._layout.token, self._progress.token)
            self._layout.token.chmod(0o600)
            for name, files in self._manifest.config_maps.items():
                for key, content in files.items():
                    write_atomically(self._layout.config_maps / name / key, content)
        self._objects = self._store.all()
        for resource in self._manifest.resources:
            self._admit(resource)

    def _admit(self, wanted: Resource) -> None:
        """Take an object of the manifest in: new, as it is stored, or with a change that is allowed."""
        key = key_of(wanted)
        stored = self._objects.get(key)
        if stored is None:
            self._put(_born(wanted))
        else:
            require_unchanged(stored, wanted)
            self._put(_resumed(_with_spec(stored, wanted)))
        self._activate(key)
        current = self._objects[key]
        for job in self._results_of(current):
            require_adapter(self._layout, job)

    def _results_of(self, resource: Resource) -> tuple[FineTuningJob, ...]:
        """Return the jobs whose results an object reads: itself, and until it has ended what it is compared with."""
        names = () if _rests(resource) else job_refs(resource)
        jobs = [resource, *(self._objects.get((FineTuningJob.__name__, name)) for name in names)]
        return tuple(job for job in jobs if isinstance(job, FineTuningJob))

    def _loop(self) -> None:
        while True:
            self._runner.reap()
            self._obey()
            self._settle()
            self._display.show(self._objects, self._roots)
            if self._done():
                return
            self._wake.wait(min(_TICK_SECONDS, self._runner.seconds_to_next_start() or _TICK_SECONDS))

    def _done(self) -> bool:
        if self._runner.running:
            return False
        return self._runner.draining or all(_rests(self._objects[key]) for key in self._roots) or self._stuck()

    def _stuck(self) -> bool:
        """Whether nothing runs and nothing will: somebody waits for an object that this run does not work on."""
        if self._runner.seconds_to_next_start() is not None:
            return False
        waiting = [self._objects[key] for key in self._roots if not _rests(self._objects[key])]
        told = [f"{resource.kind} {resource.metadata.name} {_waits_for(resource)}" for resource in waiting]
        hint = "Run the manifest of what it waits for, or put both into one file."
        raise UserError(Reason.WAITING, "; ".join(told), hint)

    def _obey(self) -> None:
        """React to signals: the first asks the steps to save, the second ends them."""
        requests = self._wake.requests
        if requests > self._stops_told and self._runner.running:
            if self._stops_told == 0:
                self._display.note("stopping after a checkpoint; press Ctrl-C again to kill")
            else:
                self._display.note("killed; the next run goes on from the last checkpoint")
        if requests >= 1:
            self._runner.drain()
        if requests > 1:
            self._runner.kill()
        self._stops_told = requests

    def _settle(self) -> None:
        """Reconcile everything until nothing changes."""
        for _ in range(_MOST_ROUNDS):
            changes = [self._realise(key) for key in tuple(self._active)]
            if not any(changes):
                return

    def _realise(self, key: Key) -> bool:
        """Make one object's plan so; return whether anything changed."""
        resource = self._objects[key]
        plan = reconcile(resource, observed=self._observe(resource), now=_now(), settings=self._settings)
        with explained_os_errors("write the state folder"):
            for volume in plan.volumes:
                (self._layout.volumes / volume.name).mkdir(parents=True, exist_ok=True)
        adopted = [self._adopt(child) for child in plan.children]
        saved = self._put(resource.model_copy(update={"status": plan.status}))
        for event in plan.events:
            if event.reason in {Reason.NOTIFICATION_FAILED, Reason.EXPORT_FAILED, Reason.TRACKING_FAILED}:
                self._display.note(event.message)
        started = self._start(resource, plan)
        return any(adopted) or saved or started

    def _start(self, resource: Resource, plan: Plan) -> bool:
        return self._runner.apply(resource, plan.steps)

    def _observe(self, resource: Resource) -> Observed:
        return Observed(steps=self._runner.observe(resource), resources=self._objects)

    def _adopt(self, child: Resource) -> bool:
        """Make a child exist and work on it; what exists already is shared as it is."""
        key = key_of(child)
        existing = self._objects.get(key)
        if existing is None:
            self._put(_born(child))
        elif isinstance(existing, EvaluationJob) and isinstance(child, EvaluationJob):
            self._put(_with_spec(existing, child))
        met = key in self._active
        self._activate(key)
        return existing is None or not met

    def _activate(self, key: Key) -> None:
        """Work on an object from now on, and look first at what earlier runs left for it."""
        if key in self._active:
            return
        self._active[key] = None
        resource = self._objects[key]
        if not _rests(resource):
            used = references(resource, lambda kind, name: self._objects.get((kind, name)))
            for relocation in sorted(each for each in used if each[0] == "Relocation" and each in self._objects):
                self._activate(relocation)
        if isinstance(resource, Relocation):
            self._recheck(resource)
            if not _is_ready(self._objects[key]):
                self._brought.add(key)

    def _recheck(self, relocation: Relocation) -> None:
        """A failure of an earlier run is tried again, and an artifact of an earlier run is looked at before its use."""
        name = relocation.metadata.name
        if relocation.status.phase is RelocationPhase.FAILED:
            why = "its relocation failed earlier and is tried again"
        elif is_terminal(relocation.status.conditions) or _is_ready(relocation):
            problem = damage(self._layout, relocation)
            if not problem:
                return
            why = f"{name} is damaged ({problem}) and is brought again"
        else:
            return
        self._display.note(f"{relocation.spec.source}: {why}")
        self._runner.forget(relocation, ("measure", "relocate", "convert", "verify"))
        self._put(restart(self._layout, relocation))

    def _put(self, resource: Resource) -> bool:
        self._objects[key_of(resource)] = resource
        return self._store.save(resource)

    def _transferred(self) -> int:
        found = [self._objects[key] for key in self._brought]
        return sum(each.status.transferred_bytes or 0 for each in found if isinstance(each, Relocation))


def require_unchanged(stored: Resource, wanted: Resource) -> None:
    """Raise UserError naming what changed when a manifest differs from the stored object in a field that is fixed."""
    errors = validate_update(stored.to_wire(), wanted.to_wire())
    if not errors:
        return
    name = stored.metadata.name
    changes = _changes(stored.to_wire().get("spec"), wanted.to_wire().get("spec"), place="spec")
    hint = f"Give the new job a name of its own, or remove the old one: finetune delete {name}"
    message = f"{stored.kind} {name} exists with another specification:\n" + "\n".join(changes)
    raise UserError(Reason.INVALID_SPEC, message, hint)


def _changes(old: object, new: object, *, place: str) -> list[str]:
    if old == new:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = dict.fromkeys([*old, *new])
        return [line for key in names for line in _changes(old.get(key), new.get(key), place=f"{place}.{key}")]
    note = " (the content of the local source changed)" if place.endswith((".checksum", ".revision")) else ""
    return [f"  {place}: {_shown(old)} -> {_shown(new)}{note}"]


def _shown(value: object) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004  (one line of a terminal)


def _born(resource: Resource) -> Resource:
    """Return an object as an API server would store it first."""
    born = {"uid": str(uuid.uuid4()), "creation_timestamp": _now()}
    return resource.model_copy(update={"metadata": resource.metadata.model_copy(update=born)})


def _with_spec(stored: Resource, wanted: Resource) -> Resource:
    """Return the stored object with the wanted specification, as a new generation when it differs."""
    specs = [getattr(resource, "spec", None) for resource in (stored, wanted)]
    if specs[0] == specs[1]:
        return stored
    generation = stored.metadata.generation + 1
    metadata = stored.metadata.model_copy(update={"generation": generation})
    return stored.model_copy(update={"metadata": metadata, "spec": specs[1]})


def _resumed(resource: Resource) -> Resource:
    """Return an object whose time between two runs does not count against its deadline."""
    limited = isinstance(resource, FineTuningJob | EvaluationJob) and resource.spec.active_deadline_seconds
    if not limited or _rests(resource) or not isinstance(resource, FineTuningJob | EvaluationJob):
        return resource
    return resource.model_copy(update={"status": resource.status.model_copy(update={"start_time": None})})


def _rests(resource: Resource) -> bool:
    """Whether nothing more happens to an object in this run."""
    match resource:
        case FineTuningJob() | EvaluationJob():
            quiet = is_terminal(resource.status.conditions) or resource.spec.suspend
            return quiet and not (
                isinstance(resource, FineTuningJob)
                and (is_notifying(resource) or is_exporting(resource) or is_tracking(resource))
            )
        case Relocation():
            return is_terminal(resource.status.conditions) or _is_ready(resource)
    return True


def _is_ready(resource: Resource) -> bool:
    return isinstance(resource, Relocation) and resource.status.phase is RelocationPhase.READY


def _waits_for(resource: Resource) -> str:
    stages = resource.status.stages if isinstance(resource, FineTuningJob | EvaluationJob | Relocation) else []
    return next((stage.message for stage in stages if stage.message), "waits")


def _now() -> datetime:
    """Return the time as objects carry it: whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)
