"""Making a plan so: what it wants is created, what it no longer wants is stopped, and what is right is left alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetuning_api.base import GROUP, Resource, Stage, StagedStatus, StageState
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import AccessMode
from finetuning_api.inferenceserver import InferenceServer
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords
from finetuning_operator.cluster.api import ClusterApi, Propagation
from finetuning_operator.cluster.cache import Cache, claims_held
from finetuning_operator.cluster.errors import AlreadyExists, Forbidden, Invalid, NamespaceTerminating, NotFound
from finetuning_operator.cluster.errors import Conflict as ChangedMeanwhile
from finetuning_operator.cluster.failures import explain_api_error
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import (
    CHILD_KINDS,
    CLAIM,
    COMPANION_KINDS,
    DEPLOYMENT,
    JOB,
    NETWORK_POLICY,
    OPTIONAL_KINDS,
    OWN_KINDS,
    POD,
    SERVICE,
    KindRef,
)
from finetuning_operator.cluster.options import Options
from finetuning_operator.cluster.render import (
    ClaimRefusedError,
    ClaimUse,
    Conflict,
    Placement,
    claims_of,
    differs,
    image_of,
    keep,
    lasting_parts,
    place,
    render_child,
    render_companions,
    render_network_policies,
    render_server,
    render_step,
    render_volume,
)
from finetuning_operator.cluster.view import StepJob
from finetuning_operator.reconcile import labels
from finetuning_operator.reconcile.names import child_name
from finetuning_operator.reconcile.plan import Observed, Plan, Server, Step, StepPhase, StepState, Volume
from finetuning_operator.reconcile.tuning import ended_trials

Manifest = dict[str, Any]

_SOON_SECONDS = 1.0
"""When to look again for what leaves no event here: what is on its way out, or does not come to life."""
_PLACES_SECONDS = 5.0
"""When to look again whether the claims of a step can be mounted together."""
_SELDOM_SECONDS = 300.0
"""When to look again for what only an administrator can bring."""
_KINDS = OWN_KINDS | CHILD_KINDS | OPTIONAL_KINDS
_IDENTITY = frozenset({"apiVersion", "kind", "metadata"})
"""What every object has; the rest says what it is."""
_POD_OF_JOB = "batch.kubernetes.io/controller-uid"
"""Label that the Job controller gives to the pods of a Job."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something that the plan wants cannot be made yet."""

    words: LastWords | None = None
    """What to tell the user; None for what passes by itself in a moment."""
    retry_seconds: float | None = None
    """When to try again; None leaves it to the backoff."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a plan."""

    blocked: Mapping[str, Blocked]
    """By step."""
    others: Mapping[tuple[str, str], Blocked] = field(default_factory=dict)
    """By kind and name, of everything but steps."""

    @property
    def complete(self) -> bool:
        """Whether everything that the plan wants is there, or on its way."""
        return not self.blocked and not self.others

    @property
    def retry_seconds(self) -> float | None:
        """When to try again; None leaves it to the backoff, or needs no retry."""
        waits = [blocked.retry_seconds for blocked in (*self.blocked.values(), *self.others.values())]
        known = [wait for wait in waits if wait is not None]
        return min(known) if known and len(known) == len(waits) else None


