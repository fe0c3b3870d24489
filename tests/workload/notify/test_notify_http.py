"""Notifications over HTTP, to real servers that take them, refuse them, or do not answer."""

import json
import socket
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from tests.support.loopback import Answer, Fault, LoopbackServer, Trouble
from tests.support.notify import ID, ROWS, TABLE, config, run, send
from tests.support.relocator import Relocator, assert_refused
from tests.support.tls import Certificate

from finetuning_api.notification import NotificationEvent, NotificationType
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import NotifyResult
from finetuning_workload.errors import EnvironmentFault, UserError

PATH = "/services/T000/B000/verysecret"
HTTP_TYPES = [NotificationType.SLACK, NotificationType.WEBHOOK, NotificationType.CLOUDEVENTS]
FACTS = {
    "job": {"kind": "FineTuningJob", "name": "triage", "namespace": "team-a", "uid": "uid-1"},
    "id": ID,
    "event": "Succeeded",
    "time": "2026-03-01T12:00:00Z",
    "phase": "Complete",
    "message": "",
    "evaluation": [row.to_wire() for row in ROWS],
    "verdict": "Pass",
    "gate": "0.8 >= 0.1",
    "url": "http://triage.team-a.svc:8000",
}


class Receiver(LoopbackServer):
    """Takes everything, or answers what it is told to."""

    def __init__(self) -> None:
        super().__init__(lambda _: self.answer)
        self.answer = Answer(body=b"ok")

    @property
    def host(self) -> str:
        return self.url.partition("://")[2]

    @property
    def address(self) -> str:
        return f"{self.url}{PATH}?key=hidden"

    def body(self) -> Any:  # noqa: ANN401  (JSON)
        [seen] = self.seen
        assert (seen.method, seen.path, seen.query) == ("POST", PATH, "key=hidden")
        return json.loads(seen.body)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


def test_a_webhook_gets_the_facts_and_a_readable_text(receiver: Receiver) -> None:
    result = send(config(NotificationType.WEBHOOK), url=receiver.address, token="t0ken", header="X-Team: research")

    body = receiver.body()
    assert result == NotifyResult(host=receiver.host)
    assert body.pop("title") == "FineTuningJob team-a/triage succeeded"
    assert body.pop("text").split("\n\n") == [
        "FineTuningJob team-a/triage succeeded",
        "Gate: Pass (0.8 >= 0.1)",
        "Served at http://triage.team-a.svc:8000",
        TABLE,
        "2026-03-01 12:00:00 UTC",
    ]
    assert body == FACTS
    headers = receiver.seen[0].headers
    told = {name: headers[name] for name in ("content-type", "idempotency-key", "authorization", "x-team")}
    assert told == {
        "content-type": "application/json",
        "idempotency-key": ID,
        "authorization": "Bearer t0ken",
        "x-team": "research",
    }


def test_slack_gets_blocks_in_which_nothing_of_the_job_is_markup(receiver: Receiver) -> None:
    failed = config(
        NotificationType.SLACK,
        event="Failed",
        reason="ColumnNotFound",
        message="no column <!channel> & co",
        verdict=None,
    )
    send(failed, url=receiver.address)

    assert receiver.body() == {
        "text": "FineTuningJob team-a/triage failed",
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": "FineTuningJob team-a/triage failed"}},
            section("ColumnNotFound: no column &lt;!channel&gt; &amp; co"),
            section("Served at http://triage.team-a.svc:8000"),
            section(f"```\n{TABLE}\n```"),
            {"type": "context", "elements": [{"type": "mrkdwn", "text": "2026-03-01T12:00:00Z"}]},
        ],
    }


def section(text: str) -> dict[str, object]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def test_texts_that_slack_would_refuse_for_their_length_are_cut(receiver: Receiver) -> None:
    send(
        config(NotificationType.SLACK, event="Failed", message="no " * 2000, evaluation=ROWS * 60), url=receiver.address
    )

    lengths = [len(block["text"]["text"]) for block in receiver.body()["blocks"] if "text" in block]
    assert max(lengths) == 3000


def test_cloudevents_are_sent_in_structured_mode(receiver: Receiver) -> None:
    send(config(NotificationType.CLOUDEVENTS), url=receiver.address)

    assert receiver.seen[0].headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert receiver.body() == {
        "specversion": "1.0",
        "id": ID,
        "source": "/apis/finetuning.dev/v1alpha1/namespaces/team-a/finetuningjobs/triage",
        "type": "dev.finetuning.finetuningjob.succeeded",
        "subject": "triage",
        "time": "2026-03-01T12:00:00Z",
        "datacontenttype": "application/json",
        "data": FACTS,
    }


@pytest.mark.parametrize("kind", HTTP_TYPES)
def test_the_same_notification_sent_twice_has_the_same_key(receiver: Receiver, kind: NotificationType) -> None:
    for _ in range(2):
        send(config(kind), url=receiver.address)

    assert [seen.headers["idempotency-key"] for seen in receiver.seen] == [ID, ID]
    assert receiver.seen[0].body == receiver.seen[1].body


