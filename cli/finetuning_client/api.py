"""Requests to an API server on plain dictionaries, with every failure as a ClusterError."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from finetuning_api.base import GROUP, VERSION, Resource
from finetuning_api.schema import NAMES
from finetuning_client.connection import Connection
from finetuning_client.errors import NotFoundError, Request, UnreachableError, explain

Object = dict[str, Any]
"""An object as the API server sends it."""

FIELD_MANAGER = "finetune"
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
_FIRST_ERROR = 400
_VERBS: Mapping[str, str] = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object, as paths and messages need it."""

    name: str
    plural: str
    prefix: str = f"/apis/{GROUP}/{VERSION}"
    aliases: tuple[str, ...] = ()


def kind_of(resource: type[Resource]) -> Kind:
    """Return the paths of a kind of this API."""
    names = NAMES[resource.__name__]
    aliases = (resource.__name__.lower(), names.plural, names.short)
    return Kind(resource.__name__, names.plural, aliases=aliases)


PODS = Kind("Pod", "pods", "/api/v1")
CORE_KINDS: Mapping[str, Kind] = {
    "Secret": Kind("Secret", "secrets", "/api/v1"),
    "ConfigMap": Kind("ConfigMap", "configmaps", "/api/v1"),
}


class Api:
    """One namespace of a cluster."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @property
    def namespace(self) -> str:
        """The namespace that every request is about."""
        return self.connection.namespace

    def get(self, kind: Kind, name: str) -> Object:
        """Return one object. Raises NotFoundError."""
        if not name:
            raise NotFoundError(f"the name of a {kind.name} cannot be empty", "Write a name.")
        return self._json("GET", kind, name)

    def list(self, kind: Kind, *, labels: str = "", fields: str = "") -> Object:
        """Return a list with its resourceVersion; its items carry apiVersion and kind like every object."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        found = self._json("GET", kind, query={key: value for key, value in query.items() if value})
        item_kind = {"apiVersion": found.get("apiVersion", ""), "kind": kind.name}
        return {**found, "items": [item_kind | item for item in found.get("items") or ()]}

    def create(self, kind: Kind, content: Mapping[str, Any]) -> Object:
        """Create an object. Raises RefusedError, and ConflictError where it exists."""
        return self._json("POST", kind, body=content, query={"fieldManager": FIELD_MANAGER, **_STRICT})

    def apply(
        self, kind: Kind, content: Mapping[str, Any], *, name: str, force: bool = False, dry_run: bool = False
    ) -> Object:
        """Create or change an object by server-side apply: fields that the manifest leaves out are left alone."""
        query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower(), **_STRICT}
        query |= {"dryRun": "All"} if dry_run else {}
        return self._json("PATCH", kind, name, body=content, query=query, content="application/apply-patch+yaml")

    def merge(self, kind: Kind, name: str, change: Mapping[str, Any]) -> Object:
        """Change some fields of an object."""
        query = {"fieldManager": FIELD_MANAGER}
        return self._json("PATCH", kind, name, body=change, query=query, content="application/merge-patch+json")

    def delete(self, kind: Kind, name: str) -> None:
        """Delete an object; what it owns is deleted after it."""
        self._json("DELETE", kind, name)

    def watch(self, kind: Kind, name: str, *, version: str, seconds: int) -> Iterator[tuple[str, Object]]:
        """Yield the events of one object since a resourceVersion; ends after ``seconds`` at the latest."""
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        for line in self.stream(kind, query=query, silence=seconds + _CONNECT_SECONDS):
            event = json.loads(line)
            yield event["type"], event["object"]

    def log(self, pod: str, *, query: Mapping[str, str], silence: float | None) -> Iterator[str]:
        """Yield the lines of a pod's log. ``silence`` is how many seconds may pass without one; None is any."""
        yield from self.stream(PODS, pod, sub="log", query=query, silence=silence)

    def stream(
        self, kind: Kind, name: str = "", *, sub: str = "", query: Mapping[str, str], silence: float | None
    ) -> Iterator[str]:
        """Yield the lines of an answer as they come."""
        response = self._send("GET", kind, name, sub=sub, query=query, read_seconds=silence)
        rest = b""
        try:
            with self._reached():
                for chunk in response.response.stream(65536, decode_content=False):
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from (line.decode("utf-8", errors="replace") for line in lines)
        finally:
            response.response.close()
        if rest:
            yield rest.decode("utf-8", errors="replace")

    def _json(
        self,
        method: str,
        kind: Kind,
        name: str = "",
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
    ) -> Object:
        response = self._send(method, kind, name, body=body, query=query or {}, content=content)
        with self._reached():
            found: Object = json.loads(response.read())
        return found

    def _send(
        self,
        method: str,
        kind: Kind,
        name: str = "",
        *,
        query: Mapping[str, str],
        sub: str = "",
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
        read_seconds: float | None = _READ_SECONDS,
    ) -> Any:  # noqa: ANN401  (an untyped class)
        client = self.connection.client
        folder = f"{kind.prefix}/namespaces/{quote(self.namespace, safe='')}/{kind.plural}"
        path = "/".join(filter(None, (folder, quote(name, safe=""), sub)))
        verb = _VERBS.get(method, "get" if name else "list")
        with self._reached():
            sent = client.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content},
                body=dict(body) if body is not None else None,
                auth_settings=["BearerToken"],
            )
            response = client.call_api(*sent, _request_timeout=(_CONNECT_SECONDS, read_seconds))
            if response.status >= _FIRST_ERROR:
                named = name or str(((body or {}).get("metadata") or {}).get("name", ""))
                asked = Request(verb, kind.name, kind.plural, self.namespace, self.connection.server, named)
                raise explain(response.status, response.read(), asked)
        return response

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Tell a failure on the way to the server in one sentence."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (HTTPError, OSError, ApiException, ValueError) as error:
            hint = "Check the network and the address: kubectl cluster-info"
            message = f"cannot reach the cluster at {self.connection.server}: {_brief(error)}"
            raise UnreachableError(message, hint) from error


_STRICT = {"fieldValidation": "Strict"}


def _brief(error: BaseException) -> str:
    """Return what went wrong without the names of objects in memory."""
    text = str(getattr(error, "reason", "") or error)
    if "certificate verify failed" in text:
        return "its certificate is not the one that the kubeconfig trusts"
    if "PEM lib" in text:
        return "the client certificate of the kubeconfig, or its key, cannot be read"
    last = text.rpartition("\n")[2].rpartition(">: ")[2].rpartition("): ")[2] or text
    return last.strip() or type(error).__name__
