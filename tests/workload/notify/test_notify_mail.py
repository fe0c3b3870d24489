"""Notifications by e-mail, to a real SMTP server with and without TLS and logins."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.mail import PASSWORD, USER, MailServer
from tests.support.notify import TABLE, config, run, send
from tests.support.relocator import Relocator, assert_refused
from tests.support.tls import Certificate

from finetuning_api.notification import NotificationType
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import NotifyConfig, NotifyResult
from finetuning_workload.errors import EnvironmentFault, UserError

PEOPLE = {"from": "Fine-tuning <ft@example.com>", "to": "ada@example.com, Ben <ben@example.com>"}
EMAIL: NotifyConfig = config(NotificationType.EMAIL)
Serve = Callable[..., tuple[MailServer, dict[str, str]]]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """``serve("starttls")`` starts a mail server whose certificate is trusted; returns it, and the keys to reach it."""
    certificate = Certificate.make(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
    with ExitStack() as stack:

        def start(tls: str = "none", **options: Any) -> tuple[MailServer, dict[str, str]]:  # noqa: ANN401
            context = certificate.server_context()
            if tls == "starttls":
                options |= {"tls_context": context, "require_starttls": True}
            server = stack.enter_context(MailServer(tls=context if tls == "tls" else None, **options))
            return server, {"host": "127.0.0.1", "port": str(server.port), "tls": tls, **PEOPLE}

        yield start


def test_a_message_has_the_numbers_as_text_and_as_html(serve: Serve) -> None:
    server, keys = serve()

    result = send(EMAIL, **keys)

    [envelope] = server.taken
    message = server.message()
    assert result == NotifyResult(host="127.0.0.1")
    assert (envelope.mail_from, envelope.rcpt_tos) == ("ft@example.com", ["ada@example.com", "ben@example.com"])
    assert message["Subject"] == "FineTuningJob team-a/triage succeeded"
    assert message["Date"] == "Sun, 01 Mar 2026 12:00:00 +0000"
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert TABLE in plain.get_content().replace("\r\n", "\n")
    assert "Gate: Pass (0.8 &gt;= 0.1)" in html.get_content()


def test_a_message_that_is_sent_again_has_the_same_identity(serve: Serve) -> None:
    server, keys = serve()
    identities = []
    for _ in range(2):
        send(EMAIL, **keys)
        identities.append(str(server.message()["Message-ID"]))
        server.taken.clear()

    assert identities[0] == identities[1]
    assert identities[0].endswith("@finetuning.dev>")


@pytest.mark.parametrize("tls", ["tls", "starttls"])
def test_a_login_goes_over_an_encrypted_connection(serve: Serve, tls: str) -> None:
    # A server that speaks TLS from the first byte does not count it as TLS that was asked for.
    server, keys = serve(tls, auth_required=tls == "starttls", auth_require_tls=tls == "starttls")

    send(EMAIL, username=USER, password=PASSWORD, **keys)

    assert len(server.taken) == 1


def test_a_wrong_password_is_a_mistake_of_the_user_and_stays_hidden(serve: Serve, tmp_path: Path) -> None:
    server, keys = serve("starttls", auth_required=True)

    ended = run(Relocator(tmp_path / "home"), EMAIL, username=USER, password="wr0ng", **keys)

    assert_refused(ended, "NotificationFailed", "127.0.0.1 refused the login (535)", "the Secret 'hook'")
    assert "wr0ng" not in ended.log + ended.words.to_json()
    assert server.taken == []


def test_a_certificate_that_is_not_trusted_ends_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server, keys = serve("starttls")
    monkeypatch.delenv("SSL_CERT_FILE")

    with pytest.raises(UserError) as raised:
        send(EMAIL, username=USER, password=PASSWORD, **keys)

    assert raised.value.message == "the certificate of 127.0.0.1 is not trusted"
    assert server.taken == []


def test_a_login_is_never_sent_to_a_server_that_does_not_encrypt(serve: Serve) -> None:
    _, keys = serve()

    with pytest.raises(UserError) as raised:
        send(EMAIL, username=USER, password=PASSWORD, **(keys | {"tls": "starttls"}))

    assert raised.value.message == "127.0.0.1 does not offer what was asked for"


@pytest.mark.parametrize(("answer", "fault"), [("550 unknown", UserError), ("451 later", EnvironmentFault)])
def test_refused_recipients_are_tried_again_by_what_the_server_says(
    serve: Serve, answer: str, fault: type[Exception]
) -> None:
    server, keys = serve()
    server.refused = dict.fromkeys(("ada@example.com", "ben@example.com"), answer)

    with pytest.raises(fault) as raised:
        send(EMAIL, **keys)

    assert str(raised.value) == f"127.0.0.1 refused every recipient ({answer[:3]})"


def test_one_recipient_that_is_refused_does_not_keep_it_from_the_others(serve: Serve) -> None:
    server, keys = serve()
    server.refused = {"ben@example.com": "550 unknown"}

    send(EMAIL, **keys)

    assert [envelope.rcpt_tos for envelope in server.taken] == [["ada@example.com"]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"host": ""}, "the Secret 'hook' has no key 'host'"),
        ({"to": "nobody"}, "key 'to' of the Secret 'hook' is no e-mail address"),
        ({"to": "a@example.com\nBcc: b@example.com"}, "key 'to' of the Secret 'hook' is no e-mail address"),
        ({"from": ""}, "the Secret 'hook' has no key 'from'"),
        ({"port": "smtp"}, "key 'port' of the Secret 'hook' is no port"),
        ({"tls": "yes"}, "key 'tls' of the Secret 'hook' is not known"),
        ({"username": "ft"}, "the Secret 'hook' has no key 'password'"),
    ],
)
def test_a_secret_that_cannot_be_used_is_told_by_its_keys(serve: Serve, change: dict[str, str], told: str) -> None:
    server, keys = serve()

    with pytest.raises(UserError) as raised:
        send(EMAIL, **(keys | change))

    assert (raised.value.reason, raised.value.message) == (Reason.CONFIGURATION_MISSING, told)
    assert server.taken == []


def test_no_server_at_the_address_is_a_fault_of_the_environment(tmp_path: Path) -> None:
    ended = run(Relocator(tmp_path), EMAIL, host="127.0.0.1", port="1", **PEOPLE)

    assert_refused(ended, "NetworkUnreachable", "cannot reach 127.0.0.1", exit_code=ExitCode.ENVIRONMENT)
