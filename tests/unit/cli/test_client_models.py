"""The client of served models, against a server that answers as it is told to."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from finetuning_cli.answers import say
from finetuning_cli.main import app
from finetuning_client.errors import ClusterError, UnreachableError
from finetuning_client.models import Message, ModelServer, Question

SSE = "text/event-stream; charset=utf-8"


def events(*contents: object, ended: bool = True) -> bytes:
    """Return a stream of events, closed as OpenAI's API closes them."""
    sent = [f"data: {json.dumps(content)}\n\n" for content in contents]
    return "".join([": a comment\n\n", *sent, "data: [DONE]\n\n" if ended else ""]).encode()


def chunk(text: str) -> object:
    return {"choices": [{"index": 0, "text": text, "delta": {"content": text}}]}


@dataclass
class Peer:
    """A server: what it answers by path, and what it was asked."""

    answers: dict[str, tuple[int, str, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, Any, str | None]] = field(default_factory=list)
    port: int = 0

    def answer(self, path: str, body: object, *, status: int = 200, kind: str = "application/json") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers[path] = (status, kind, content)

    def client(self, **options: str) -> ModelServer:
        return ModelServer(HTTPConnection("127.0.0.1", self.port, timeout=30), "the server", hint="Look.", **options)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: object) -> None:
        peer = cast("Server", self.server).peer
        peer.asked.append((self.path, body, self.headers["authorization"]))
        status, kind, content = peer.answers[self.path]
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    peer: Peer


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Server(("127.0.0.1", 0), Handler) as listener:
        listener.peer = Peer(port=listener.server_address[1])
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield listener.peer
        listener.shutdown()


def test_pieces_of_a_stream_come_one_by_one(peer: Peer) -> None:
    usage: object = {"choices": [], "usage": {}}
    peer.answer("/v1/completions", events(chunk("Hel"), chunk("lo"), usage), kind=SSE)

    pieces = list(peer.client().answer("base", Question("Say", max_new_tokens=5)))

    assert pieces == ["Hel", "lo"]
    wanted = {"model": "base", "max_tokens": 5, "temperature": 0.0, "stream": True, "prompt": "Say"}
    assert peer.asked == [("/v1/completions", wanted, None)]


def test_chat_sends_every_turn(peer: Peer) -> None:
    peer.answer("/v1/chat/completions", events(chunk("So."), chunk("")), kind=SSE)
    turns = [Message("user", "Why?"), Message("assistant", "How so?"), Message("user", "Well?")]

    pieces = list(peer.client().chat("tuned", turns, Question("", temperature=0.5)))

    assert pieces == ["So.", ""]
    _, body, _ = peer.asked[0]
    assert body["messages"] == [{"role": each.role, "content": each.content} for each in turns]
    assert body["temperature"] == 0.5


@pytest.mark.parametrize(("chat", "choice"), [(False, {"text": "Hi"}), (True, {"message": {"content": "Hi"}})])
def test_server_that_does_not_stream_is_taken_whole(peer: Peer, chat: bool, choice: object) -> None:  # noqa: FBT001
    for path in ("/v1/completions", "/v1/chat/completions"):
        peer.answer(path, {"choices": [choice]})

    assert list(peer.client().answer("base", Question("Say", chat=chat))) == ["Hi"]


def test_error_of_the_api_is_told_in_its_own_words(peer: Peer) -> None:
    peer.answer("/v1/completions", {"error": {"message": "the prompt is too long", "code": "x"}}, status=400)

    with pytest.raises(ClusterError) as caught:
        list(peer.client().answer("base", Question("Say")))
    assert caught.value.message == "the server answers 400 to /v1/completions: the prompt is too long"
    assert caught.value.hint == "Look."


@pytest.mark.parametrize(
    ("stream", "error", "message"),
    [
        (
            events(chunk("a"), {"error": {"message": "no memory"}}),
            ClusterError,
            "the server stops half-way: no memory",
        ),
        (events(chunk("a"), ended=False), UnreachableError, "the server was cut off half-way through its answer"),
    ],
)
def test_stream_that_ends_early_is_told_after_what_came(
    peer: Peer, stream: bytes, error: type[ClusterError], message: str
) -> None:
    peer.answer("/v1/completions", stream, kind=SSE)
    pieces = peer.client().answer("base", Question("Say"))

    assert next(pieces) == "a"
    with pytest.raises(error) as caught:
        next(pieces)
    assert caught.value.message == message


def test_answer_that_is_no_json_is_told(peer: Peer) -> None:
    peer.answer("/v1/models", b"<html>")

    with pytest.raises(ClusterError, match="the server answers no JSON to /v1/models"):
        peer.client().models()


def test_token_and_prefix_are_sent_and_the_client_can_be_used_again_after_leaving_early(peer: Peer) -> None:
    shared = {"id": "live", "split": {"base": 90, "tuned": 10}}
    peer.answer("/llm/v1/models", {"data": [{"id": "base"}, {"id": "tuned"}, shared]})
    peer.answer("/llm/v1/completions", events(chunk("a"), chunk("b")), kind=SSE)
    client = peer.client(token="sesame", prefix="/llm")

    pieces = cast("Any", client.answer("base", Question("Say")))
    assert next(pieces) == "a"
    pieces.close()

    assert client.models() == ["base", "tuned"]
    assert {token for _, _, token in peer.asked} == {"Bearer sesame"}


def served(peer: Peer, *models: str) -> Callable[..., Any]:
    peer.answer("/v1/models", {"data": [{"id": model} for model in models]})
    peer.answer("/v1/chat/completions", events(chunk("Wel"), chunk("come")), kind=SSE)

    def chat(said: str, *arguments: str) -> Any:  # noqa: ANN401  (a result of the runner)
        return CliRunner().invoke(app, ["chat", "--url", f"http://127.0.0.1:{peer.port}", *arguments], input=said)

    return chat


def test_chat_begins_with_the_tuned_model_and_shows_answers_alone(peer: Peer) -> None:
    done = served(peer, "base", "tuned")("Hello\nAnd?\n")

    assert (done.exit_code, done.stdout, done.stderr) == (0, "Welcome\nWelcome\n", "")
    assert [body["model"] for path, body, _ in peer.asked if path.startswith("/v1/chat")] == ["tuned", "tuned"]
    assert [turn["content"] for turn in peer.asked[-1][1]["messages"]] == ["Hello", "Welcome", "And?"]


def test_model_that_is_not_served_is_refused_with_those_that_are(peer: Peer) -> None:
    done = served(peer, "base", "tuned")("Hello\n", "--model", "other")

    assert done.exit_code == 1
    assert done.stderr.splitlines()[0] == "error: the model 'other' is not served here; served are base, tuned"


@pytest.mark.parametrize(("terminal", "shown"), [(True, "a�[2Jb\tc\n"), (False, "a\x1b[2Jb\tc\n")])
def test_terminal_is_not_told_what_it_would_obey(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, terminal: bool, shown: str
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)

    say("a\x1b[2Jb\tc\n")

    assert capsys.readouterr().out == shown


def test_stream_ends_with_its_last_event_and_not_with_the_connection(peer: Peer) -> None:
    peer.answer("/v1/completions", events(chunk("a")) + b"data: never read\n\n", kind=SSE)

    assert list(peer.client().answer("base", Question("Say"))) == ["a"]
