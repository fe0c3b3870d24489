"""InferenceServer: relocate the base model, find the adapters, run replicas behind one address."""

from dataclasses import dataclass
from datetime import datetime
from posixpath import join

from finetuning_api.base import ClaimRef, Condition, ConditionType, StageState
from finetuning_api.finetuningjob import FineTuningJob, MethodType
from finetuning_api.inferenceserver import (
    AdapterRef,
    InferenceServer,
    InferenceServerPhase,
    ServerVariant,
)
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import AdapterInput, JobIdentity, LastWords, ModelInput, ServeConfig
from finetuning_api.sources import Scheme, SourceRef
from finetuning_operator.reconcile.accept import refused_paths
from finetuning_operator.reconcile.conditions import events_between
from finetuning_operator.reconcile.dependencies import Dependency, dependency, made_adapter
from finetuning_operator.reconcile.labels import selector
from finetuning_operator.reconcile.lifecycle import Refusal, Writer
from finetuning_operator.reconcile.names import server_url
from finetuning_operator.reconcile.needs import (
    Need,
    claim_mount,
    input_mounts,
    model_input,
    relocation_outcome,
    relocations,
    server_needs,
)
from finetuning_operator.reconcile.plan import ClaimMount, Observed, Plan, Server, ServerState, Settings
from finetuning_operator.reconcile.stages import Outcome, sentences

_RETRIES = 3
"""Of the relocation of a model that nobody has relocated before."""


@dataclass(frozen=True, slots=True)
class _Adapter:
    """An adapter that can be served."""

    name: str
    place: ClaimRef
    digest: str | None


@dataclass(frozen=True, slots=True)
class _Lack:
    """Why an adapter cannot be served, for now or as long as the specification stays as it is."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class _View:
    """One InferenceServer and what is observed of it."""

    server: InferenceServer
    observed: Observed
    settings: Settings

    @property
    def name(self) -> str:
        return self.server.metadata.name

    @property
    def needs(self) -> tuple[Need, ...]:
        return server_needs(self.server.spec)

    @property
    def model(self) -> ModelInput | None:
        tokenizer = self.needs[1] if len(self.needs) > 1 else None
        return model_input(self.needs[0], tokenizer, observed=self.observed, settings=self.settings)

    @property
    def state(self) -> ServerState:
        return self.observed.servers.get(self.name, ServerState())

    def path(self, place: ClaimRef) -> str:
        return join(self.settings.volumes_root, place.claim_name, place.path).rstrip("/")


@dataclass(frozen=True, slots=True)
class _Standing:
    """Where a server stands, in the words of its Ready condition."""

    phase: InferenceServerPhase
    reason: Reason
    message: str = ""


def reconcile_server(server: InferenceServer, *, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Return what an InferenceServer needs next. It never ends: whatever is wrong with it can be mended.

    Replicas that run are kept while a changed specification waits or is refused; what of it can be served, is.
    """
    view = _View(server, observed, settings)
    if settings.local:
        return Plan(status=server.status)
    writer = Writer(server.metadata.generation, now)
    refused = _refusal(view)
    if refused is not None:
        return _plan(view, writer, refusal=refused, standing=_failed(refused))
    found = [_resolve(view, index, adapter) for index, adapter in enumerate(server.spec.adapters)]
    lacks = tuple(each for each in found if isinstance(each, _Lack))
    adapters = tuple(each for each in found if isinstance(each, _Adapter))
    refused = next((Refusal(lack.reason, lack.message) for lack in lacks if lack.reason is Reason.INVALID_SPEC), None)
    relocated = _relocate(view)
    model = view.model
    runs = model is not None and (not lacks or view.state.replicas > 0)
    servers = (_server(view, model, adapters),) if model is not None and runs else ()
    standing = _standing(view, relocated=relocated, lacks=lacks)
    return _plan(view, writer, refusal=refused, standing=standing, relocated=relocated, servers=servers)


def _refusal(view: _View) -> Refusal | None:
    named = (("spec.model", view.server.spec.model), ("spec.tokenizer", view.server.spec.tokenizer))
    return refused_paths(named, view.settings)