class Applier:
    """Realises plans. Everything is found by a deterministic name, so a crash between any two calls does no harm.

    Of the API server's refusals only those end here that a user can be told of; all others are raised, and the whole
    pass is repeated.
    """

    def __init__(
        self,
        api: ClusterApi,
        cache: Cache,
        options: Options,
        *,
        wake: Callable[[Iterable[ObjectKey]], None],
        wake_later: Callable[[Iterable[ObjectKey], float], None],
        serves: Callable[[KindRef], bool] = lambda _kind: True,
    ) -> None:
        """``wake`` is told which objects are concerned by what was made: the event of it will tell nothing new.

        ``wake_later`` is told of the one for which it was made, and in how many seconds at the latest that is to be
        looked at again: usually what was made tells of itself before.

        ``serves`` tells whether the cluster knows a kind.
        """
        self._api = api
        self._cache = cache
        self._options = options
        self._wake = wake
        self._wake_later = wake_later
        self._serves = serves
        self._protected: dict[str, dict[ObjectKey, tuple[str, int] | None]] = {}
        """By namespace, the policies that were right, as they were then."""
        self._resisting: dict[ObjectKey, tuple[str, int] | None] = {}
        """Identities at which objects stayed as they were although they were to be mended."""

    async def realise(self, owner: Resource, plan: Plan, *, observed: Observed, jobs: tuple[StepJob, ...]) -> Applied:
        """Make a plan so, but for its status. Raises ApiError."""
        others = {(child.kind, child.metadata.name): await self._child(owner, child) for child in plan.children}
        volumes = [await self._volume(owner, volume) for volume in plan.volumes]
        for volume in plan.volumes:
            await self._release(owner, volume, jobs)
        missing = next((blocked for blocked in volumes if blocked is not None), None)
        blocked: dict[str, Blocked] = {}
        for step in plan.steps:
            # What mounts nothing, like a notification, does not wait for a volume.
            unready = missing if step.mounts else None
            found = unready or await self._step(owner, step, observed=observed, jobs=jobs)
            if found is not None:
                blocked[step.name] = found
        for server in plan.servers:
            others[DEPLOYMENT.kind, server.name] = missing or await self._server(owner, server)
            others |= await self._beside(owner, server)
        await self._stop(plan, observed=observed, jobs=jobs)
        await self._remove_servers(owner, plan)
        return Applied(blocked, {name: each for name, each in others.items() if each is not None})

    async def _child(self, owner: Resource, child: Resource) -> Blocked | None:
        key = ObjectKey(child.kind, owner.metadata.namespace, child.metadata.name)
        owned = bool(child.metadata.owner_references)
        found = self._cache.get(key)
        if found is None:
            return await self._create(owner if owned else None, render_child(child, owner=owner))
        if owned and (blocked := await self._foreign(owner, key, found)) is not None:
            return blocked
        if self._cache.is_deleting(key):
            return Blocked()
        await self._adjust(key, child, found)
        return None

    async def _adjust(self, key: ObjectKey, child: Resource, found: Manifest) -> None:
        """Have an existing child follow the few fields of its plan that may change."""
        if isinstance(child, EvaluationJob):
            # One that went when its time was over, before its job read what came of it, would be made once more.
            wanted: Manifest = {
                "suspend": child.spec.suspend,
                "ttlSecondsAfterFinished": child.spec.ttl_seconds_after_finished,
            }
        elif isinstance(child, InferenceServer):
            canary = child.spec.canary
            wanted = {"replicas": child.spec.replicas, "canary": canary.to_wire() if canary else None}
        else:
            return
        if differs(wanted, found["spec"]):
            # Merged, not applied: what is no longer wanted is to go, whichever way it came.
            body = {"metadata": {"uid": found["metadata"]["uid"]}, "spec": wanted}
            self._learn(key, await self._api.merge(_KINDS[key.kind], key.namespace, key.name, body))

    async def _volume(self, owner: Resource, volume: Volume) -> Blocked | None:
        key = ObjectKey(CLAIM.kind, owner.metadata.namespace, volume.name)
        found = self._cache.get(key)
        if found is not None:
            foreign = await self._foreign(owner, key, found)
            return foreign or (_leaving(key) if self._cache.is_deleting(key) else None)
        try:
            return await self._create(owner, render_volume(volume, owner=owner, options=self._options))
        except ClaimRefusedError as error:
            return Blocked(error.words)

    async def _release(self, owner: Resource, volume: Volume, jobs: tuple[StepJob, ...]) -> None:
        """Let a claim that was deleted go: pods hold it also when they have ended, and only a new one can be used."""
        if not self._cache.is_deleting(ObjectKey(CLAIM.kind, owner.metadata.namespace, volume.name)):
            return
        told = {stage.name for stage in _stages(owner) if stage.state is StageState.SUCCEEDED} | ended_trials(owner)
        for job in jobs:
            held = any(volume.name in claims_held(pod) for pod in job.pods)
            if held and job.step in told and not job.deleting:
                await self._delete(JOB, job.key, uid=job.uid, propagation=Propagation.BACKGROUND)

    async def _step(
        self, owner: Resource, step: Step, *, observed: Observed, jobs: tuple[StepJob, ...]
    ) -> Blocked | None:
        existing = next((job for job in jobs if job.step == step.name), None)
        if existing is None:
            return await self._start(owner, step)
        if existing.deleting:
            return None
        state = observed.steps.get(step.name)
        if state is None and await self._knew_too_little(existing):
            return Blocked()
        # One that ended and took its result with it is made again: its program finds its work done and tells once more.
        # A template cannot be changed, and one with an image that nobody has would wait for ever although the
        # installation was corrected.
        if state is None or self._has_another_image(existing, step, state):
            await self._delete(JOB, existing.key, uid=existing.uid, propagation=Propagation.BACKGROUND)
            return None
        return await self._keep(owner, existing, step)

    async def _keep(self, owner: Resource, job: StepJob, step: Step) -> Blocked | None:
        """Have a Job that somebody edited be found, and have its pods, as it was made to."""
        service = ObjectKey("Service", job.key.namespace, job.key.name)
        if step.workers > 1 and service not in self._cache:
            rendered = render_step(step, owner=owner, options=self._options, placement=Placement())
            return await self._create_all(owner, [each for each in rendered if each["kind"] == "Service"])
        wanted = lasting_parts(step, owner=owner)
        before = self._cache.identity(job.key)
        if not differs(wanted, job.job) or self._resisting.get(job.key) == before:
            return None
        blocked = await self._restore(job.key, job.uid, wanted)
        if blocked is None and self._cache.identity(job.key) == before:
            self._resisting[job.key] = before
        return blocked

    async def _restore(self, key: ObjectKey, uid: str, parts: Manifest) -> Blocked | None:
        """Merge parts into an object, unless another one has its name by now."""
        body = parts | {"metadata": parts["metadata"] | {"uid": uid}}
        try:
            self._learn(key, await self._api.merge(_KINDS[key.kind], key.namespace, key.name, body))
        except (Forbidden, Invalid) as error:
            return _refused(error)
        return None

    def _has_another_image(self, job: StepJob, step: Step, state: StepState) -> bool:
        """Return whether a Job waits for an image that is no longer the installation's."""
        waits = state.hindrance is not None and state.hindrance.reason is Reason.IMAGE_PULL_FAILED
        made_for = job.job["metadata"].get("annotations", {}).get(labels.IMAGE)
        return waits and made_for not in {None, image_of(step, self._options)}

    async def _knew_too_little(self, job: StepJob) -> bool:
        """Ask for the pods of a Job whose result seems lost: of a stream that lags, nothing may be concluded.

        They are compared with what was concluded from, because the stream may have told the rest by now.
        """
        found = await self._api.list(POD, job.key.namespace, label_selector=f"{_POD_OF_JOB}={job.uid}")
        for pod in found.items:
            self._learn(_key_of(pod), pod)
        known = {pod["metadata"]["uid"]: pod["metadata"]["resourceVersion"] for pod in job.pods}
        return any(known.get(pod["metadata"]["uid"]) != pod["metadata"]["resourceVersion"] for pod in found.items)

    async def _start(self, owner: Resource, step: Step) -> Blocked | None:
        namespace = owner.metadata.namespace
        key = ObjectKey(JOB.kind, namespace, child_name(owner.metadata.name, step.name))
        found = self._cache.get(key)
        if found is not None and (blocked := await self._foreign(owner, key, found)) is not None:
            return blocked
        placement = await self._place(namespace, step)
        if isinstance(placement, Blocked):
            return placement
        await self.protect(namespace)
        rendered = render_step(step, owner=owner, options=self._options, placement=placement)
        # The Job last: its pods want to find what they need.
        return await self._create_all(owner, sorted(rendered, key=lambda manifest: manifest["kind"] == JOB.kind))

    async def _place(self, namespace: str, wanted: Step | Server) -> Placement | Blocked:
        uses = [await self._claim_use(namespace, name, read_only) for name, read_only in claims_of(wanted)]
        found = place(uses, holders={use.name: self._cache.holders(namespace, use.name) for use in uses})
        if isinstance(found, Conflict):
            words = LastWords(
                reason=Reason.VOLUME_CONFLICT,
                message=found.message,
                hint="It starts by itself once the pods on one of the nodes have ended.",
            )
            return Blocked(words, retry_seconds=_PLACES_SECONDS)
        return found

    async def _claim_use(self, namespace: str, name: str, read_only: bool) -> ClaimUse:  # noqa: FBT001
        """Return how a claim can be mounted; that of a user is asked for, because only our own are known."""
        claim = self._cache.get(ObjectKey(CLAIM.kind, namespace, name))
        try:
            claim = claim or await self._api.get(CLAIM, namespace, name)
        except NotFound:
            return ClaimUse(name, read_only=read_only)
        modes = claim["spec"].get("accessModes") or (AccessMode.READ_WRITE_ONCE,)
        return ClaimUse(name, access_modes=tuple(modes), read_only=read_only)

    async def protect(self, namespace: str) -> None:
        """Have the network policies of a namespace be there, before the first pod is."""
        known = self._protected.get(namespace)
        if known and all(self._cache.identity(key) == identity for key, identity in known.items()):
            return
        found: dict[ObjectKey, tuple[str, int] | None] = {}
        for policy in render_network_policies(namespace, self._options):
            key = ObjectKey(NETWORK_POLICY.kind, namespace, policy["metadata"]["name"])
            stored = self._cache.get(key)
            if stored is None or differs(policy, stored):
                await self._apply(key, policy)
            found[key] = self._cache.identity(key)
        self._protected[namespace] = found

    async def _server(self, owner: Resource, server: Server) -> Blocked | None:
        namespace = owner.metadata.namespace
        running = self._cache.get(ObjectKey(DEPLOYMENT.kind, namespace, server.name))
        placement: Placement | Blocked | None = None
        if running is not None:
            placement = keep(running, [name for name, _ in claims_of(server)])
        placement = placement or await self._place(namespace, server)
        if isinstance(placement, Blocked):
            return placement
        await self.protect(namespace)
        for manifest in render_server(server, owner=owner, options=self._options, placement=placement):
            blocked = await self._ensure(owner, _awoken(manifest, server, running))
            if blocked is not None:
                return blocked
        return None

    async def _beside(self, owner: Resource, server: Server) -> dict[tuple[str, str], Blocked | None]:
        """Have what stands beside a Deployment be as it is described, and nothing else stand there."""
        told: dict[tuple[str, str], Blocked | None] = {}
        for manifest in render_companions(server, owner=owner, options=self._options):
            kind = _KINDS[manifest["kind"]]
            served = self._serves(kind)
            told[kind.kind, server.name] = await self._ensure(owner, manifest) if served else _not_served(kind)
        for kind in COMPANION_KINDS.values():
            for key in self._cache.children(owner.metadata.uid, kind.kind):
                identity = self._cache.identity(key)
                if (kind.kind, key.name) not in told and identity is not None and not self._cache.is_deleting(key):
                    await self._delete(kind, key, uid=identity[0], propagation=Propagation.BACKGROUND)
        return told

    async def _ensure(self, owner: Resource, manifest: Manifest) -> Blocked | None:
        """Have an object exist as it is described."""
        key = _key_of(manifest)
        found = self._cache.get(key)
        if found is None:
            return await self._create(owner, manifest)
        if (blocked := await self._foreign(owner, key, found)) is not None:
            return blocked
        if differs(manifest, found) and self._resisting.get(key) != self._cache.identity(key):
            try:
                await self._mend(key, manifest, found)
            except (Forbidden, Invalid) as error:
                return _refused(error)
            except ChangedMeanwhile:
                # Not every kind is followed: the next pass compares with what is there now.
                self._learn(key, await self._api.get(_KINDS[key.kind], key.namespace, key.name))
                raise
        return None

    async def _mend(self, key: ObjectKey, manifest: Manifest, found: Manifest) -> None:
        """Have an object be as it is described.

        Whole parts are replaced: a port that somebody renumbered, or a variable that is no longer wanted, would stay
        if they were merged.
        """
        head, known = manifest["metadata"], found["metadata"]
        # A Deployment has fields that others decide, such as its replicas; what stands beside it is ours as a whole.
        whole = {f"/{name}": value for name, value in manifest.items() if name not in _IDENTITY}
        spec = {f"/spec/{name}": value for name, value in manifest.get("spec", {}).items()}
        parts = {
            "/metadata/labels": known.get("labels", {}) | head["labels"],
            "/metadata/annotations": known.get("annotations", {}) | head["annotations"],
            **(whole if key.kind in COMPANION_KINDS else spec),
        }
        before = self._cache.identity(key)
        changed = await self._api.replace_parts(
            _KINDS[key.kind], key.namespace, key.name, parts=parts, resource_version=known["resourceVersion"]
        )
        self._learn(key, changed)
        if self._cache.identity(key) == before:
            # An admission webhook made it what it was: to insist would be a write for every look at it.
            self._resisting[key] = before

    async def _stop(self, plan: Plan, *, observed: Observed, jobs: tuple[StepJob, ...]) -> None:
        """Stop what runs and is not wanted: its pods are asked to save, and the Job is gone when they are."""
        wanted = {step.name for step in plan.steps}
        for job in jobs:
            state = observed.steps.get(job.step)
            runs = state is not None and state.phase in {StepPhase.PENDING, StepPhase.RUNNING}
            if runs and job.step not in wanted and not job.deleting:
                await self._delete(JOB, job.key, uid=job.uid, propagation=Propagation.FOREGROUND)

    async def _remove_servers(self, owner: Resource, plan: Plan) -> None:
        wanted = {*(server.name for server in plan.servers), *plan.kept_servers}
        for key in self._cache.children(owner.metadata.uid, DEPLOYMENT.kind):
            identity = self._cache.identity(key)
            if key.name not in wanted and identity is not None and not self._cache.is_deleting(key):
                await self._delete(DEPLOYMENT, key, uid=identity[0], propagation=Propagation.BACKGROUND)
        # The address of what an object is stays as long as the object; that of what it merely has goes with it.
        for key in self._cache.children(owner.metadata.uid, SERVICE.kind):
            identity = self._cache.identity(key)
            told = (self._cache.get(key) or {}).get("metadata", {}).get("labels") or {}
            gone = labels.COMPONENT in told and key.name not in wanted
            if gone and identity is not None and not self._cache.is_deleting(key):
                await self._delete(SERVICE, key, uid=identity[0], propagation=Propagation.BACKGROUND)

    async def _create_all(self, owner: Resource, manifests: Iterable[Manifest]) -> Blocked | None:
        for manifest in manifests:
            blocked = None if _key_of(manifest) in self._cache else await self._create(owner, manifest)
            if blocked is not None:
                return blocked
        return None

    async def _create(self, owner: Resource | None, manifest: Manifest) -> Blocked | None:
        """Create an object; one of the same name that exists is looked at. ``owner`` None is for what all share."""
        key = _key_of(manifest)
        try:
            self._made(owner, key, await self._api.create(_KINDS[key.kind], key.namespace, manifest))
        except AlreadyExists:
            return await self._look_again(owner, key)
        except NamespaceTerminating:
            raise
        except (Forbidden, Invalid) as error:
            return _refused(error)
        return None

    async def _look_again(self, owner: Resource | None, key: ObjectKey) -> Blocked | None:
        try:
            found = await self._api.get(_KINDS[key.kind], key.namespace, key.name)
        except NotFound:
            self._wake(self._cache.forget(key))
            return Blocked(retry_seconds=_SOON_SECONDS)
        head = found["metadata"]
        if head.get("labels", {}).get(labels.MANAGED_BY) == labels.OPERATOR or key.kind in OWN_KINDS:
            self._learn(key, found)
        elif owner is not None and _owner_uid(head) == owner.metadata.uid and "deletionTimestamp" not in head:
            # Somebody took the label off it by which it is watched: without it, nothing more would be heard of it.
            return await self._restore(key, head["uid"], {"metadata": {"labels": {labels.MANAGED_BY: labels.OPERATOR}}})
        return None if owner is None else await self._foreign(owner, key, found)

    async def _foreign(self, owner: Resource, key: ObjectKey, found: Manifest) -> Blocked | None:
        """Return what to wait for, or to tell, where an object of the right name is not this owner's."""
        head = found["metadata"]
        if _owner_uid(head) == owner.metadata.uid:
            return None
        if "deletionTimestamp" in head:
            return Blocked(retry_seconds=_SOON_SECONDS)
        reference = _controller(head)
        if reference is not None and await self._is_gone(key.namespace, reference):
            # The garbage collector is about to take it.
            return Blocked(retry_seconds=_SOON_SECONDS)
        return Blocked(_name_conflict(key, head, reference))

    async def _is_gone(self, namespace: str, reference: Mapping[str, Any]) -> bool:
        kind = OWN_KINDS.get(reference["kind"])
        if kind is None or not reference["apiVersion"].startswith(f"{GROUP}/"):
            return False
        known = self._cache.identity(ObjectKey(kind.kind, namespace, reference["name"]))
        if known is not None and known[0] == reference["uid"]:
            return False
        try:
            found = await self._api.get(kind, namespace, reference["name"])
        except NotFound:
            return True
        return bool(found["metadata"]["uid"] != reference["uid"])

    async def _apply(self, key: ObjectKey, manifest: Manifest) -> None:
        self._learn(key, await self._api.apply(_KINDS[key.kind], key.namespace, key.name, manifest))

    async def _delete(self, kind: KindRef, key: ObjectKey, *, uid: str, propagation: Propagation) -> None:
        if await self._api.delete(kind, key.namespace, key.name, uid=uid, propagation=propagation):
            self._cache.expect_deletion(key, uid)
        else:
            self._wake(self._cache.forget(key))

    def _made(self, owner: Resource | None, key: ObjectKey, manifest: Manifest) -> None:
        concerned = self._cache.put(key.kind, manifest)
        if owner is not None:
            asking = ObjectKey(owner.kind, owner.metadata.namespace, owner.metadata.name)
            concerned -= {asking}
            self._wake_later((asking,), _SOON_SECONDS)
        self._wake(concerned)

    def _learn(self, key: ObjectKey, manifest: Manifest) -> None:
        self._wake(self._cache.put(key.kind, manifest))


