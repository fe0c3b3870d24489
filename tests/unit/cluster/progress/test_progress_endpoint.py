import json
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.support.processes import wait_until
from tests.support.progress import OWNER, TRAIN, FakeReviews, RunningEndpoint, authenticated, made_token, report

from finetuning_operator.cluster.errors import Unavailable

TOKEN = made_token()
OTHER = replace(OWNER, name="other", uid="uid-2")


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[RunningEndpoint]:
    reviews = FakeReviews({TOKEN: authenticated()})
    with RunningEndpoint(reviews, tmp_path).listening() as running:
        yield running


def _asked(endpoint: RunningEndpoint) -> list[str]:
    assert isinstance(endpoint.reviews, FakeReviews)
    return endpoint.reviews.asked


def _message(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["message"]


def test_a_report_is_kept_and_answered_from_memory(endpoint: RunningEndpoint) -> None:
    answer = endpoint.post(TOKEN, json=report(progressPercentage=40))

    kept = endpoint.store.get(TRAIN, uid=OWNER.uid)
    assert (answer.status_code, answer.content) == (202, b"")
    assert kept is not None
    assert kept.progress_percentage == 40
    assert endpoint.changed == [(TRAIN, kept)]
    assert endpoint.answers == [202]


def test_one_connection_carries_many_reports(endpoint: RunningEndpoint) -> None:
    with endpoint.client() as client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        ports = {
            client.post(endpoint.url_of(), json=report(progressPercentage=percent), headers=headers)
            .extensions["network_stream"]
            .get_extra_info("client_addr")[1]
            for percent in range(10)
        }

    assert len(ports) == 1
    assert len(_asked(endpoint)) == 1


def test_connections_are_kept_only_up_to_a_number(endpoint: RunningEndpoint) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with ExitStack() as stack:
        clients = [stack.enter_context(endpoint.client()) for _ in range(70)]
        answers = [client.post(endpoint.url_of(), json=report(), headers=headers) for client in clients]
        again = [client.post(endpoint.url_of(), json=report(), headers=headers) for client in clients]

    closed = ["close" in answer.headers.get("Connection", "") for answer in answers]
    assert closed == [False] * 64 + [True] * 6
    assert {answer.status_code for answer in answers + again} == {202}


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic YTpi", "Bearer geheim\xfc"])
def test_without_a_token_nothing_is_said_of_any_object(endpoint: RunningEndpoint, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    with endpoint.client() as client:
        answers = [
            client.post(endpoint.url_of(key), json=report(), headers=headers)  # type: ignore[arg-type]
            for key in (TRAIN, replace(TRAIN, name="never-made"))
        ]

    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].json() == answers[1].json()
    assert answers[0].headers["WWW-Authenticate"] == "Bearer"


def test_a_token_for_another_service_is_refused_without_asking_the_api_server(endpoint: RunningEndpoint) -> None:
    answer = endpoint.post(made_token(aud=["https://kubernetes.default.svc"]))

    assert _message(answer) == (401, "the token was not made for this endpoint: its audience is another")
    assert _asked(endpoint) == []


def test_the_token_of_another_object_is_refused_without_asking_the_api_server(endpoint: RunningEndpoint) -> None:
    endpoint.owners.add(OTHER)

    assert _message(endpoint.post(made_token(OTHER))) == (403, "the token was made for another object")
    assert _asked(endpoint) == []


def test_a_token_of_an_earlier_object_of_the_same_name_finds_nothing(endpoint: RunningEndpoint) -> None:
    endpoint.owners = {replace(OWNER, uid="uid-9")}

    assert _message(endpoint.post(TOKEN)) == (404, "there is no such object that runs such a step")
    assert endpoint.store.get(TRAIN, uid=OWNER.uid) is None
    assert _asked(endpoint) == []


def test_a_forged_token_is_refused(endpoint: RunningEndpoint) -> None:
    forged = made_token(name="forged")

    assert _message(endpoint.post(forged)) == (401, "the token is not valid, or no longer")
    assert _asked(endpoint) == [forged]


def test_an_expired_token_is_refused_without_asking_the_api_server(endpoint: RunningEndpoint) -> None:
    assert endpoint.post(made_token(expires_at=1.0)).status_code == 401
    assert _asked(endpoint) == []


def test_a_token_of_another_namespace_is_refused(endpoint: RunningEndpoint) -> None:
    assert isinstance(endpoint.reviews, FakeReviews)
    stranger = {**authenticated(), "user": {"username": "system:serviceaccount:team-b:default"}}
    endpoint.reviews.genuine[TOKEN] = stranger

    assert endpoint.post(TOKEN).status_code == 403


def test_while_the_api_server_is_away_reporters_are_asked_to_come_again(endpoint: RunningEndpoint) -> None:
    assert isinstance(endpoint.reviews, FakeReviews)
    endpoint.reviews.error = Unavailable("down")

    answer = endpoint.post(TOKEN)

    assert _message(answer) == (503, "the token cannot be verified at the moment")
    assert answer.headers["Retry-After"] == "2"
    assert len(endpoint.store) == 0


def test_a_replica_that_waits_takes_no_reports(endpoint: RunningEndpoint) -> None:
    endpoint.leading = False

    answer = endpoint.post(TOKEN)

    assert _message(answer) == (503, "this replica is not the active one")
    assert (answer.headers["Retry-After"], answer.headers["Connection"]) == ("5", "close")
    assert _asked(endpoint) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Invalid JSON"),
        (b"{}", "trainerStatus: Field required"),
        (b'{"trainerStatus": {"progressPercentage": "half"}}', "trainerStatus.progressPercentage: "),
        (b"\x1f\x8b\x08compressed", "Invalid JSON"),
    ],
)
def test_nonsense_is_answered_with_what_is_wrong(endpoint: RunningEndpoint, content: bytes, message: str) -> None:
    status, told = _message(endpoint.post(TOKEN, content=content))

    assert status == 400
    assert told.startswith(message)
    assert len(endpoint.store) == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_refused(endpoint: RunningEndpoint, *, chunked: bool) -> None:
    parts = [b"x" * 8192] * 9

    answer = endpoint.post(TOKEN, content=iter(parts) if chunked else b"".join(parts))

    assert _message(answer) == (413, "a report has at most 65536 bytes")
    assert len(endpoint.store) == 0


