"""InferenceServer: relocate the base model, find the adapters, run replicas behind one address."""

from dataclasses import dataclass, replace
from datetime import datetime
from posixpath import join

from finetuning_api.base import ClaimRef, Condition, ConditionType, StageState
from finetuning_api.inferenceserver import (
    LONGEST_WAKE,
    IdleStatus,
    InferenceServer,
    InferenceServerPhase,
    ServerVariant,
)
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import AdapterInput, CanaryInput, JobIdentity, LastWords, ModelInput, ServeConfig
from finetuning_api.scaling import DisruptionSpec
from finetuning_api.sources import Scheme
from finetuning_operator.reconcile.accept import refused_paths
from finetuning_operator.reconcile.adapters import Lack, ServedAdapter, resolve
from finetuning_operator.reconcile.allowed import came_with_a_job, refused_amount, refused_number, refused_source
from finetuning_operator.reconcile.conditions import events_between, short_list
from finetuning_operator.reconcile.labels import WAKE, selector
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
from finetuning_operator.reconcile.stages import Outcome, seconds_left, sentences

_TOLD_SECONDS = 1.0
"""After which a server is looked at again whose status is to tell that it is idle."""
_ONE_AT_A_TIME = DisruptionSpec(max_unavailable=1)
_WAYS_IN = frozenset({"Ingress", "HTTPRoute"})
_TOLD_OTHERWISE = frozenset({"Deployment", "Relocation"})
"""Kinds whose hindrances the Ready condition tells."""