@pytest.mark.parametrize(
    ("event", "verdict", "title"),
    [
        (NotificationEvent.STARTED, None, "started"),
        (NotificationEvent.STALLED, None, "has stalled"),
        (NotificationEvent.GATE, "Pass", "passed its gate"),
        (NotificationEvent.GATE, "Fail", "did not pass its gate"),
        (NotificationEvent.GATE, "Inconclusive", "met a gate that could not decide"),
    ],
)
def test_the_title_says_what_happened(
    receiver: Receiver, event: NotificationEvent, verdict: str | None, title: str
) -> None:
    send(config(NotificationType.WEBHOOK, event=event, verdict=verdict), url=receiver.address)

    assert receiver.body()["title"] == f"FineTuningJob team-a/triage {title}"


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_receiver_that_may_take_it_later_is_a_fault_of_the_environment(receiver: Receiver, status: int) -> None:
    receiver.answer = Answer(status=HTTPStatus(status))

    with pytest.raises(EnvironmentFault) as raised:
        send(config(NotificationType.WEBHOOK), url=receiver.address)

    assert (raised.value.reason, raised.value.message) == (
        Reason.NOTIFICATION_FAILED,
        f"{receiver.host} answered HTTP {status}",
    )


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 410])
def test_a_receiver_that_will_never_take_it_is_a_mistake_of_the_user(receiver: Receiver, status: int) -> None:
    receiver.answer = Answer(status=HTTPStatus(status), headers={"Location": "/elsewhere"})

    with pytest.raises(UserError) as raised:
        send(config(NotificationType.WEBHOOK), url=receiver.address)

    assert raised.value.message == f"{receiver.host} answered HTTP {status}"
    assert "the Secret 'hook'" in raised.value.hint
    assert len(receiver.seen) == 1


@pytest.mark.parametrize(("said", "told"), [(b"no_service", " (no_service)"), (b"<b>" + PATH.encode(), "")])
def test_slack_s_own_word_for_a_failure_is_told_and_nothing_else(receiver: Receiver, said: bytes, told: str) -> None:
    receiver.answer = Answer(status=HTTPStatus.NOT_FOUND, body=said)

    with pytest.raises(UserError) as raised:
        send(config(NotificationType.SLACK), url=receiver.address)

    assert raised.value.message == f"{receiver.host} answered HTTP 404{told}"


@pytest.mark.parametrize("trouble", [Trouble.STATUS, Trouble.CUT])
def test_the_program_is_retried_after_a_fault_and_the_next_try_succeeds(
    receiver: Receiver, tmp_path: Path, trouble: Trouble
) -> None:
    receiver.fail(PATH, Fault(trouble, after_bytes=0))
    relocator = Relocator(tmp_path)

    first = run(relocator, config(NotificationType.SLACK), url=receiver.address)
    second = run(relocator, config(NotificationType.SLACK), url=receiver.address)

    taken = {Trouble.STATUS: ExitCode.ENVIRONMENT, Trouble.CUT: ExitCode.DONE}
    # Whoever answered 200 has taken it, whatever becomes of the rest of the answer.
    assert (first.exit_code, second.exit_code) == (taken[trouble], ExitCode.DONE)
    assert second.words.result == NotifyResult(host=receiver.host)


def test_nothing_of_the_secret_is_in_logs_or_last_words(receiver: Receiver, tmp_path: Path) -> None:
    receiver.answer = Answer(status=HTTPStatus.FORBIDDEN, body=PATH.encode())

    ended = run(
        Relocator(tmp_path), config(NotificationType.WEBHOOK), url=receiver.address, token="t0ken", header="X-Key: k3y"
    )

    assert_refused(ended, "NotificationFailed", f"{receiver.host} answered HTTP 403")
    said = ended.log + ended.words.to_json()
    assert [secret for secret in (PATH, "verysecret", "hidden", "t0ken", "k3y") if secret in said] == []


@pytest.mark.parametrize(
    ("secret", "told"),
    [
        ({}, "the Secret 'hook' has no key 'url'"),
        ({"url": "hooks.example/verysecret"}, "key 'url' of the Secret 'hook' is no address of a web server"),
        ({"url": "ftp://hooks.example/verysecret"}, "key 'url' of the Secret 'hook' is no address of a web server"),
        ({"url": "http://[verysecret"}, "key 'url' of the Secret 'hook' is no address of a web server"),
        ({"url": "http://h:99999999/verysecret"}, "key 'url' of the Secret 'hook' is no address of a web server"),
        ({"url": "http://h/", "header": "verysecret"}, "key 'header' of the Secret 'hook' is no header"),
        (
            {"url": "http://h/", "token": "very\nsecret"},
            "key 'token or header' of the Secret 'hook' holds what a header",
        ),
    ],
)
def test_a_secret_that_cannot_be_used_is_told_by_its_keys_alone(
    tmp_path: Path, secret: dict[str, str], told: str
) -> None:
    ended = run(Relocator(tmp_path), config(NotificationType.WEBHOOK), **secret)

    assert_refused(ended, "ConfigurationMissing", told)
    assert "verysecret" not in ended.log + ended.words.to_json()


def test_nobody_at_the_address_is_a_fault_of_the_environment(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    ended = run(Relocator(tmp_path), config(NotificationType.SLACK), url=f"http://127.0.0.1:{port}{PATH}")

    assert_refused(ended, "NetworkUnreachable", f"cannot reach 127.0.0.1:{port}", exit_code=ExitCode.ENVIRONMENT)
    assert PATH not in ended.log + ended.words.to_json()


def test_https_needs_a_certificate_that_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = Certificate.make(tmp_path)
    with LoopbackServer(lambda _: Answer(), tls=certificate.server_context()) as server:
        address = f"{server.url}{PATH}"
        with pytest.raises(EnvironmentFault):
            send(config(NotificationType.WEBHOOK), url=address)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
        send(config(NotificationType.WEBHOOK), url=address)

        assert [seen.path for seen in server.seen] == [PATH]