def _relocate(view: _View) -> Outcome:
    storage = view.server.spec.storage
    namespace = view.server.metadata.namespace
    children = relocations(view.needs, namespace=namespace, storage=storage, backoff_limit=_RETRIES)
    return relocation_outcome(view.needs, view.observed, children, since=None)


def _resolve(view: _View, index: int, adapter: AdapterRef) -> _Adapter | _Lack:
    """Return where an adapter lies, or why that cannot be told."""
    if adapter.claim is not None:
        made = made_adapter(adapter.claim, view.observed)
        return _Adapter(adapter.name, adapter.claim, made.digest if made else None)
    maker = dependency(adapter.job_ref or "", view.observed)
    field = f"spec.adapters[{index}].jobRef"
    misfit = _misfit(view, maker, field=field)
    if misfit:
        return _Lack(Reason.INVALID_SPEC, misfit)
    if maker.failure:
        return _Lack(Reason.DEPENDENCY_FAILED, f"{field}: {maker.failure}")
    made = maker.job.status.artifacts.adapter if maker.job else None
    if not maker.complete or made is None:
        return _Lack(Reason.WAITING, f"waits for FineTuningJob {maker.told}")
    return _Adapter(adapter.name, ClaimRef(claim_name=made.claim_name, path=made.path), made.digest)


def _misfit(view: _View, maker: Dependency, *, field: str) -> str:
    """Return why the result of a job can never be an adapter of this server's model; empty where it may be one."""
    spec, job = view.server.spec, maker.job
    if job is None:
        return ""
    if job.spec.method.type is MethodType.FULL:
        made = job.status.artifacts.adapter
        place = f"pvc://{made.claim_name}/{made.path}" if made else "its claim"
        hint = f"Create an InferenceServer without it whose spec.model.source is {place}"
        return sentences(f"{field}: FineTuningJob {maker.name} tunes all weights and makes a model, no adapter", hint)
    if _other_bytes(view, job):
        sources = f"{_named(job.spec.model)}, not {_named(spec.model)}"
        return f"{field}: FineTuningJob {maker.name} tunes {sources}; its adapter fits no other model"
    tokenizer = job.spec.tokenizer
    if tokenizer is not None and (spec.tokenizer is None or _named(tokenizer) != _named(spec.tokenizer)):
        hint = f"Set spec.tokenizer.source to {tokenizer.source}"
        return sentences(f"{field}: FineTuningJob {maker.name} trained with the tokenizer {_named(tokenizer)}", hint)
    return ""


def _other_bytes(view: _View, job: FineTuningJob) -> bool:
    """Whether a job tuned another model: another source, or other bytes of the same one."""
    if job.spec.model.parsed.canonical != view.server.spec.model.parsed.canonical:
        return True
    here, there = view.needs[0].artifact(view.observed), job.status.artifacts.model
    return here is not None and there is not None and here.digest != there.digest


def _named(ref: SourceRef) -> str:
    return f"{ref.source}@{ref.revision}" if ref.revision else ref.source


def _server(view: _View, model: ModelInput, adapters: tuple[_Adapter, ...]) -> Server:
    spec = view.server.spec
    served = _served_name(view, adapters)
    builtin = spec.variant is ServerVariant.BUILTIN
    return Server(
        name=view.name,
        variant=spec.variant,
        port=spec.port,
        replicas=spec.replicas,
        health=spec.health,
        image=spec.image,
        command=tuple(spec.command),
        config=_config(view, model, adapters) if builtin else None,
        model_path=model.path,
        model_name=served,
        adapters=tuple((adapter.name, view.path(adapter.place)) for adapter in adapters),
        env=tuple(spec.env),
        mounts=_mounts(view, adapters),
        auth_secret=spec.auth_secret_ref.name if spec.auth_secret_ref else None,
        resources=spec.resources,
        pod=spec.pod,
        priority_class=spec.priority_class_name,
    )


def _config(view: _View, model: ModelInput, adapters: tuple[_Adapter, ...]) -> ServeConfig:
    metadata = view.server.metadata
    return ServeConfig(
        job=JobIdentity(kind=view.server.kind, name=metadata.name, namespace=metadata.namespace, uid=metadata.uid),
        model=model,
        served_name=_served_name(view, adapters),
        adapters=tuple(
            AdapterInput(name=adapter.name, path=view.path(adapter.place), digest=adapter.digest)
            for adapter in adapters
        ),
        port=view.server.spec.port,
    )