@dataclass(frozen=True, slots=True)
class _View:
    """One InferenceServer and what is observed of it."""

    server: InferenceServer
    observed: Observed
    settings: Settings
    idle: IdleStatus | None = None
    """Since when it is shut down because nobody asked it."""

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

    @property
    def is_scaled(self) -> bool:
        """Whether something else decides how many replicas there are."""
        return self.server.spec.autoscaling is not None and self.server.spec.replicas > 0 and not self.is_shut_down

    @property
    def is_shut_down(self) -> bool:
        """Whether the status tells that the server is idle.

        Only then its pods go: afterwards nothing is left that could be asked how long nobody asked.
        """
        return self.idle is not None and self.server.status.idle == self.idle

    @property
    def wanted(self) -> int:
        """Replicas that are to answer."""
        scaling = self.server.spec.autoscaling
        if self.is_shut_down:
            return 0
        if scaling is None or not self.is_scaled:
            return self.server.spec.replicas
        return scaling.min_replicas if self.state.wanted is None else self.state.wanted

    @property
    def most(self) -> int:
        """Replicas that there can be."""
        scaling = self.server.spec.autoscaling
        return scaling.max_replicas if scaling else self.server.spec.replicas

    @property
    def host(self) -> str | None:
        """Name of the server outside the cluster."""
        domain = self.settings.serving_domain if self.server.spec.expose else None
        return f"{self.name}.{self.server.metadata.namespace}.{domain}" if domain else None

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

    Replicas that run are left as they are while a changed specification waits or is refused.
    """
    view = _View(server, observed, settings)
    view = replace(view, idle=_idle(view, now))
    if settings.local:
        return Plan(status=server.status)
    writer = Writer(server.metadata.generation, now)
    refused = _refusal(view)
    if refused is not None:
        return _plan(view, writer, refusal=refused, standing=_failed(refused))
    found = [resolve(server, index, observed) for index in range(len(server.spec.adapters))]
    lacks = tuple(each for each in found if isinstance(each, Lack))
    adapters = tuple(each for each in found if isinstance(each, ServedAdapter))
    refused = next((Refusal(lack.reason, lack.message) for lack in lacks if lack.reason is Reason.INVALID_SPEC), None)
    relocated = _relocate(view)
    model = view.model
    servers = (_server(view, model, adapters),) if model is not None and not lacks else ()
    plan = _plan(
        view,
        writer,
        refusal=refused,
        standing=_standing(view, relocated=relocated, lacks=lacks, adapters=adapters),
        relocated=relocated,
        servers=servers,
        warnings=tuple(each.failure for each in adapters if each.failure),
    )
    return replace(plan, kept_servers=(view.name,) if lacks else (), requeue_after=_look_again(view, now))


def _look_again(view: _View, now: datetime) -> float | None:
    """Return the seconds until a server is to be looked at although nothing changed; None where that is never."""
    if view.idle is None:
        return _idle_left(view, now)
    return None if view.is_shut_down else _TOLD_SECONDS


def _idle(view: _View, now: datetime) -> IdleStatus | None:
    """Return since when a server is shut down because nobody asked it; None for one that is to run.

    It wakes when its specification changes or its annotation does: both are compared with what they were.
    """
    spec, head, was = view.server.spec, view.server.metadata, view.server.status.idle
    if spec.idle_shutdown_minutes is None or spec.replicas == 0:
        return None
    wake = head.annotations.get(WAKE, "")[:LONGEST_WAKE]
    if was is not None and (was.generation, was.wake) == (head.generation, wake):
        asked = view.state.asked_at
        return None if asked is not None and asked > was.since else was
    return IdleStatus(since=now, generation=head.generation, wake=wake) if _idle_left(view, now) == 0 else None


def _idle_left(view: _View, now: datetime) -> float | None:
    """Return the seconds that a server may still be idle; None where nothing counts."""
    minutes = view.server.spec.idle_shutdown_minutes
    return None if minutes is None else seconds_left(minutes * 60, view.state.idle_since, now)


def _refusal(view: _View) -> Refusal | None:
    spec, settings = view.server.spec, view.settings
    named = (("spec.model", spec.model), ("spec.tokenizer", spec.tokenizer))
    amounts = (("spec.resources", spec.resources),)
    replicas = [("spec.replicas", spec.replicas)]
    if spec.autoscaling is not None:
        replicas.append(("spec.autoscaling.maxReplicas", spec.autoscaling.max_replicas))
    refused = refused_paths(named, settings) or refused_number(replicas, settings.bounds)
    if refused is not None or came_with_a_job(view.server, spec.resources, view.observed):
        return refused
    return refused_source(named, settings.sources) or refused_amount(amounts, settings.bounds)


def _relocate(view: _View) -> Outcome:
    storage = view.server.spec.storage
    namespace = view.server.metadata.namespace
    children = relocations(view.needs, namespace=namespace, storage=storage)
    return relocation_outcome(view.needs, view.observed, children, since=None)


def _server(view: _View, model: ModelInput, adapters: tuple[ServedAdapter, ...]) -> Server:
    spec = view.server.spec
    served = _served_name(view, adapters)
    builtin = spec.variant is ServerVariant.BUILTIN
    return Server(
        name=view.name,
        variant=spec.variant,
        port=spec.port,
        replicas=None if view.is_scaled else view.wanted,
        health=spec.health,
        image=spec.image,
        command=tuple(spec.command),
        pre_start=tuple(map(tuple, spec.pre_start)),
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
        autoscaling=spec.autoscaling,
        disruption=spec.disruption or (_ONE_AT_A_TIME if view.most > 1 else None),
        doorway=view.settings.wake_by_request and _has_doorway(view),
        host=view.host,
        former_revisions=spec.revision_history_limit,
    )


def _has_doorway(view: _View) -> bool:
    """Whether a server may be without replicas by itself, and is: also while the first of them loads."""
    spec = view.server.spec
    return spec.idle_shutdown_minutes is not None and spec.replicas > 0 and view.state.ready == 0


def _config(view: _View, model: ModelInput, adapters: tuple[ServedAdapter, ...]) -> ServeConfig:
    metadata = view.server.metadata
    return ServeConfig(
        job=JobIdentity(kind=view.server.kind, name=metadata.name, namespace=metadata.namespace, uid=metadata.uid),
        model=model,
        served_name=_served_name(view, adapters),
        adapters=tuple(
            AdapterInput(
                name=adapter.name, path=view.path(adapter.place), digest=adapter.digest, awaited=adapter.awaited
            )
            for adapter in adapters
        ),
        canary=_canary(view, adapters),
        port=view.server.spec.port,
        tokens_path=view.settings.tokens_path if view.server.spec.auth_secret_ref else None,
    )


def _canary(view: _View, adapters: tuple[ServedAdapter, ...]) -> CanaryInput | None:
    asked = view.server.spec.canary
    if asked is None:
        return None
    stable = asked.stable or _served_name(view, adapters)
    return CanaryInput(name=asked.name, stable=stable, adapter=asked.adapter, weight=asked.weight)


def _served_name(view: _View, adapters: tuple[ServedAdapter, ...]) -> str:
    """Return the name of the base model in requests: its name on the hub, else the server's, unless an adapter's."""
    parsed = view.server.spec.model.parsed
    canary = view.server.spec.canary
    taken = {adapter.name for adapter in adapters} | ({canary.name} if canary else set())
    names = (parsed.location if parsed.scheme is Scheme.HF else view.name, "base", f"{view.name}-base")
    return next(name for name in names if name not in taken)


def _mounts(view: _View, adapters: tuple[ServedAdapter, ...]) -> tuple[ClaimMount, ...]:
    """Return every claim once, read-only."""
    inputs = input_mounts(view.needs, view.observed, view.settings)
    places = [claim_mount(adapter.place.claim_name, view.settings) for adapter in adapters]
    return tuple({mount.claim: mount for mount in (*inputs, *places)}.values())


def _failed(refusal: Refusal) -> _Standing:
    return _Standing(InferenceServerPhase.FAILED, refusal.reason, refusal.message)


def _standing(
    view: _View, *, relocated: Outcome, lacks: tuple[Lack, ...], adapters: tuple[ServedAdapter, ...]
) -> _Standing:
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
    expected = [each for each in adapters if each.expected_from]
    return _running(
        view, "".join(f"; {each.name} follows from FineTuningJob {each.expected_from}" for each in expected)
    )


def _running(view: _View, expected: str) -> _Standing:
    """Return how many replicas answer; ``expected`` tells of adapters that are still to come."""
    wanted, state = view.wanted, view.state
    if wanted == 0:
        return _Standing(InferenceServerPhase.PENDING, Reason.SUSPENDED, _asleep(view))
    answers = f"{state.ready} of {wanted} replicas answer"
    if state.ready >= wanted and state.current:
        return _Standing(InferenceServerPhase.READY, Reason.SERVING, answers + expected)
    phase = InferenceServerPhase.DEGRADED if state.ready else InferenceServerPhase.PENDING
    words = state.hindrance or LastWords(reason=Reason.PENDING)
    if not state.current and not words.message:
        answers = f"{answers}; the newest description is not everywhere yet"
    return _Standing(phase, words.reason, sentences(answers, words.message, words.hint))


def _asleep(view: _View) -> str:
    """Return why no replica is wanted, and how that is changed where it is not plain to see."""
    if view.idle is None:
        why = "autoscaling sees no need of any replica" if view.is_scaled else "spec.replicas is 0"
        return f"{why}: nothing answers"
    why = f"no request for {view.server.spec.idle_shutdown_minutes} min: nothing answers"
    if view.settings.wake_by_request:
        return sentences(why, "The next request starts it")
    head = view.server.metadata
    hint = f'kubectl annotate infs {head.name} -n {head.namespace} --overwrite {WAKE}="$(date)"'
    return sentences(why, f"Wake it: {hint}")


def _plan(
    view: _View,
    writer: Writer,
    *,
    refusal: Refusal | None,
    standing: _Standing,
    relocated: Outcome | None = None,
    servers: tuple[Server, ...] = (),
    warnings: tuple[str, ...] = (),
) -> Plan:
    old, metadata = view.server.status, view.server.metadata
    conditions = _conditions(old.conditions, writer, refusal=refusal, standing=standing)
    status = old.model_copy(
        update={
            "observed_generation": writer.generation,
            "phase": standing.phase,
            "reason": None if standing.phase is InferenceServerPhase.READY else standing.reason,
            "replicas": view.state.replicas,
            "ready_replicas": view.state.ready,
            "selector": selector(view.server.kind, view.name),
            "url": server_url(view.name, namespace=metadata.namespace, port=view.server.spec.port),
            "external_url": _external_url(view),
            "revision": view.state.revision or old.revision,
            "idle": view.idle,
            "warnings": list(short_list((*warnings, *_warnings(view)))),
            "conditions": list(conditions),
        }
    )
    return Plan(
        status=status,
        servers=servers,
        children=relocated.children if relocated else (),
        events=events_between(old.conditions, conditions),
    )


def _external_url(view: _View) -> str:
    """Return the address outside the cluster, empty where nothing leads there."""
    closed = any(kind in _WAYS_IN for kind, _ in view.observed.hindrances)
    return f"{view.settings.serving_scheme}://{view.host}" if view.host and not closed else ""


def _warnings(view: _View) -> tuple[str, ...]:
    """Return what does not work as it was asked for beside the replicas, and what to do."""
    spec, hindrances = view.server.spec, view.observed.hindrances
    found = [
        f"{kind} {name}: {sentences(words.message, words.hint)}"
        for (kind, name), words in sorted(hindrances.items())
        if kind not in _TOLD_OTHERWISE
    ]
    if spec.expose and view.host is None:
        found.append("spec.expose: this installation has no domain for servers (FINETUNING_SERVING_DOMAIN)")
    elif spec.expose and spec.auth_secret_ref is None:
        found.append("spec.expose: everybody who reaches the address may ask; set spec.authSecretRef")
    return tuple(found)


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
