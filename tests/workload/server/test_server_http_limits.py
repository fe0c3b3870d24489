"""What a client may cost: large bodies, slow ones, long answers, clients that leave, and two hundred at once."""

import asyncio
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import httpx
import openai
import pytest
from starlette.types import Message
from tests.support.processes import wait_until
from tests.support.scripted_engine import Script, ScriptedEngine
from tests.support.served import SECONDS, Served, serve_config, served

from finetuning_server.http.app import Life, Phase, create_app
from finetuning_server.http.limits import Limits
from finetuning_server.serve import Patience

COMPLETION = {"model": "base", "prompt": "x"}
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def server(engine: ScriptedEngine) -> Iterator[Served]:
    patience = Patience(head_seconds=0.5, body_seconds=0.5, last_call_seconds=0.0)
    with served(engine, config=serve_config(max_body_bytes=4096), patience=patience) as running:
        yield running


def connect(server: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)


def everything(connection: socket.socket) -> str:
    """Return what comes until the server closes."""
    received = b""
    while data := connection.recv(65536):
        received += data
    return received.decode()


def test_a_body_beyond_the_limit_is_refused_and_the_client_gets_to_know(server: Served) -> None:
    body = {"model": "base", "prompt": "x" * 10_000_000}
    with server.http() as client:
        answer = client.post("/v1/completions", json=body)
        chunked = client.post("/v1/completions", content=iter([b"x" * 65536] * 16))
    with pytest.raises(openai.APIStatusError) as caught:
        server.openai().completions.create(model="base", prompt="x" * 10_000_000)

    assert [answer.status_code, chunked.status_code, caught.value.status_code] == [413] * 3
    assert answer.json()["error"]["message"] == "the body has more than 4096 bytes, which is the limit of this server"


def test_a_body_of_just_the_limit_is_read(server: Served) -> None:
    body = json.dumps(COMPLETION | {"user": ""})
    with server.http() as client:
        fits, beyond = (
            client.post(
                "/v1/completions",
                content=body.replace('""', f'"{"u" * (size - len(body))}"'),
                headers={"content-type": "application/json"},
            )
            for size in (4096, 4097)
        )

    assert [fits.status_code, beyond.status_code] == [200, 413]


def test_an_endless_body_is_cut_off(server: Served) -> None:
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    with closing(connect(server)) as connection:
        connection.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        sent = 0
        with suppress(BrokenPipeError, ConnectionResetError):
            while sent < 1_000_000:
                connection.sendall(chunk)
                sent += 1

    assert sent < 1_000_000


def test_a_slow_body_is_given_up_while_others_are_served(server: Served) -> None:
    with closing(connect(server)) as connection:
        connection.sendall(f'{HEAD}Content-Length: 100\r\n\r\n{{"model"'.encode())
        with server.http() as client:
            other = client.post("/v1/completions", json=COMPLETION)
        said = everything(connection)

    assert other.status_code == 200
    head, _, body = said.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 408 ")
    assert json.loads(body)["error"]["message"] == "the body did not arrive within 0.5 s"


@pytest.mark.parametrize("sent", ["", "POST /v1/completions HTTP/1.1\r\nHost:"])
def test_a_head_that_never_ends_is_cut_off_while_others_are_served(server: Served, sent: str) -> None:
    with closing(connect(server)) as connection:
        done = threading.Event()

        def drip() -> None:
            """Send a byte now and then, which must not buy time."""
            try:
                while not done.wait(0.05):
                    connection.sendall(b"x" if sent else b"")
            except OSError:
                return

        connection.sendall(sent.encode())
        dripping = threading.Thread(target=drip)
        dripping.start()
        with server.http() as client:
            other = client.post("/v1/completions", json=COMPLETION)
        try:
            said = everything(connection)
        except ConnectionResetError:
            said = ""
        done.set()
        dripping.join()

    assert other.status_code == 200
    assert said == ""


