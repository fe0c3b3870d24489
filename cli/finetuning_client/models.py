"""What a server of models is asked, and what it answers, whole or piece by piece: OpenAI's API, of any variant."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from finetuning_client.errors import ClusterError, UnreachableError

TOKEN_ENV = "FINETUNING_TOKEN"  # noqa: S105  (a variable's name)
"""Holds the token for servers that ask for one: never an argument, which others on the machine could read."""
_FIRST_ERROR, _UNAUTHORIZED = 400, 401
_LONGEST = 500
"""Characters of a foreign answer that are shown."""
_EVENT, _LAST_EVENT = b"data:", b"[DONE]"


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked. Without sampling it answers with the likeliest tokens, always the same."""

    text: str
    chat: bool = False
    """Whether the text is a user's message of a chat, rather than what is gone on from."""
    max_new_tokens: int = 128
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


class ModelServer:
    """HTTP with one server. Every request has a connection of its own: people think longer than connections last."""

    def __init__(
        self, http: HTTPConnection, name: str, *, hint: str = "", prefix: str = "", token: str | None = None
    ) -> None:
        """``name`` and ``hint`` are for messages, ``prefix`` comes before every path; a token is never shown."""
        self._http = http
        self._name = name
        self._hint = hint
        self._prefix = prefix
        self._token = token

    def models(self) -> list[str]:
        """Return what can be asked, the base model first, without names that stand for two. Raises ClusterError."""
        return [str(model["id"]) for model in self.ask("/v1/models")["data"] if not model.get("split")]

    def answer(self, model: str, question: Question) -> Iterator[str]:
        """Yield what a model answers, as it comes. Raises ClusterError, also half-way."""
        if question.chat:
            yield from self.chat(model, [Message("user", question.text)], question)
            return
        content = {**_options(model, question), "prompt": question.text}
        for choice in self._choices("/v1/completions", content):
            yield str(choice.get("text") or "")

    def chat(self, model: str, messages: Sequence[Message], question: Question) -> Iterator[str]:
        """Yield what a model says next in a chat, as it comes; of ``question`` only the options count.

        Raises ClusterError, also half-way.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        content = {**_options(model, question), "messages": turns}
        for choice in self._choices("/v1/chat/completions", content):
            # A server that does not stream answers with a whole message.
            said = choice.get("delta") or choice.get("message") or {}
            yield str(said.get("content") or "")

    def ask(self, path: str, content: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401  (JSON)
        """Return the JSON that the server answers: to a POST where there is content. Raises ClusterError."""
        try:
            return self._json(self._send(path, content), path)
        finally:
            self._http.close()

    def _choices(self, path: str, content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield the first choice of every chunk; leaving early cuts the connection, which ends the work."""
        try:
            response = self._send(path, content)
            if response.headers.get_content_type() != "text/event-stream":
                yield self._json(response, path)["choices"][0]
                return
            for event in self._events(response, path):
                if "error" in event:
                    raise ClusterError(f"{self._name} stops half-way: {_told(event)}", self._hint)
                yield from event.get("choices", ())[:1]
        finally:
            self._http.close()

    def _events(self, response: HTTPResponse, path: str) -> Iterator[Mapping[str, Any]]:
        for line in self._lines(response, path):
            data = line.removeprefix(_EVENT).strip()
            if not line.startswith(_EVENT) or not data:
                continue
            if data == _LAST_EVENT:
                # Not the end of the connection: forwarded ones do not tell of it.
                return
            yield json.loads(data)
        raise UnreachableError(f"{self._name} was cut off half-way through its answer", self._hint)

    def _lines(self, response: HTTPResponse, path: str) -> Iterator[bytes]:
        try:
            yield from response
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"{self._name} stops answering {path}: {error!r}", self._hint) from error

    def _send(self, path: str, content: Mapping[str, Any] | None) -> HTTPResponse:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        body = json.dumps(content) if content is not None else None
        try:
            self._http.request("POST" if body is not None else "GET", self._prefix + path, body=body, headers=headers)
            response = self._http.getresponse()
            if response.status < _FIRST_ERROR:
                return response
            told = response.read()
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"{self._name} does not answer {path}: {error!r}", self._hint) from error
        hint = f"Set {TOKEN_ENV} to a token that it accepts." if response.status == _UNAUTHORIZED else self._hint
        raise ClusterError(f"{self._name} answers {response.status} to {path}: {_told(_parsed(told))}", hint)

    def _json(self, response: HTTPResponse, path: str) -> Any:  # noqa: ANN401  (JSON)
        try:
            return json.loads(response.read())
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"{self._name} stops answering {path}: {error!r}", self._hint) from error
        except ValueError as error:
            raise ClusterError(f"{self._name} answers no JSON to {path}", self._hint) from error


def _options(model: str, question: Question) -> dict[str, Any]:
    return {
        "model": model,
        "max_tokens": question.max_new_tokens,
        "temperature": question.temperature,
        "stream": True,
    }


def _parsed(body: bytes) -> Any:  # noqa: ANN401  (JSON)
    text = body.decode("utf-8", errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _told(answer: Any) -> str:  # noqa: ANN401  (JSON)
    """Return the message of an error object of OpenAI's API, or whatever else a server says."""
    error = answer.get("error") if isinstance(answer, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    return str(message or answer)[:_LONGEST]
