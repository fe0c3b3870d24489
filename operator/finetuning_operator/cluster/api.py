"""The one way to the API server: plain dicts in and out, every failure an ApiError, every write within its rate.

Objects are not turned into models: that costs more than everything else that the operator does with them.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from finetuning_operator.cluster.errors import (
    ApiError,
    Conflict,
    Gone,
    NotFound,
    NotLeader,
    Throttled,
    Unauthorized,
    Unavailable,
    error_of,
)
from finetuning_operator.cluster.kinds import KindRef

FIELD_MANAGER = "finetuning-operator"

_JSON = "application/json"
_APPLY_PATCH = "application/apply-patch+yaml"
_MERGE_PATCH = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"
_CHUNK = 25
"""Objects that are read at once: nobody else has a turn while they are parsed. A hundred pods take 30 ms."""
_WATCH_SECONDS = 300
"""After which the server ends a stream."""
_SILENT_SECONDS = 70.0
"""A server sends a bookmark each minute where nothing else happens: a stream that is silent for longer is dead."""
_LONGEST_PATIENCE = 15.0
"""Seconds that one call may spend waiting for a busy server before the queue has it again."""


class Propagation(StrEnum):
    """What becomes of an object's dependents when it is deleted."""

    FOREGROUND = "Foreground"
    BACKGROUND = "Background"
    ORPHAN = "Orphan"


@dataclass(frozen=True, slots=True)
class Call:
    """One request, for the metrics. ``code`` is the HTTP status, or 0 where no answer came."""

    verb: str
    resource: str
    code: int
    seconds: float


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """What a watch stream tells: ADDED, MODIFIED or DELETED with the object, or BOOKMARK with a version alone."""

    type: str
    object: dict[str, Any]

    @property
    def version(self) -> str:
        """The version after which to go on watching."""
        return str(self.object["metadata"]["resourceVersion"])


@dataclass(frozen=True, slots=True)
class ListResult:
    """Objects and the resource version at which they were all true."""

    items: list[Any]
    resource_version: str


