"""Takes webhooks and mails as a careful site does: over TLS, from those who know a token or a login. Runs in a pod.

Each thing that it took is a line of JSON on standard output. Certificate and key are ``/tls/tls.crt`` and ``tls.key``.
"""

import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

_WEB_PORT, _MAIL_PORT = 8443, 8587
_TOKEN, _LOGIN = "a-token", LoginPassword(b"finetuning", b"a-password")


class Hook(BaseHTTPRequestHandler):
    """A webhook."""

    def do_POST(self) -> None:
        """Take what is sent with the token."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        known = self.headers["Authorization"] == f"Bearer {_TOKEN}"
        if known:
            _tell("webhook", path=self.path, identity=self.headers["Idempotency-Key"], body=json.loads(body))
        self.send_response(204 if known else 401)
        self.end_headers()


class Mailbox:
    """What a mail server does with a message."""

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.content or b""
        text = content if isinstance(content, str) else content.decode()
        _tell("mail", sender=envelope.mail_from, recipients=envelope.rcpt_tos, content=text)
        return "250 taken"


def _authenticate(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, login: object) -> AuthResult:
    return AuthResult(success=login == _LOGIN, handled=False)


def _tell(kind: str, **facts: object) -> None:
    sys.stdout.write(f"{json.dumps({'kind': kind, **facts})}\n")
    sys.stdout.flush()


def main() -> None:
    """Take what comes until the process ends."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
    mail = Controller(
        Mailbox(),
        hostname="0.0.0.0",  # noqa: S104  (in a pod of its own)
        port=_MAIL_PORT,
        tls_context=tls,
        require_starttls=True,
        auth_required=True,
        authenticator=_authenticate,
    )
    mail.start()
    with ThreadingHTTPServer(("0.0.0.0", _WEB_PORT), Hook) as web:  # noqa: S104
        web.socket = tls.wrap_socket(web.socket, server_side=True)
        web.serve_forever()


if __name__ == "__main__":
    main()