def test_a_compressed_body_is_never_unfolded(endpoint: RunningEndpoint) -> None:
    with endpoint.client() as client:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "deflate"}
        answer = client.post(endpoint.url_of(), content=b"x\x9c\x03\x00", headers=headers)

    assert answer.status_code == 400


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"Content-Length: 50\r\n\r\n{",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"X: " + b"y" * 10_000 + b"\r\n\r\n",
        f"Authorization: Bearer {TOKEN}\0\r\n\r\n".encode(),
    ],
)
def test_a_request_that_breaks_the_protocol_is_no_news_in_the_log(
    endpoint: RunningEndpoint, rest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    context = ssl.create_default_context(cafile=endpoint.ca)
    address = ("127.0.0.1", int(endpoint.url.rpartition(":")[2]))
    with context.wrap_socket(socket.create_connection(address), server_hostname="127.0.0.1") as connection:
        head = f"POST {TRAIN.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(head.encode() + rest)
        connection.settimeout(30)
        assert int(connection.recv(4096).split()[1]) in {400, 408}

    assert endpoint.post(TOKEN).status_code == 202
    assert TOKEN not in caplog.text
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_reporter_that_dies_while_it_reports_is_no_news_in_the_log(
    endpoint: RunningEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    context = ssl.create_default_context(cafile=endpoint.ca)
    address = ("127.0.0.1", int(endpoint.url.rpartition(":")[2]))
    head = f"POST {TRAIN.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n{{"
    with context.wrap_socket(socket.create_connection(address), server_hostname="127.0.0.1") as connection:
        connection.sendall(head.encode())
        wait_until(lambda: bool(_asked(endpoint)), what="the report is being read")
    wait_until(lambda: bool(endpoint.answers), what="the report is given up")

    assert endpoint.post(TOKEN).status_code == 202
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_object_that_goes_while_its_report_arrives_leaves_nothing(tmp_path: Path) -> None:
    reviews = FakeReviews({TOKEN: authenticated()})
    with RunningEndpoint(reviews, tmp_path).listening() as endpoint:

        def slowly() -> Iterator[bytes]:
            yield b'{"trainerStatus":'
            wait_until(lambda: bool(reviews.asked), what="the token is reviewed")
            endpoint.owners.clear()
            yield b" {}}"

        assert endpoint.post(TOKEN, content=slowly()).status_code == 404
        assert len(endpoint.store) == 0


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", TRAIN.path, 405), ("POST", "/", 404), ("POST", f"{TRAIN.path}/more", 404)]
)
def test_there_is_nothing_but_the_endpoint(endpoint: RunningEndpoint, method: str, path: str, status: int) -> None:
    with endpoint.client() as client:
        assert client.request(method, f"{endpoint.url}{path}").status_code == status


def test_names_in_the_path_cannot_reach_another_object(endpoint: RunningEndpoint) -> None:
    for name in ("..%2Fother", "triage%2Fsteps", "%00", "tri%61ge"):
        with endpoint.client() as client:
            url = f"{endpoint.url}{replace(TRAIN, name=name).path}"
            answer = client.post(url, json=report(), headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == (202 if name == "tri%61ge" else 403)
    assert len(endpoint.store) == 1


def test_a_connection_without_trust_or_without_tls_gets_nowhere_and_harms_nobody(endpoint: RunningEndpoint) -> None:
    with pytest.raises(httpx.ConnectError), httpx.Client(trust_env=False) as stranger:
        stranger.post(endpoint.url_of(), json=report())
    with pytest.raises(httpx.HTTPError), httpx.Client(trust_env=False) as plain:
        plain.post(endpoint.url_of().replace("https://", "http://"), json=report())

    assert endpoint.post(TOKEN).status_code == 202


def test_who_connects_and_stays_silent_keeps_nobody_waiting(endpoint: RunningEndpoint) -> None:
    port = int(endpoint.url.rpartition(":")[2])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    context = ssl.create_default_context(cafile=endpoint.ca)
    half = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1")
    head = f"POST {TRAIN.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n{{"
    half.sendall(head.encode())

    assert endpoint.post(TOKEN).status_code == 202
    # The body that never comes is given up after its time, and the connection is closed.
    half.settimeout(30)
    assert half.recv(4096).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: _is_closed(half), seconds=30, what="the half-open connection is closed")
    for connection in (*silent, half):
        connection.close()


def _is_closed(connection: ssl.SSLSocket) -> bool:
    try:
        return connection.recv(4096) == b""
    except OSError:
        return True


def test_who_was_let_in_before_the_end_is_answered_after_it(
    endpoint: RunningEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    port = int(endpoint.url.rpartition(":")[2])
    early = socket.create_connection(("127.0.0.1", port))
    # Connections are let in by their order.
    assert endpoint.post(TOKEN).status_code == 202
    endpoint.run(endpoint.server.close())

    with ssl.create_default_context(cafile=endpoint.ca).wrap_socket(early, server_hostname="127.0.0.1") as late:
        body = json.dumps(report())
        head = (
            f"POST {TRAIN.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n"
        )
        late.sendall(f"{head}\r\n{body}".encode())
        late.settimeout(30)
        answer = late.recv(4096)

    assert answer.startswith(b"HTTP/1.1 202 ")
    assert caplog.text == ""


def test_an_exchanged_certificate_is_served_to_new_connections(endpoint: RunningEndpoint, tmp_path: Path) -> None:
    with endpoint.client() as before:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert before.post(endpoint.url_of(), json=report(), headers=headers).status_code == 202
        (tmp_path / "new").mkdir()
        successor = RunningEndpoint(endpoint.reviews, tmp_path / "new")
        for name in ("tls.crt", "tls.key"):
            (tmp_path / name).write_bytes((tmp_path / "new" / name).read_bytes())

        assert endpoint.run(_refreshed(endpoint)) is True
        assert before.post(endpoint.url_of(), json=report(), headers=headers).status_code == 202
    with pytest.raises(httpx.ConnectError):
        endpoint.post(TOKEN)
    endpoint.ca = successor.ca
    assert endpoint.post(TOKEN).status_code == 202


async def _refreshed(endpoint: RunningEndpoint) -> bool:
    return endpoint.server.refresh_certificate()
