"""What the operator knows of the cluster: small copies of objects, fed by events and by full lists.

Objects are kept as compressed JSON, because thousands of them rest for every one that is worked on. An object that is
read is decoded anew, so a reader may do with it what it likes. Only what reconciling reads is kept, and a new version
in which nothing of that changed concerns nobody.
"""

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from finetuning_api.base import GROUP
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.reconcile import labels

Manifest = Mapping[str, Any]

OWN_KINDS = frozenset({"FineTuningJob", "EvaluationJob", "Relocation", "InferenceServer"})
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_METADATA = (
    "name",
    "namespace",
    "uid",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "annotations",
    "ownerReferences",
)
"""The version is kept beside: it alone must not make a difference."""
_SILENT_ANNOTATIONS: Mapping[str, tuple[str, ...]] = {
    # Where a volume comes from, written in three steps.
    "PersistentVolumeClaim": ("volume.kubernetes.io/", "volume.beta.kubernetes.io/", "pv.kubernetes.io/"),
    # The whole configuration of its program.
    "Pod": ("",),
}
"""Beginnings of annotations by kind that nobody reads."""
_SILENT_STATUS: Mapping[str, frozenset[str]] = {
    "PersistentVolumeClaim": frozenset({"phase", "accessModes", "capacity"}),
    "Job": frozenset({"active", "ready", "terminating", "uncountedTerminatedPods"}),
}
"""Fields of statuses by kind that nobody reads: of pods, the pods themselves tell."""
_NO_STATUS = frozenset({"HorizontalPodAutoscaler", "PodDisruptionBudget", "Ingress", "HTTPRoute", "ScaledObject"})
"""Kinds of whose status nobody reads anything: that of an autoscaler changes with every look at its metrics."""
_SILENT_SPEC: Mapping[str, frozenset[str]] = {
    "PersistentVolumeClaim": frozenset({"volumeName"}),
}
_ENDED_PODS = frozenset({"Succeeded", "Failed"})
_ENDED = frozenset({"Complete", "Failed"})
_REMEMBERED_DELETIONS = 4096


@dataclass(frozen=True, slots=True)
class _Entry:
    """One object and what the indexes need to know of it."""

    uid: str
    version: int
    content: bytes
    owner: ObjectKey | None
    """The object of ours that it works for, by name: whoever bears that name is told of changes."""
    owner_uid: str
    deleting: bool
    finished: bool
    phase: str
    claims: frozenset[str]
    """Claims that a pod which has not ended mounts."""
    node: str