class TokenBucket:
    """Lets ``burst`` pass at once and ``rate`` a second at length, first come, first served."""

    def __init__(self, *, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._tokens = self._burst
        self._filled_at = clock()

    def reserve(self) -> float:
        """Take a token and return the seconds to wait for it."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)


@dataclass(frozen=True, slots=True)
class _Request:
    verb: str
    """Kubernetes' name of what is done: get, list, create, apply, patch, delete."""
    method: str
    path: str
    resource: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    content_type: str = _JSON
    guarded: bool = False
    """Whether this is a write that needs leadership and counts against the rate."""


class ClusterApi:
    """Calls to the API server. ``may_write`` is asked immediately before each write leaves the process.

    A process that is frozen in just that moment sends this one write when it wakes, as a slow network would: statuses
    are tied to a version, deletions to a uid and children to a name, and whatever else is too much the leader removes.

    A server that is busy and says when to come back (429 or 503 with Retry-After) is asked again for a bounded time;
    every other failure is raised at once, as an ApiError, because the queue knows better when to try again.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        bucket: TokenBucket,
        may_write: Callable[[], bool] = lambda: True,
        on_call: Callable[[Call], None] = lambda _call: None,
        timeout: float = 30.0,
        patience: float = _LONGEST_PATIENCE,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._may_write = may_write
        self._on_call = on_call
        self._timeout = timeout
        self._patience = patience

    def unguarded(self, *, rate: float, burst: int, timeout: float) -> "ClusterApi":
        """Return an API over the same connections that writes without leadership, at its own rate, and never waits."""
        bucket = TokenBucket(rate=rate, burst=burst)
        return ClusterApi(self._client, bucket=bucket, on_call=self._on_call, timeout=timeout, patience=0.0)

    async def close(self) -> None:
        await self._client.close()

    async def get(self, kind: KindRef, namespace: str | None, name: str) -> dict[str, Any]:
        """Return an object. Raises NotFound."""
        return await self._json(_Request("get", "GET", kind.path(namespace, name), kind.plural))

    async def list(
        self,
        kind: KindRef,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        each: Callable[[dict[str, Any]], Any] | None = None,
    ) -> ListResult:
        """Return all objects, read in chunks; ``each`` turns every object into what is kept of it as its chunk arrives.

        Where the list outlives the server's memory of its beginning, it is read again in one piece.
        """
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        query = {name: value for name, value in selectors.items() if value}
        try:
            return await self._list(kind, namespace, query=query, limit=_CHUNK, each=each)
        except Gone:
            return await self._list(kind, namespace, query=query, limit=0, each=each)

    async def watch(
        self, kind: KindRef, namespace: str | None, *, label_selector: str | None, resource_version: str
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yield what happens to objects after a version, until the server ends the stream. Raises ApiError.

        Gone says that the version is too old: what happened since must be listed.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        if label_selector:
            query["labelSelector"] = label_selector
        async with aclosing(self._lines(_Request("watch", "GET", kind.path(namespace), kind.plural, query))) as lines:
            async for line in lines:
                yield _watch_event(line)

    async def create(self, kind: KindRef, namespace: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object and return it as stored. Raises AlreadyExists."""
        query = {"fieldManager": FIELD_MANAGER}
        path = kind.path(namespace)
        return await self._json(_Request("create", "POST", path, kind.plural, query=query, body=body, guarded=True))

    async def create_raw(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post a review, such as a TokenReview: nothing is stored, so it needs neither leadership nor a token."""
        return await self._json(_Request("create", "POST", path, path.rsplit("/", 1)[-1], body=body))

    async def apply(self, kind: KindRef, namespace: str | None, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create or update the fields of ``body`` by server-side apply, taking them over from other managers."""
        request = _Request(
            "apply",
            "PATCH",
            kind.path(namespace, name),
            kind.plural,
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            body=body,
            content_type=_APPLY_PATCH,
            guarded=True,
        )
        return await self._json(request)

    async def merge(self, kind: KindRef, namespace: str | None, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Merge ``body`` into an object; a ``metadata.resourceVersion`` in it raises Conflict if the object changed."""
        return await self._patch(kind, kind.path(namespace, name), body=body, content_type=_MERGE_PATCH)

    async def replace_parts(
        self, kind: KindRef, namespace: str | None, name: str, *, parts: Mapping[str, Any], resource_version: str
    ) -> dict[str, Any]:
        """Replace whole parts of an object, by their JSON pointers. Raises Conflict if it is not at that version."""
        operations = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
            *({"op": "add", "path": place, "value": value} for place, value in parts.items()),
        ]
        return await self._patch(kind, kind.path(namespace, name), body=operations, content_type=_JSON_PATCH)

    async def patch_status(
        self,
        kind: KindRef,
        namespace: str | None,
        name: str,
        *,
        status: Mapping[str, Any],
        resource_version: str,
    ) -> dict[str, Any]:
        """Replace the whole status and return the object. Raises Conflict if it is not at ``resource_version``.

        The resource version is written, not tested: the server answers a failed test with 422 and no reason, but a
        resource version that is not the current one with a conflict. Objects of the same name never share one.
        """
        operations = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]
        path = kind.path(namespace, name, "status")
        return await self._patch(kind, path, body=operations, content_type=_JSON_PATCH)

    async def delete(
        self,
        kind: KindRef,
        namespace: str | None,
        name: str,
        *,
        uid: str,
        propagation: Propagation = Propagation.BACKGROUND,
    ) -> bool:
        """Delete the object of this uid and return whether it was still there."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation.value,
            "preconditions": {"uid": uid},
        }
        path = kind.path(namespace, name)
        try:
            await self._send(_Request("delete", "DELETE", path, kind.plural, body=body, guarded=True))
        except (NotFound, Conflict):
            # A conflict can only mean that another object has the name by now.
            return False
        return True

    async def logs(
        self, namespace: str, pod: str, *, container: str, tail_lines: int, limit_bytes: int, previous: bool = False
    ) -> str:
        """Return the end of a container's log. Raises NotFound or BadRequest where there is none (yet)."""
        query = {"container": container, "tailLines": str(tail_lines), "limitBytes": str(limit_bytes)}
        if previous:
            query["previous"] = "true"
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        return (await self._send(_Request("get", "GET", path, "pods/log", query=query))).decode(errors="replace")

    async def _list(
        self,
        kind: KindRef,
        namespace: str | None,
        *,
        query: Mapping[str, str],
        limit: int,
        each: Callable[[dict[str, Any]], Any] | None,
    ) -> ListResult:
        items: list[Any] = []
        page: dict[str, Any] = {}
        async for page in self._pages(kind, kind.path(namespace), query=query, limit=limit):
            for item in page["items"]:
                # Items of built-in kinds do not say what they are.
                item.setdefault("apiVersion", kind.api_version)
                item.setdefault("kind", kind.kind)
                items.append(each(item) if each else item)
                # To take in a thousand objects takes a fifth of a second, in which reports would wait.
                await asyncio.sleep(0)
        return ListResult(items, page["metadata"]["resourceVersion"])

    async def _pages(
        self, kind: KindRef, path: str, *, query: Mapping[str, str], limit: int
    ) -> AsyncIterator[dict[str, Any]]:
        chunk = {**query, "limit": str(limit)} if limit else dict(query)
        while True:
            page = await self._json(_Request("list", "GET", path, kind.plural, query=chunk))
            yield page
            following = page["metadata"].get("continue")
            if not following:
                return
            chunk["continue"] = following

    async def _patch(
        self, kind: KindRef, path: str, *, body: Mapping[str, Any] | Sequence[Any], content_type: str
    ) -> dict[str, Any]:
        request = _Request(
            "patch",
            "PATCH",
            path,
            kind.plural,
            query={"fieldManager": FIELD_MANAGER},
            body=body,
            content_type=content_type,
            guarded=True,
        )
        return await self._json(request)

    async def _json(self, request: _Request) -> dict[str, Any]:
        body = await self._send(request)
        try:
            content = json.loads(body)
        except ValueError:
            message = f"the answer to {request.method} {request.path} is no JSON: {body[:80]!r}"
            raise Unavailable(message) from None
        if not isinstance(content, dict):
            message = f"the answer to {request.method} {request.path} is no object"
            raise Unavailable(message)
        return content

    async def _send(self, request: _Request) -> bytes:
        """Send a request, again while the server asks for patience. Raises ApiError."""
        if request.guarded:
            await asyncio.sleep(self._bucket.reserve())
        patience = self._patience
        while True:
            try:
                return await self._exchange(request)
            except (Throttled, Unavailable) as error:
                pause = _asked_pause(error)
                if pause is None or pause > patience:
                    raise
                patience -= pause
                await asyncio.sleep(pause)

    async def _exchange(self, request: _Request) -> bytes:
        """Send a request once and return the body of a good answer. Raises ApiError."""
        headers = await self._headers(request)
        if request.guarded and not self._may_write():
            message = f"{request.verb} {request.path} was not sent: this process does not lead"
            raise NotLeader(message)
        started = time.monotonic()
        code = 0
        limits = aiohttp.ClientTimeout(total=self._timeout, connect=min(10.0, self._timeout))
        try:
            answer = await self._open(request, headers, limits)
            code, body = answer.status, await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _unanswered(request, error) from error
        finally:
            self._on_call(Call(request.verb, request.resource, code, time.monotonic() - started))
        if code >= HTTPStatus.MULTIPLE_CHOICES:
            raise error_of(code, body, answer.headers)
        return body

    async def _lines(self, request: _Request) -> AsyncGenerator[bytes, None]:
        """Send a request and yield the lines of its answer as they come. Raises ApiError."""
        headers = await self._headers(request)
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=_SILENT_SECONDS)
        started = time.monotonic()
        answer: aiohttp.ClientResponse | None = None
        try:
            answer = await self._open(request, headers, limits)
            self._on_call(Call(request.verb, request.resource, answer.status, time.monotonic() - started))
            if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
                raise error_of(answer.status, await answer.read(), answer.headers)
            rest = b""
            async for piece in answer.content.iter_any():
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    yield line
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _unanswered(request, error) from error
        finally:
            if answer is not None:
                answer.close()

    async def _headers(self, request: _Request) -> dict[str, str]:
        headers = {
            "Accept": _JSON,
            "Content-Type": request.content_type,
            "User-Agent": FIELD_MANAGER,
        }
        # Reads the service account's token again once it is a minute old: projected tokens are replaced.
        try:
            await self._client.update_params_for_auth(
                headers, None, ["BearerToken"], request.path, request.method, request.body
            )
        except (kubernetes_config.ConfigException, OSError) as error:
            message = f"the token of the service account cannot be read: {error}"
            raise Unavailable(message) from error
        return headers

    async def _open(
        self, request: _Request, headers: Mapping[str, str], limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        url = self._client.configuration.host + request.path
        if request.query:
            url += "?" + urlencode(request.query)
        answer = await self._client.rest_client.request(
            request.method, url, headers=headers, body=request.body, _request_timeout=limits
        )
        opened: aiohttp.ClientResponse = answer.response
        return opened


def _unanswered(request: _Request, error: Exception) -> Unavailable:
    return Unavailable(f"{request.method} {request.path}: {str(error) or type(error).__name__}")


def _watch_event(line: bytes) -> WatchEvent:
    """Return what a line of a watch stream tells. Raises ApiError for what tells of an error."""
    try:
        content = json.loads(line)
        event = WatchEvent(content["type"], content["object"])
        if event.type != "ERROR":
            return event
        code = int(event.object["code"])
    except (KeyError, TypeError, ValueError):
        message = f"a watch stream tells something unknown: {line[:80]!r}"
        raise Unavailable(message) from None
    raise error_of(code, json.dumps(event.object), {})


def _asked_pause(error: ApiError) -> float | None:
    """Return the seconds after which a busy server wants the same request again, None where it does not want that."""
    if error.retry_after is None or error.status not in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return None
    # A server that says "0" would be asked in a busy loop.
    return max(error.retry_after, 0.1)


async def connect(kubeconfig: str | None = None) -> ApiClient:
    """Return a client with the pod's own service account, else with what KUBECONFIG or ~/.kube/config names.

    ``kubeconfig`` names a file that goes before both. Raises Unauthorized where none can be used.
    """
    # Watch streams hold connections for as long as the process lives; whoever asks else is bounded by the workers.
    # An environment that is trusted would be searched for ~/.netrc before each request, by a thread; of proxies, kopf
    # does not believe it either.
    configuration = Configuration(connection_pool_maxsize=0, client_session_kwargs={"trust_env": False})
    if kubeconfig is not None:
        await _load_kubeconfig(configuration, kubeconfig)
        return ApiClient(configuration)
    try:
        kubernetes_config.load_incluster_config(client_configuration=configuration)
    except kubernetes_config.ConfigException:
        await _load_kubeconfig(configuration, None)
    return ApiClient(configuration)


async def _load_kubeconfig(configuration: Configuration, path: str | None) -> None:
    try:
        await kubernetes_config.load_kube_config(config_file=path, client_configuration=configuration)
    except (kubernetes_config.ConfigException, OSError) as error:
        message = f"no way to a cluster: not in a pod, and no usable kubeconfig ({error}); set KUBECONFIG"
        raise Unauthorized(message) from error
