"""Connections to a port of a pod through the API server, as ``kubectl port-forward`` makes them."""

from http.client import HTTPConnection
from typing import Any

from finetuning_client.api import Api
from finetuning_client.errors import UnreachableError

_ANSWER_SECONDS = 600.0


class ForwardedConnection(HTTPConnection):
    """HTTP with one port of a pod; a request opens what an earlier one closed."""

    def __init__(self, api: Api, pod: str, port: int) -> None:
        super().__init__("localhost", port, timeout=_ANSWER_SECONDS)
        self._api = api
        self._pod = pod
        self._forward: Any = None

    def connect(self) -> None:
        """Open the connection. Raises UnreachableError where the cluster does not make one."""
        from kubernetes.client import CoreV1Api
        from kubernetes.client.exceptions import ApiException
        from kubernetes.stream import portforward

        core = CoreV1Api(self._api.connection.client)
        try:
            self._forward = portforward(
                core.connect_get_namespaced_pod_portforward,
                self._pod,
                self._api.namespace,
                ports=str(self.port),
                _request_timeout=30,
            )
        except (ApiException, OSError) as error:
            reason = str(getattr(error, "reason", "") or error).strip()
            hint = f"It needs the right to create pods/portforward in the namespace {self._api.namespace}."
            raise UnreachableError(f"cannot forward a port of the pod {self._pod}: {reason}", hint) from error
        self.sock = self._forward.socket(self.port)
        self.sock.settimeout(_ANSWER_SECONDS)

    def close(self) -> None:
        """End the connection and what it goes through."""
        super().close()
        if self._forward is not None:
            self._forward.close()
            self._forward = None