class Cache:
    """The last known state of every object that matters, with the indexes that reconciling needs.

    ``put``, ``remove``, ``forget`` and ``retain`` return the keys of our objects that a change concerns: the object
    itself, its owner, and whoever refers to it.
    """

    def __init__(self) -> None:
        self._entries: dict[ObjectKey, _Entry] = {}
        self._kinds: defaultdict[str, dict[ObjectKey, None]] = defaultdict(dict)
        self._children: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self._pods: defaultdict[ObjectKey, set[ObjectKey]] = defaultdict(set)
        self._holders: defaultdict[tuple[str, str], dict[str, set[str]]] = defaultdict(dict)
        """By claim: the pods that mount it, by node. Thousands of pods mount the claim of a shared model."""
        self._targets: dict[ObjectKey, frozenset[ObjectKey]] = {}
        self._referrers: defaultdict[ObjectKey, set[ObjectKey]] = defaultdict(set)
        self._users: Counter[tuple[ObjectKey, str]] = Counter()
        """How many objects of a kind refer to one."""
        self._deleted: dict[ObjectKey, int] = {}
        """Version at which an object was seen to be deleted: a list that was made before must not bring it back."""

    def put(self, kind: str, manifest: Manifest) -> frozenset[ObjectKey]:
        """Take an object in, unless something newer is known of it."""
        metadata = manifest["metadata"]
        key = key_of(kind, manifest)
        version = int(metadata["resourceVersion"])
        old = self._entries.get(key)
        known = old.version if old else self._deleted.get(key, -1)
        if version <= known:
            return frozenset()
        new = _entry(kind, manifest)
        self._exchange(key, old, new)
        self._deleted.pop(key, None)
        same = old is not None and old.content == new.content
        return frozenset() if same else self._concerned(key, old, new)

    def remove(self, kind: str, manifest: Manifest) -> frozenset[ObjectKey]:
        """Take note of a deletion; that of an earlier object of the same name changes nothing."""
        metadata = manifest["metadata"]
        key = key_of(kind, manifest)
        version = int(metadata["resourceVersion"])
        old = self._entries.get(key)
        if old is not None and old.uid != metadata["uid"] and old.version > version:
            return frozenset()
        self._remember_deletion(key, version)
        return self._drop(key)

    def expect_deletion(self, key: ObjectKey, uid: str) -> None:
        """Take note that an object was told to go: until its stream says so, nobody shall tell it once more."""
        entry = self._entries.get(key)
        if entry is not None and entry.uid == uid and not entry.deleting:
            manifest = _decode(entry)
            manifest["metadata"]["deletionTimestamp"] = datetime.now(UTC).isoformat(timespec="seconds")
            self._entries[key] = replace(entry, content=_encode(slimmed(key.kind, manifest)), deleting=True)

    def forget(self, key: ObjectKey) -> frozenset[ObjectKey]:
        """Take note that the API server does not know an object."""
        return self._drop(key)

    def retain(
        self, kind: str, listed: Collection[ObjectKey], *, version: int, namespace: str | None = None
    ) -> frozenset[ObjectKey]:
        """Drop what a full list of a kind lacks that was made at ``version``, unless it is newer than the list."""
        concerned: set[ObjectKey] = set()
        for key in self.keys(kind):
            told = (namespace is None or key.namespace == namespace) and key not in listed
            if told and self._entries[key].version <= version:
                concerned |= self._drop(key)
        return frozenset(concerned)

    def get(self, key: ObjectKey) -> dict[str, Any] | None:
        """Return a copy of an object."""
        entry = self._entries.get(key)
        return _decode(entry) if entry else None

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._entries

    def keys(self, kind: str) -> tuple[ObjectKey, ...]:
        """Return every known object of a kind."""
        return tuple(self._kinds.get(kind, ()))

    def identity(self, key: ObjectKey) -> tuple[str, int] | None:
        """Return the uid and the version of an object: two equal identities have equal content."""
        entry = self._entries.get(key)
        return (entry.uid, entry.version) if entry else None

    def is_deleting(self, key: ObjectKey) -> bool:
        """Return whether an object is known and on its way out."""
        entry = self._entries.get(key)
        return entry is not None and entry.deleting

    def is_finished(self, key: ObjectKey) -> bool:
        """Return whether an object is known and has ended for good, by its conditions."""
        entry = self._entries.get(key)
        return entry is not None and entry.finished

    def phase(self, key: ObjectKey) -> str:
        """Return what the status of one of our objects is summed up as; '' for one without a status."""
        entry = self._entries.get(key)
        return entry.phase if entry else ""

    def children(self, owner_uid: str, kind: str) -> tuple[ObjectKey, ...]:
        """Return what an object owns by its uid, in a stable order."""
        return tuple(sorted(key for key in self._children.get(owner_uid, ()) if key.kind == kind))

    def works_in(self, namespace: str) -> bool:
        """Return whether anything that has pods is known in a namespace."""
        return any(key.namespace == namespace for kind in ("Job", "Deployment") for key in self._kinds.get(kind, ()))

    def pods(self, owner: ObjectKey) -> tuple[ObjectKey, ...]:
        """Return the pods that work for an object of ours, whoever made them, in a stable order."""
        return tuple(sorted(self._pods.get(owner, ())))

    def holders(self, namespace: str, claim: str) -> Mapping[str, Set[str]]:
        """Return the pods that mount a claim and have not ended, by node, '' for those that have none yet.

        It is what the cache has, and changes with it.
        """
        return self._holders.get((namespace, claim), {})

    def refer(self, key: ObjectKey, targets: frozenset[ObjectKey]) -> frozenset[ObjectKey]:
        """Note what an object reads; return those that by this are in use by a kind of objects, or no longer are."""
        old = self._targets.get(key, frozenset())
        changed = set()
        for target in old - targets:
            self._referrers[target].discard(key)
            if not self._referrers[target]:
                del self._referrers[target]
            self._users[target, key.kind] -= 1
            if not self._users[target, key.kind]:
                del self._users[target, key.kind]
                changed.add(target)
        for target in targets - old:
            self._referrers[target].add(key)
            self._users[target, key.kind] += 1
            if self._users[target, key.kind] == 1:
                changed.add(target)
        if targets:
            self._targets[key] = targets
        else:
            self._targets.pop(key, None)
        return frozenset(changed)

    def referrers(self, key: ObjectKey) -> tuple[ObjectKey, ...]:
        """Return who reads an object, in a stable order."""
        return tuple(sorted(self._referrers.get(key, ())))

    def counts(self) -> dict[str, int]:
        """Return how many objects of each kind are known."""
        return {kind: len(keys) for kind, keys in self._kinds.items() if keys}

    def _drop(self, key: ObjectKey) -> frozenset[ObjectKey]:
        old = self._entries.get(key)
        if old is None:
            return frozenset()
        self._exchange(key, old, None)
        concerned = self._concerned(key, old, None)
        return concerned | self.refer(key, frozenset())

    def _exchange(self, key: ObjectKey, old: _Entry | None, new: _Entry | None) -> None:
        if old is not None:
            _discard(self._children, old.owner_uid, key)
            _discard(self._pods, old.owner, key)
            self._release_claims(key, old)
            del self._entries[key]
            if new is None:
                del self._kinds[key.kind][key]
        if new is not None:
            self._entries[key] = new
            self._kinds[key.kind][key] = None
            if new.owner_uid:
                self._children[new.owner_uid].add(key)
            if key.kind == "Pod" and new.owner is not None:
                self._pods[new.owner].add(key)
            for claim in new.claims:
                self._holders[key.namespace, claim].setdefault(new.node, set()).add(key.name)

    def _release_claims(self, key: ObjectKey, old: _Entry) -> None:
        for claim in old.claims:
            held = self._holders[key.namespace, claim]
            _discard(held, old.node, key.name)
            if not held:
                del self._holders[key.namespace, claim]

    def _concerned(self, key: ObjectKey, old: _Entry | None, new: _Entry | None) -> frozenset[ObjectKey]:
        concerned = {entry.owner for entry in (old, new) if entry is not None and entry.owner is not None}
        if key.kind in OWN_KINDS:
            concerned |= {key, *self._referrers.get(key, ())}
        if key.kind == "PersistentVolumeClaim" and new is not None and new.deleting:
            # A claim that is deleted stays for as long as a pod mounts it: whose pod that is wants to know.
            pods = (pod for held in self.holders(key.namespace, key.name).values() for pod in held)
            owners = (self._entries[ObjectKey("Pod", key.namespace, pod)].owner for pod in pods)
            concerned |= {owner for owner in owners if owner is not None}
        return frozenset(concerned)

    def _remember_deletion(self, key: ObjectKey, version: int) -> None:
        self._deleted.pop(key, None)
        self._deleted[key] = version
        while len(self._deleted) > _REMEMBERED_DELETIONS:
            del self._deleted[next(iter(self._deleted))]


