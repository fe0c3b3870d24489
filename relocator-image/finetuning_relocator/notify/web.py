"""Receivers that are reached over HTTP: one POST, whose answer decides whether it is worth another try."""

import re
from http import HTTPStatus
from typing import Final
from urllib.parse import SplitResult, urlsplit

import httpx2

from finetuning_api.notification import NotificationType
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import NotifyConfig
from finetuning_relocator.faults import unreachable
from finetuning_relocator.notify.keys import Keys
from finetuning_relocator.notify.payloads import payload
from finetuning_workload.errors import EnvironmentFault, ProgramError, UserError

_ANSWER_SECONDS: Final = 20.0
_CONNECT_SECONDS: Final = 10.0
_TRY_AGAIN: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_SLACK_CODE: Final = re.compile(r"[a-z_]{1,64}")
_CODE_BYTES: Final = 65


def post(config: NotifyConfig, keys: Keys) -> str:
    """Send a notification; return the host that took it. Raises ProgramError."""
    address = _address(keys)
    host = address.netloc.rpartition("@")[2]
    content = payload(config)
    headers = {
        "Content-Type": content.content_type,
        # A notification that is sent twice, because nobody knew that the first arrived, has the same key.
        "Idempotency-Key": config.id,
        "User-Agent": "finetuning-operator",
        **_credentials(keys),
    }
    timeout = httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
    try:
        with (
            httpx2.Client(timeout=timeout, follow_redirects=False) as client,
            client.stream("POST", address.geturl(), content=content.body, headers=headers) as response,
        ):
            failure = _failure(response, config, host=host)
    except httpx2.TimeoutException as error:
        raise unreachable(host, "it does not answer") from error
    except httpx2.HTTPError as error:
        raise unreachable(host, type(error).__name__) from error
    except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
        # What these say can hold the address.
        raise _not_usable(keys) from error
    if failure is not None:
        raise failure
    return host


def _address(keys: Keys) -> SplitResult:
    url = keys.require("url")
    try:
        address = urlsplit(url)
        usable = address.scheme in {"http", "https"} and bool(address.hostname) and address.port != 0
    except ValueError as error:
        raise _not_usable(keys) from error
    if not usable:
        raise _not_usable(keys)
    return address


def _not_usable(keys: Keys) -> UserError:
    return keys.refuse("url", "is no address of a web server", hint="Write it as https://host/path, without quotes.")


def _credentials(keys: Keys) -> dict[str, str]:
    """Return the headers that say who sends: a bearer token, and a header of any name."""
    found: dict[str, str] = {}
    if token := keys.get("token"):
        found["Authorization"] = f"Bearer {token}"
    if header := keys.get("header"):
        name, colon, value = header.partition(":")
        if not colon or not name.strip() or not value.strip():
            raise keys.refuse("header", "is no header", hint="Write it as Name: value.")
        found[name.strip()] = value.strip()
    if not all(text.isascii() and text.isprintable() for pair in found.items() for text in pair):
        raise keys.refuse("token or header", "holds what a header cannot", hint="Put it on one line of ASCII letters.")
    return found


def _failure(response: httpx2.Response, config: NotifyConfig, *, host: str) -> ProgramError | None:
    """Return why a notification was not taken, None when it was."""
    status = response.status_code
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    message = f"{host} answered HTTP {status}{_slack_code(response, config)}"
    if status in _TRY_AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return EnvironmentFault(Reason.NOTIFICATION_FAILED, message, "It is tried again with growing pauses.")
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        hint = f"Redirects are not followed; put the final address into key 'url' of the Secret {config.secret!r}."
        return UserError(Reason.NOTIFICATION_FAILED, message, hint)
    hint = f"Check url, token and header of the Secret {config.secret!r}: the receiver does not take this."
    return UserError(Reason.NOTIFICATION_FAILED, message, hint)


def _slack_code(response: httpx2.Response, config: NotifyConfig) -> str:
    """Return what Slack calls the failure; other receivers' answers are not shown, they might repeat the address."""
    if config.type is not NotificationType.SLACK:
        return ""
    try:
        said = next(response.iter_bytes(_CODE_BYTES), b"").decode(errors="replace").strip()
    except httpx2.HTTPError:
        return ""
    return f" ({said})" if _SLACK_CODE.fullmatch(said) else ""
