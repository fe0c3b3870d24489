"""From loading to the end: what a server answers at each moment of its life."""

import asyncio
import json
import socket
import threading
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection

import httpx
import pytest
from tests.support.processes import wait_until
from tests.support.scripted_engine import Script, ScriptedEngine
from tests.support.served import SECONDS, Served, is_ready, serve_config, served

from finetuning_api.reasons import Reason
from finetuning_server.serve import Patience, serve_engine
from finetuning_workload.errors import EnvironmentFault, UserError
from finetuning_workload.program import StopFlag

COMPLETION = {"model": "base", "prompt": "x"}


@dataclass(slots=True)
class SlowEngine(ScriptedEngine):
    """Loads until the test lets it finish."""

    loaded: bool = False

    async def start(self) -> None:
        while not self.loaded:  # noqa: ASYNC110  (the test is another thread)
            await asyncio.sleep(0.01)


def test_while_it_loads_it_lives_but_is_not_ready() -> None:
    engine = SlowEngine()
    with served(engine, ready=False) as server, server.http() as client:
        health, ready, models = (client.get(path) for path in ("/healthz", "/readyz", "/v1/models"))
        completion = client.post("/v1/completions", json=COMPLETION)
        engine.loaded = True
        wait_until(lambda: client.get("/readyz").status_code == 200, what="the server is ready")
        later = client.post("/v1/completions", json=COMPLETION)

    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
    assert models.status_code == 503
    assert (completion.status_code, completion.json()["error"]["code"]) == (503, "loading")
    assert completion.headers["retry-after"] == "5"
    assert later.status_code == 200


def test_an_engine_that_failed_for_good_asks_to_be_started_anew() -> None:
    """Both probes fail: no more requests come here, and the kubelet starts the container again."""
    engine = ScriptedEngine()
    with served(engine) as server, server.http() as client:
        before = client.get("/healthz")
        engine.script.fault = "the engine takes no more steps"
        health, ready = client.get("/healthz"), client.get("/readyz")

    assert (before.status_code, before.json()) == (200, {"status": "ok"})
    told = {"status": "failed", "reason": "the engine takes no more steps"}
    assert (health.status_code, health.json()) == (503, told)
    assert (ready.status_code, ready.json()) == (503, told)


def test_asked_to_end_while_it_loads_it_ends() -> None:
    engine = SlowEngine()
    with served(engine, ready=False) as server:
        assert not engine.loaded

    assert server.failure == []
    assert engine.stopped


def test_what_cannot_be_loaded_ends_the_server_with_the_mistake() -> None:
    mistake = UserError(Reason.MODEL_UNREADABLE, "no config.json", "Check the model.")
    with served(ScriptedEngine(script=Script(load_error=mistake)), ready=False) as server:
        wait_until(lambda: bool(server.failure), what="the server ended")

    assert server.failure == [mistake]


def test_a_port_that_is_taken_is_told() -> None:
    config = serve_config()
    with (
        socket.create_server((config.host, config.port)),
        pytest.raises(EnvironmentFault, match=f"cannot listen on 127.0.0.1:{config.port}: Address already in use"),
    ):
        serve_engine(ScriptedEngine(), config, stop=StopFlag())


class Asked:
    """A request that is under way in a thread of its own."""

    def __init__(self, server: Served, *, stream: bool = False) -> None:
        self._server = server
        self._stream = stream
        self.answers: list[httpx.Response] = []
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def answer(self) -> httpx.Response:
        """Return the answer."""
        self._thread.join(SECONDS)
        (answer,) = self.answers
        return answer

    def _ask(self) -> None:
        with self._server.http() as client:
            self.answers.append(client.post("/v1/completions", json=COMPLETION | {"stream": self._stream}))


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(script=Script(held=True))


def test_asked_to_end_it_finishes_what_runs_and_answers_who_still_finds_it(engine: ScriptedEngine) -> None:
    with served(engine, patience=Patience(last_call_seconds=2.0)) as server, server.http() as kept:
        kept.get("/v1/models")
        under_way = Asked(server)
        wait_until(lambda: engine.running == 1, what="the request generates")
        server.stop.set()
        wait_until(lambda: kept.get("/readyz").status_code == 503, what="it is not ready any more")
        ready = kept.get("/readyz")
        late = Asked(server, stream=True)
        wait_until(lambda: engine.running == 2, what="a late request generates")
        wait_until(lambda: not is_ready(server.url, "/healthz"), what="it listens no more")
        engine.script.held = False
        answers = [under_way.answer(), late.answer()]
        server.thread.join(SECONDS)

    assert ready.json() == {"status": "draining"}
    assert ready.headers["connection"] == "close"
    assert answers[0].json()["choices"][0]["text"] == "one two three four"
    assert answers[1].text.endswith("data: [DONE]\n\n")
    assert [answer.headers.get("connection") for answer in answers] == ["close", "close"]
    assert (server.failure, engine.stopped) == ([], True)


def test_a_kept_connection_that_was_not_announced_to_close_is_answered_once_more(engine: ScriptedEngine) -> None:
    body, headers = json.dumps(COMPLETION | {"stream": True}), {"Content-Type": "application/json"}
    with served(engine) as server, closing(HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)) as kept:
        kept.request("POST", "/v1/completions", body, headers)
        first = kept.getresponse()
        server.stop.set()
        wait_until(lambda: not is_ready(server.url, "/healthz"), what="it listens no more")
        engine.script.held = False
        texts = [first.read()]
        kept.request("POST", "/v1/completions", body, headers)
        second = kept.getresponse()
        texts.append(second.read())

    assert [answer.headers["connection"] for answer in (first, second)] == [None, "close"]
    assert all(text.endswith(b"data: [DONE]\n\n") for text in texts)


def test_what_is_not_done_in_time_is_ended_with_an_error_and_not_cut_off(engine: ScriptedEngine) -> None:
    with served(engine, config=serve_config(drain_seconds=1)) as server:
        whole, stream = Asked(server), Asked(server, stream=True)
        wait_until(lambda: engine.running == 2, what="the requests generate")
        server.stop.set()
        answers = [whole.answer(), stream.answer()]
        server.thread.join(SECONDS)

    assert [answer.status_code for answer in answers] == [503, 200]
    assert answers[0].json()["error"]["code"] == "stopped"
    last = answers[1].text.strip().rpartition("data: ")[2]
    assert json.loads(last)["error"]["code"] == "stopped"
    assert server.failure == []
