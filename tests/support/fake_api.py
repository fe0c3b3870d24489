"""The part of an API server that the core needs, in memory: for what a real one cannot be made to do on purpose."""

import itertools
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from finetuning_operator.cluster.api import ClusterApi, ListResult, Propagation
from finetuning_operator.cluster.errors import AlreadyExists, Conflict, NotFound
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import KindRef

Manifest = dict[str, Any]


class FakeApi(ClusterApi):
    """Stores objects with uids and versions; ``refuse`` answers the next calls of a verb with errors."""

    def __init__(self) -> None:  # No connection is needed.
        self.objects: dict[ObjectKey, Manifest] = {}
        self.writes: list[tuple[str, str]] = []
        """(verb, kind/name) of every write that was done."""
        self._versions = itertools.count(100)
        self._refusals: dict[str, list[Exception]] = {}

    def refuse(self, verb: str, *errors: Exception) -> None:
        self._refusals.setdefault(verb, []).extend(errors)

    def store(self, manifest: Mapping[str, Any]) -> Manifest:
        """Put an object in, as somebody else would, and return it as stored."""
        stored = deepcopy(dict(manifest))
        version = next(self._versions)
        stored["metadata"] = {
            "uid": f"uid-{version}",
            "generation": 1,
            **stored["metadata"],
            "resourceVersion": str(version),
        }
        key = ObjectKey(stored["kind"], stored["metadata"].get("namespace", ""), stored["metadata"]["name"])
        self.objects[key] = stored
        return deepcopy(stored)

    def remove(self, key: ObjectKey) -> Manifest:
        """Take an object out and return it as the event of its deletion tells it."""
        gone = self.objects.pop(key)
        return gone | {"metadata": gone["metadata"] | {"resourceVersion": str(next(self._versions))}}

    async def get(self, kind: KindRef, namespace: str | None, name: str) -> Manifest:
        self._refuse_now("get")
        return deepcopy(self._find(kind, namespace, name))

    async def list(
        self,
        kind: KindRef,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,  # noqa: ARG002  (what is stored here is all ours)
        field_selector: str | None = None,  # noqa: ARG002
        each: Callable[[Manifest], Any] | None = None,
    ) -> ListResult:
        self._refuse_now("list")
        found = [
            deepcopy(stored)
            for key, stored in self.objects.items()
            if key.kind == kind.kind and namespace in {None, key.namespace}
        ]
        return ListResult([each(item) if each else item for item in found], str(next(self._versions)))

    async def create(self, kind: KindRef, namespace: str | None, body: Mapping[str, Any]) -> Manifest:
        self._refuse_now("create")
        name = body["metadata"]["name"]
        if ObjectKey(kind.kind, namespace or "", name) in self.objects:
            raise AlreadyExists(f"{name} exists", status=409)
        return self._wrote("create", self.store(body))

    async def apply(self, kind: KindRef, namespace: str | None, name: str, body: Mapping[str, Any]) -> Manifest:
        self._refuse_now("apply")
        old = self.objects.get(ObjectKey(kind.kind, namespace or "", name), {})
        return self._wrote("apply", self.store(_merged(old, body)))

    async def merge(self, kind: KindRef, namespace: str | None, name: str, body: Mapping[str, Any]) -> Manifest:
        self._refuse_now("patch")
        return self._wrote("patch", self.store(_merged(self._find(kind, namespace, name), body)))

    async def replace_parts(
        self, kind: KindRef, namespace: str | None, name: str, *, parts: Mapping[str, Any], resource_version: str
    ) -> Manifest:
        self._refuse_now("replace")
        found = deepcopy(self._find(kind, namespace, name))
        if found["metadata"]["resourceVersion"] != resource_version:
            raise Conflict("the object has been modified", status=409)
        for place, value in parts.items():
            _, part, field = place.split("/")
            found[part][field] = value
        admitted = self.admit(found)
        unchanged = admitted == self._find(kind, namespace, name)
        return self._wrote("replace", admitted if unchanged else self.store(admitted))

    def admit(self, manifest: Manifest) -> Manifest:
        """Return what admission makes of an object; a test may put its own in this place."""
        return manifest

    async def patch_status(
        self, kind: KindRef, namespace: str | None, name: str, *, status: Mapping[str, Any], resource_version: str
    ) -> Manifest:
        self._refuse_now("status")
        found = self._find(kind, namespace, name)
        if found["metadata"]["resourceVersion"] != resource_version:
            raise Conflict("the object has been modified", status=409)
        return self._wrote("status", self.store(found | {"status": dict(status)}))

    async def delete(
        self,
        kind: KindRef,
        namespace: str | None,
        name: str,
        *,
        uid: str,
        propagation: Propagation = Propagation.BACKGROUND,  # noqa: ARG002  (nothing here has dependents)
    ) -> bool:
        self._refuse_now("delete")
        key = ObjectKey(kind.kind, namespace or "", name)
        if key not in self.objects or self.objects[key]["metadata"]["uid"] != uid:
            return False
        self._wrote("delete", self.objects.pop(key))
        return True

    async def logs(
        self,
        namespace: str,  # noqa: ARG002  (nothing runs here that could write a log)
        pod: str,
        *,
        container: str,  # noqa: ARG002
        tail_lines: int,  # noqa: ARG002
        limit_bytes: int,  # noqa: ARG002
        previous: bool = False,  # noqa: ARG002
    ) -> str:
        raise NotFound(f"no log of {pod}", status=404)

    def _find(self, kind: KindRef, namespace: str | None, name: str) -> Manifest:
        try:
            return self.objects[ObjectKey(kind.kind, namespace or "", name)]
        except KeyError:
            raise NotFound(f"{kind.plural} {name} not found", status=404) from None

    def _refuse_now(self, verb: str) -> None:
        if self._refusals.get(verb):
            raise self._refusals[verb].pop(0)

    def _wrote(self, verb: str, stored: Manifest) -> Manifest:
        self.writes.append((verb, f"{stored['kind']}/{stored['metadata']['name']}"))
        return stored


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> Manifest:
    merged = dict(old)
    for name, value in new.items():
        before = merged.get(name)
        merged[name] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged
