"""Receivers that are reached by e-mail: one message over SMTP, encrypted unless the Secret says otherwise."""

import hashlib
import logging
import smtplib
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, getaddresses
from enum import StrEnum
from html import escape
from typing import Final

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import NotifyConfig
from finetuning_relocator.faults import unreachable
from finetuning_relocator.notify.keys import Keys
from finetuning_relocator.notify.text import plain, title
from finetuning_workload.errors import EnvironmentFault, ProgramError, UserError

_LOG = logging.getLogger(__name__)
_SECONDS: Final = 20.0
_PERMANENT: Final = 500
_LONGEST_PORT: Final = 65535


class Encryption(StrEnum):
    """How a connection to a mail server is encrypted."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


_PORTS: Final = {Encryption.STARTTLS: 587, Encryption.TLS: 465, Encryption.NONE: 25}


def mail(config: NotifyConfig, keys: Keys) -> str:
    """Send a notification; return the mail server that took it. Raises ProgramError."""
    host, port, encryption = _server(keys)
    message = _message(config, keys)
    with _explained(host, keys), _connected(host, port=port, encryption=encryption) as server:
        if user := keys.get("username"):
            server.login(user, keys.require("password"))
        refused = server.send_message(message)
    if refused:
        _LOG.warning("%s refused %d of the recipients; the others have the message", host, len(refused))
    return host


def _server(keys: Keys) -> tuple[str, int, Encryption]:
    host = keys.require("host")
    try:
        encryption = Encryption((keys.get("tls") or Encryption.STARTTLS).lower())
    except ValueError as error:
        raise keys.refuse("tls", "is not known", hint="Write starttls, tls or none.") from error
    port = keys.get("port") or str(_PORTS[encryption])
    if not (port.isascii() and port.isdecimal() and 0 < int(port) <= _LONGEST_PORT):
        raise keys.refuse("port", "is no port", hint="Write a number, for example 587.")
    return host, int(port), encryption


@contextmanager
def _connected(host: str, *, port: int, encryption: Encryption) -> Iterator[smtplib.SMTP]:
    context = ssl.create_default_context()
    if encryption is Encryption.TLS:
        with smtplib.SMTP_SSL(host, port, timeout=_SECONDS, context=context) as server:
            yield server
        return
    with smtplib.SMTP(host, port, timeout=_SECONDS) as server:
        if encryption is Encryption.STARTTLS:
            server.starttls(context=context)
        yield server


@contextmanager
def _explained(host: str, keys: Keys) -> Iterator[None]:
    """Turn what the client raises into what to do about it; what a server says is not told, it might repeat a login."""
    try:
        yield
    except smtplib.SMTPAuthenticationError as error:
        hint = f"Check username and password of the Secret {keys.secret!r}."
        raise _refused(host, "the login", codes=[error.smtp_code], hint=hint) from error
    except smtplib.SMTPNotSupportedError as error:
        hint = f"Set tls of the Secret {keys.secret!r} to what the server offers: starttls, tls or none."
        raise UserError(Reason.NOTIFICATION_FAILED, f"{host} does not offer what was asked for", hint) from error
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        raise _refused(host, "every recipient", codes=codes, hint=f"Check to of the Secret {keys.secret!r}.") from error
    except smtplib.SMTPResponseException as error:
        hint = f"Check from and to of the Secret {keys.secret!r}."
        raise _refused(host, "the message", codes=[error.smtp_code], hint=hint) from error
    except ssl.SSLCertVerificationError as error:
        hint = "Use a host that its certificate names, and a certificate that this image trusts."
        raise UserError(Reason.NOTIFICATION_FAILED, f"the certificate of {host} is not trusted", hint) from error
    except UnicodeError as error:
        hint = "Use letters of ASCII."
        raise keys.refuse(
            "host, username or password", "holds letters that the protocol cannot carry", hint=hint
        ) from error
    except (OSError, smtplib.SMTPException) as error:
        raise unreachable(host, type(error).__name__) from error


def _refused(host: str, what: str, *, codes: Iterable[int], hint: str) -> ProgramError:
    """Return the failure for answers of a mail server; those that begin with 4 are worth another try."""
    told = sorted(set(codes))
    message = f"{host} refused {what} ({', '.join(map(str, told))})"
    if any(code < _PERMANENT for code in told):
        return EnvironmentFault(Reason.NOTIFICATION_FAILED, message, "It is tried again with growing pauses.")
    return UserError(Reason.NOTIFICATION_FAILED, message, hint)


def _message(config: NotifyConfig, keys: Keys) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = title(config)
    message["From"] = _addresses(keys, "from")[:1]
    message["To"] = _addresses(keys, "to")
    message["Date"] = format_datetime(config.time)
    # The same for every try, so that a mailbox can drop the second.
    message["Message-ID"] = f"<{hashlib.sha256(config.id.encode()).hexdigest()[:40]}@finetuning.dev>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(plain(config))
    # Columns only stay columns in a font of equal widths.
    message.add_alternative(f"<html><body><pre>{escape(plain(config))}</pre></body></html>", subtype="html")
    return message


def _addresses(keys: Keys, key: str) -> list[Address]:
    hint = "Write name@example.com, or several with commas between them."
    given = keys.require(key)
    found = [pair for pair in getaddresses([given]) if any(pair)]
    try:
        addresses = [Address(display_name=name, addr_spec=spec) for name, spec in found]
    except (ValueError, IndexError, HeaderParseError) as error:
        raise keys.refuse(key, "is no e-mail address", hint=hint) from error
    whole = all(each.username and each.domain for each in addresses)
    if not (addresses and whole and given.isprintable()):
        raise keys.refuse(key, "is no e-mail address", hint=hint)
    return addresses