def key_of(kind: str, manifest: Manifest) -> ObjectKey:
    """Return what an object is called."""
    return ObjectKey(kind, manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"])


def _discard(index: dict[Any, set[Any]], name: object, member: object) -> None:
    members = index.get(name)
    if members is not None:
        members.discard(member)
        if not members:
            del index[name]


def _entry(kind: str, manifest: Manifest) -> _Entry:
    metadata = manifest["metadata"]
    controller = next((each for each in metadata.get("ownerReferences") or () if each.get("controller")), None)
    slim = slimmed(kind, manifest)
    live_pod = kind == "Pod" and manifest.get("status", {}).get("phase") not in _ENDED_PODS
    return _Entry(
        uid=metadata["uid"],
        version=int(metadata["resourceVersion"]),
        content=_encode(slim),
        owner=_owner(metadata, controller),
        owner_uid=controller["uid"] if controller else "",
        deleting="deletionTimestamp" in metadata,
        finished=kind in OWN_KINDS and _has_ended(manifest),
        phase=(manifest.get("status") or {}).get("phase", "") if kind in OWN_KINDS else "",
        claims=frozenset(claims_held(manifest)) if live_pod else frozenset(),
        node=(manifest.get("spec") or {}).get("nodeName", "") if live_pod else "",
    )


def _owner(metadata: Manifest, controller: Manifest | None) -> ObjectKey | None:
    namespace = metadata.get("namespace", "")
    if controller is not None and controller["apiVersion"].startswith(f"{GROUP}/"):
        return ObjectKey(controller["kind"], namespace, controller["name"])
    told = metadata.get("labels") or {}
    if told.get(labels.KIND) in OWN_KINDS and labels.NAME in told:
        return ObjectKey(told[labels.KIND], namespace, told[labels.NAME])
    return None


def _has_ended(manifest: Manifest) -> bool:
    conditions = (manifest.get("status") or {}).get("conditions") or ()
    return any(each.get("type") in _ENDED and each.get("status") == "True" for each in conditions)


def claims_held(pod: Manifest) -> Iterator[str]:
    """Return the claims that a pod mounts."""
    for volume in (pod.get("spec") or {}).get("volumes") or ():
        if "persistentVolumeClaim" in volume:
            yield volume["persistentVolumeClaim"]["claimName"]


def slimmed(kind: str, manifest: Manifest) -> dict[str, Any]:
    """Return the parts of an object that reconciling reads, the version left out."""
    metadata = {name: manifest["metadata"][name] for name in _METADATA if name in manifest["metadata"]}
    rest = {name: value for name, value in manifest.items() if name != "metadata"}
    silent = (_LAST_APPLIED, *_SILENT_ANNOTATIONS.get(kind, ()))
    annotations = metadata.pop("annotations", None) or {}
    if kept := {name: text for name, text in annotations.items() if not name.startswith(silent)}:
        metadata["annotations"] = kept
    if kind == "Pod":
        rest["spec"] = _pod_spec(manifest.get("spec") or {})
    if kind == "Job":
        rest["spec"] = _job_spec(manifest.get("spec") or {})
    if kind in _SILENT_SPEC:
        rest["spec"] = _without(manifest.get("spec"), _SILENT_SPEC[kind])
    if kind in _NO_STATUS:
        rest.pop("status", None)
    if kind in _SILENT_STATUS:
        rest["status"] = _without(manifest.get("status"), _SILENT_STATUS[kind])
    return {"metadata": metadata, **rest}


def _without(part: Manifest | None, fields: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in (part or {}).items() if name not in fields}


def _pod_spec(spec: Manifest) -> dict[str, Any]:
    fields = ("name", "image", "resources")
    containers = spec.get("containers") or ()
    return {
        "nodeName": spec.get("nodeName", ""),
        "containers": [{name: each[name] for name in fields if name in each} for each in containers],
        "volumes": [volume for volume in spec.get("volumes") or () if "persistentVolumeClaim" in volume],
    }


def _job_spec(spec: Manifest) -> dict[str, Any]:
    """Return what is read of a Job's spec: its template holds a whole configuration, of which one label matters here.

    Nobody can edit it there: whatever becomes of the Job's own labels, the template tells which step it runs.
    """
    rest, step = _without(spec, frozenset({"template"})), step_of(spec)
    return rest | ({"template": {"metadata": {"labels": {labels.STEP: step}}}} if step else {})


def step_of(spec: Manifest) -> str | None:
    """Return the step that a Job runs, by its spec; None for one that is not ours."""
    template = (spec.get("template") or {}).get("metadata") or {}
    step: str | None = (template.get("labels") or {}).get(labels.STEP)
    return step


def _encode(slim: Manifest) -> bytes:
    return zlib.compress(json.dumps(slim, separators=(",", ":")).encode(), 1)


def _decode(entry: _Entry) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(zlib.decompress(entry.content))
    decoded["metadata"]["resourceVersion"] = str(entry.version)
    return decoded
