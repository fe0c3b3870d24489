"""Connections that do not wait for ever: uvicorn bounds idle ones, this bounds those whose head never ends."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

_LAST_SECONDS = 1
"""For one more request on a connection that was not announced to be closed, once the server ends."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with a bound on the time that a client takes for the head of a request.

    The same bound holds for what a client still sends of a body after it was answered, for example because the body was
    too large: that is read and thrown away, so that the client gets to read its answer, but not for ever.
    """

    head_seconds: float = 10.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self._wait_for_client()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering:
            self._stop_waiting()
        else:
            self._wait_for_client()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._wait_for_client()

    @property
    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever uvicorn declares
        return cycle is not None and not cycle.response_complete

    def shutdown(self) -> None:
        """Let the connection end when the server does.

        Uvicorn closes an idle one at once and a busy one behind its answer. A client whose answer began before there
        was a reason to announce that may send its next request at that very moment, and lose it. So the connection
        stays for a moment, in which one more request is answered, with the announcement.
        """
        self.timeout_keep_alive = _LAST_SECONDS
        if not self._is_answering:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(_LAST_SECONDS, self.timeout_keep_alive_handler)

    def _wait_for_client(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def patient_protocol(head_seconds: float) -> type[PatientProtocol]:
    """Return a protocol with another bound."""
    return type("PatientProtocol", (PatientProtocol,), {"head_seconds": head_seconds})