def _served_name(view: _View, adapters: tuple[_Adapter, ...]) -> str:
    """Return the name of the base model in requests: its name on the hub, else the server's, unless an adapter's."""
    parsed = view.server.spec.model.parsed
    taken = {adapter.name for adapter in adapters}
    names = (parsed.location if parsed.scheme is Scheme.HF else view.name, "base", f"{view.name}-base")
    return next(name for name in names if name not in taken)


def _mounts(view: _View, adapters: tuple[_Adapter, ...]) -> tuple[ClaimMount, ...]:
    """Return every claim once, read-only."""
    inputs = input_mounts(view.needs, view.observed, view.settings)
    places = [claim_mount(adapter.place.claim_name, view.settings) for adapter in adapters]
    return tuple({mount.claim: mount for mount in (*inputs, *places)}.values())


def _failed(refusal: Refusal) -> _Standing:
    return _Standing(InferenceServerPhase.FAILED, refusal.reason, refusal.message)


def _standing(view: _View, *, relocated: Outcome, lacks: tuple[_Lack, ...]) -> _Standing:
    """Return where a server stands: first what it lacks, then how many of its replicas answer."""
    if relocated.state is not StageState.SUCCEEDED:
        broken = relocated.state is StageState.FAILED
        phase = InferenceServerPhase.FAILED if broken else InferenceServerPhase.PENDING
        return _Standing(phase, relocated.reason, relocated.message)
    if lacks:
        worst = next((lack for lack in lacks if lack.reason is not Reason.WAITING), None)
        lack = worst or lacks[0]
        phase = InferenceServerPhase.FAILED if worst else InferenceServerPhase.PENDING
        return _Standing(InferenceServerPhase.DEGRADED if view.state.ready else phase, lack.reason, lack.message)
    return _running(view.server.spec.replicas, view.state)


def _running(wanted: int, state: ServerState) -> _Standing:
    if wanted == 0:
        return _Standing(InferenceServerPhase.PENDING, Reason.SUSPENDED, "spec.replicas is 0: nothing answers")
    answers = f"{state.ready} of {wanted} replicas answer"
    if state.ready >= wanted and state.current:
        return _Standing(InferenceServerPhase.READY, Reason.SERVING, answers)
    phase = InferenceServerPhase.DEGRADED if state.ready else InferenceServerPhase.PENDING
    words = state.hindrance or LastWords(reason=Reason.PENDING)
    if not state.current and not words.message:
        answers = f"{answers}; the newest description is not everywhere yet"
    return _Standing(phase, words.reason, sentences(answers, words.message, words.hint))


def _plan(
    view: _View,
    writer: Writer,
    *,
    refusal: Refusal | None,
    standing: _Standing,
    relocated: Outcome | None = None,
    servers: tuple[Server, ...] = (),
) -> Plan:
    old, metadata = view.server.status, view.server.metadata
    conditions = _conditions(old.conditions, writer, refusal=refusal, standing=standing)
    status = old.model_copy(
        update={
            "observed_generation": writer.generation,
            "phase": standing.phase,
            "replicas": view.state.replicas,
            "ready_replicas": view.state.ready,
            "selector": selector(view.server.kind, view.name),
            "url": server_url(view.name, namespace=metadata.namespace, port=view.server.spec.port),
            "conditions": list(conditions),
        }
    )
    return Plan(
        status=status,
        servers=servers,
        children=relocated.children if relocated else (),
        events=events_between(old.conditions, conditions),
    )


def _conditions(
    before: list[Condition], writer: Writer, *, refusal: Refusal | None, standing: _Standing
) -> tuple[Condition, ...]:
    accepted = writer.set(
        before,
        ConditionType.ACCEPTED,
        holds=refusal is None,
        reason=refusal.reason if refusal else Reason.ACCEPTED,
        message=refusal.message if refusal else "",
    )
    return writer.set(
        accepted,
        ConditionType.READY,
        holds=standing.phase is InferenceServerPhase.READY,
        reason=standing.reason,
        message=standing.message,
    )
