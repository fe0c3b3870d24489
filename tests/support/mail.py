"""A mail server on loopback: real SMTP, with TLS and logins where a test wants them."""

import asyncio
import email
import email.policy
import ssl
import threading
from email.message import EmailMessage
from types import TracebackType
from typing import Any, Self

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

USER, PASSWORD = "ft", "pa55word"
_SECONDS = 30.0


class MailServer:
    """Keeps what it takes, and refuses the recipients it is told to."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, **options: Any) -> None:  # noqa: ANN401  (those of SMTP)
        self.taken: list[Envelope] = []
        self.refused: dict[str, str] = {}
        """By recipient, what is answered."""
        self.port = 0
        self._options = options
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mail-server", daemon=True)

    def message(self) -> EmailMessage:
        """Return the only message that was taken."""
        [envelope] = self.taken
        assert isinstance(envelope.content, bytes)
        found = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(found, EmailMessage)
        return found

    async def handle_RCPT(  # noqa: N802  (the name that SMTP looks for)
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.taken.append(envelope)
        return "250 taken"

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SECONDS)
        self._loop.close()

    async def _listen(self) -> int:
        def protocol() -> SMTP:
            return SMTP(self, hostname="127.0.0.1", loop=self._loop, authenticator=_authenticate, **self._options)

        server = await self._loop.create_server(protocol, "127.0.0.1", 0, ssl=self._tls)
        return int(server.sockets[0].getsockname()[1])


def _authenticate(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, login: object) -> AuthResult:
    # Not handled: the refusal itself is left to the server.
    return AuthResult(success=login == LoginPassword(USER.encode(), PASSWORD.encode()), handled=False)
