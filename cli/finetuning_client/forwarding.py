"""A connection to a port of a pod through the API server, as ``kubectl port-forward`` makes it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from typing import Any

from finetuning_client.api import Api
from finetuning_client.errors import ClusterError, UnreachableError

_ANSWER_SECONDS = 600.0
_FIRST_ERROR = 400


class PodConnection:
    """HTTP with one port of a pod."""

    def __init__(self, http: HTTPConnection, pod: str) -> None:
        self._http = http
        self._pod = pod

    def ask(self, path: str, content: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401  (JSON)
        """Return the JSON that the pod answers: to a POST where there is content. Raises ClusterError."""
        body = json.dumps(content) if content is not None else None
        try:
            headers = {"Content-Type": "application/json"}
            self._http.request("POST" if body is not None else "GET", path, body=body, headers=headers)
            response = self._http.getresponse()
            answer = response.read()
        except (OSError, HTTPException) as error:
            hint = f"See its log: kubectl logs {self._pod}"
            raise UnreachableError(f"the pod {self._pod} does not answer {path}: {error!r}", hint) from error
        if response.status >= _FIRST_ERROR:
            text = answer.decode("utf-8", errors="replace")[:500]
            raise ClusterError(f"the pod {self._pod} answers {response.status} to {path}: {text}")
        try:
            return json.loads(answer)
        except ValueError as error:
            raise ClusterError(f"the pod {self._pod} answers no JSON to {path}") from error


@contextmanager
def forwarded(api: Api, pod: str, port: int) -> Iterator[PodConnection]:
    """Yield a connection to a port of a pod. Raises ClusterError where the cluster does not make one."""
    from kubernetes.client import CoreV1Api
    from kubernetes.client.exceptions import ApiException
    from kubernetes.stream import portforward

    core = CoreV1Api(api.connection.client)
    try:
        forward = portforward(
            core.connect_get_namespaced_pod_portforward, pod, api.namespace, ports=str(port), _request_timeout=30
        )
    except (ApiException, OSError) as error:
        reason = str(getattr(error, "reason", "") or error).strip()
        hint = f"It needs the right to create pods/portforward in the namespace {api.namespace}."
        raise UnreachableError(f"cannot forward a port of the pod {pod}: {reason}", hint) from error
    http = HTTPConnection("localhost", port, timeout=_ANSWER_SECONDS)
    http.sock = forward.socket(port)
    http.sock.settimeout(_ANSWER_SECONDS)
    try:
        yield PodConnection(http, pod)
    finally:
        forward.close()