def _key_of(manifest: Mapping[str, Any]) -> ObjectKey:
    head = manifest["metadata"]
    return ObjectKey(manifest["kind"], head["namespace"], head["name"])


def _controller(head: Mapping[str, Any]) -> Mapping[str, Any] | None:
    references = head.get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), None)


def _owner_uid(head: Mapping[str, Any]) -> str:
    """Return whose an object is: a claim that outlives its owner tells it in a label."""
    reference = _controller(head)
    told = reference["uid"] if reference else (head.get("labels") or {}).get(labels.OWNER_UID, "")
    return str(told)


def _stages(owner: Resource) -> Sequence[Stage]:
    status = getattr(owner, "status", None)
    return status.stages if isinstance(status, StagedStatus) else ()


def _leaving(claim: ObjectKey) -> Blocked:
    words = LastWords(
        reason=Reason.VOLUME_UNAVAILABLE,
        message=f"claim {claim.name} is being deleted",
        hint="It is made again, empty, once no pod uses it.",
    )
    # When it is gone, its event has the owner looked at.
    return Blocked(words)


def _awoken(manifest: Manifest, server: Server, running: Manifest | None) -> Manifest:
    """Return a Deployment that an autoscaler can scale: it leaves one without replicas as it is."""
    asleep = running is not None and manifest["kind"] == DEPLOYMENT.kind and running["spec"].get("replicas") == 0
    if not asleep or server.replicas is not None or server.autoscaling is None or server.autoscaling.keda is not None:
        return manifest
    return manifest | {"spec": manifest["spec"] | {"replicas": server.autoscaling.min_replicas}}


def _not_served(kind: KindRef) -> Blocked:
    words = LastWords(
        reason=Reason.UNSUPPORTED,
        message=f"this cluster knows no {kind.plural}.{kind.group}",
        hint="Install what serves them; the operator finds out within some minutes.",
    )
    return Blocked(words, retry_seconds=_SELDOM_SECONDS)


def _refused(error: Forbidden | Invalid) -> Blocked:
    return Blocked(explain_api_error(error))


def _name_conflict(key: ObjectKey, head: Mapping[str, Any], reference: Mapping[str, Any] | None) -> LastWords:
    told = head.get("labels") or {}
    if reference is not None:
        whose = f"belongs to {reference['kind']} {reference['name']}"
    elif labels.OWNER_UID in told:
        whose = f"was kept from an earlier {told.get(labels.KIND, 'object')} {told.get(labels.NAME, '')}".rstrip()
    else:
        whose = "was not made by the operator"
    return LastWords(
        reason=Reason.NAME_CONFLICT,
        message=f"{key.kind} {key.name} exists and {whose}",
        hint=f"Delete it (kubectl delete {_KINDS[key.kind].plural} {key.name} -n {key.namespace}) or choose another"
        " name for this object.",
    )