def test_many_slow_clients_do_not_keep_others_from_being_served(server: Served) -> None:
    slow = [connect(server) for _ in range(300)]
    for connection in slow:
        connection.sendall(b"POST /v1/comp")
    with server.http() as client:
        statuses = [client.post("/v1/completions", json=COMPLETION).status_code for _ in range(5)]
    said = [everything(connection) for connection in slow]
    for connection in slow:
        connection.close()

    assert statuses == [200] * 5
    assert said == [""] * 300


def test_a_kept_connection_serves_one_request_after_the_other(server: Served) -> None:
    with server.http(limits=httpx.Limits(max_connections=1)) as client:
        statuses = [client.post("/v1/completions", json=COMPLETION).status_code for _ in range(3)]

    assert statuses == [200] * 3


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place_at_once(server: Served, engine: ScriptedEngine, *, stream: bool) -> None:
    engine.script.held = True
    body = json.dumps(COMPLETION | {"stream": stream, "n": 3})
    connection = connect(server)
    connection.sendall(f"{HEAD}X-Request-Id: gone\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    wait_until(lambda: engine.running == 3, what="the request generates")

    connection.close()

    wait_until(lambda: engine.running == 0, what="the place is free")
    line = server.line("gone")
    assert (line["error"], line["status"]) == ("client_gone", 200 if stream else 499)
    assert server.metric("requests_in_flight") == 0.0


def test_a_request_that_takes_too_long_ends_with_an_error(engine: ScriptedEngine) -> None:
    engine.script.held = True
    with served(engine, config=serve_config(request_seconds=1)) as server:
        with pytest.raises(openai.InternalServerError) as whole:
            server.openai().completions.create(**COMPLETION)  # type: ignore[call-overload]
        with pytest.raises(openai.APIError, match="not done within 1 s") as streamed:
            list(server.openai().completions.create(**COMPLETION, stream=True))  # type: ignore[call-overload]

    assert (whole.value.status_code, whole.value.code) == (504, "timeout")
    assert streamed.value.code == "timeout"
    assert engine.running == 0


def test_a_client_that_does_not_read_its_answer_is_cut_off(engine: ScriptedEngine) -> None:
    limits = Limits(body_bytes=4096, request_seconds=1, flush_seconds=0)
    log = io.StringIO()
    app = create_app(engine, serve_config(), life=Life(Phase.READY), log=log, limits=limits)
    body = json.dumps(COMPLETION | {"stream": True}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": headers}
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        for message in messages:
            return message
        return await asyncio.Future()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Future()

    async def exchange() -> None:
        await app(scope, receive, send)

    asyncio.run(exchange())

    assert engine.running == 0
    assert json.loads(log.getvalue())["error"] == "client_too_slow"


def test_two_hundred_streams_at_once_are_all_answered() -> None:
    engine = ScriptedEngine(script=Script(held=True))
    with served(engine) as server:

        async def one(client: openai.AsyncOpenAI) -> str:
            stream = await client.completions.create(**COMPLETION, stream=True)  # type: ignore[call-overload]
            return "".join([choice.text async for chunk in stream for choice in chunk.choices])

        async def release() -> None:
            while engine.running < 200:  # noqa: ASYNC110  (the engine runs in another thread)
                await asyncio.sleep(0.01)
            engine.script.held = False

        async def everyone() -> list[str]:
            async with server.async_openai() as client, asyncio.timeout(SECONDS):
                *texts, _ = await asyncio.gather(*(one(client) for _ in range(200)), release())
                return [str(text) for text in texts]

        texts = asyncio.run(everyone())

    assert texts == ["one two three four"] * 200
    assert engine.most_running == 200


def test_beyond_the_queue_the_rest_is_refused_and_the_others_are_answered() -> None:
    engine = ScriptedEngine(script=Script(held=True, places=4))
    with served(engine) as server:

        def one(found: list[int]) -> None:
            with server.http() as client:
                found.append(client.post("/v1/completions", json=COMPLETION).status_code)

        found: list[int] = []
        clients = [threading.Thread(target=one, args=(found,)) for _ in range(10)]
        for client in clients:
            client.start()
        wait_until(lambda: len(found) == 6, what="those that are too many are refused")
        refused = list(found)
        engine.script.held = False
        for client in clients:
            client.join()

    assert refused == [429] * 6
    assert found[6:] == [200] * 4
