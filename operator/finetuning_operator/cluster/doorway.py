"""Who answers for a server that has no replica: nobody else can tell a client to come again, or notice that it came."""

import logging
from collections.abc import Callable

from aiohttp import web

from finetuning_operator.cluster.cache import Cache
from finetuning_operator.cluster.keys import ObjectKey
from finetuning_operator.cluster.kinds import INFERENCE_SERVER
from finetuning_operator.cluster.listener import Listener

_LOGGER = logging.getLogger(__name__)
_RETRY_SECONDS = 10
"""Long enough for a small model to be there, short enough for clients that look at it at all: some stop at 60."""


class Doorway(Listener):
    """Answers every request with an error that clients of OpenAI's API try again by themselves, and asks for a start.

    Which server is meant is told by the name that the client used: the operator is one address for all of them. Nothing
    of a request is read but its head, and nothing is known of its token: who reaches a server's address may wake it.
    """

    def __init__(self, cache: Cache, *, ask: Callable[[ObjectKey], None]) -> None:
        """``ask`` is told of the server that is to have replicas again."""
        super().__init__(web.route("*", "/{path:.*}", self._answer))
        self._cache = cache
        self._ask = ask

    async def _answer(self, request: web.Request) -> web.Response:
        key = self._meant(request.host)
        if key is None:
            return _error(
                404,
                "no server that is shut down when idle is known by this name; ask for <name>.<namespace>.svc",
                code="unknown_server",
            )
        _LOGGER.info("a request asks for InferenceServer %s/%s", key.namespace, key.name)
        self._ask(key)
        return _error(
            503, f"{key.name} has no replica that answers: one is being started; try again soon", code="starting"
        )

    def _meant(self, host: str) -> ObjectKey | None:
        """Return the server of a host name: in the cluster or outside, always <name>.<namespace> and more.

        A client in the server's own namespace may use the name alone, which must then be the only one of its kind.
        """
        name, namespace, *_ = [*host.partition(":")[0].lower().split("."), ""]
        keys = [key for key in self._cache.keys(INFERENCE_SERVER.kind) if key.name == name and self._is_ours(key)]
        found = [key for key in keys if namespace in {"", key.namespace}]
        return found[0] if len(found) == 1 else None

    def _is_ours(self, key: ObjectKey) -> bool:
        return bool((self._cache.get(key) or {}).get("spec", {}).get("idleShutdownMinutes"))


def _error(status: int, message: str, *, code: str) -> web.Response:
    """Return an error as OpenAI's API writes it. The connection is closed: the next one may meet a replica."""
    kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004  (the server's faults)
    content = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    answer = web.json_response(content, status=status, headers={"Retry-After": str(_RETRY_SECONDS)})
    answer.force_close()
    return answer
