"""`finetune chat`: many turns with a served model, on a terminal or through a pipe."""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import typer
from rich.console import Console

from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_cli.answers import say
from finetuning_cli.commands.serve import LOOPBACK, config_for, free_port, is_ready
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.program import running
from finetuning_cli.local.store import Store
from finetuning_cli.place import PlaceOptions, local_state
from finetuning_client.errors import ClusterError
from finetuning_client.models import TOKEN_ENV, Message, ModelServer, Question
from finetuning_workload.errors import UserError

_ANSWER_SECONDS = 600.0
_HELP = """\
  /model [NAME]  show or change the model
  /reset         forget what was said
  /exit          end, as Ctrl-D does"""
_PROMPT = "> "


def server_for(name: str | None, *, place: PlaceOptions, url: str | None) -> AbstractContextManager[ModelServer]:
    """Return the server to talk to: the one at an address, a local job's or that of a cluster.

    Raises UserError or ClusterError when there is none.
    """
    if url is not None:
        return nullcontext(_server_at(url))
    folder = local_state(place, name)
    if folder is not None:
        return _local_server(name, state=folder)
    if name is None:
        hint = "Name a FineTuningJob or an InferenceServer."
        raise UserError(Reason.INVALID_SPEC, "on a cluster a chat needs the name of what is served", hint)
    from finetuning_cli.cluster.prompt import served

    _, server = served(name, place.client())
    return nullcontext(server)


@contextmanager
def _local_server(name: str | None, *, state: Path) -> Iterator[ModelServer]:
    """Run the server of a local job for as long as the context lasts. Raises UserError when it has no result."""
    layout = Layout.at(state)
    config = config_for(name or _only_job(layout), layout=layout, host=LOOPBACK, port=free_port())
    awaited = [adapter.name for adapter in config.adapters if adapter.awaited]
    if awaited:
        hint = f"See how far it is: finetune status {awaited[0]}"
        raise UserError(Reason.WAITING, f"{awaited[0]} has no tuned model yet", hint)
    with running(config) as program:
        with Console(stderr=True).status("loads the model ..."):
            ready = is_ready(program, config)
        if not ready:
            raise program.failure()
        try:
            yield ModelServer(HTTPConnection(LOOPBACK, config.port, timeout=_ANSWER_SECONDS), "the server")
        finally:
            program.terminate()
            program.process.wait()


def _server_at(url: str) -> ModelServer:
    """Return the server at an address. Raises UserError for something else than http:// or https://."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = f"--url: {url!r} is no address of a server"
        raise UserError(Reason.INVALID_SPEC, message, "Write it as http://127.0.0.1:8000.")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_ANSWER_SECONDS)
    # Clients of OpenAI's API are told an address that ends in /v1.
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return ModelServer(connection, f"the server at {url}", prefix=prefix, token=os.environ.get(TOKEN_ENV))


def chat(server: AbstractContextManager[ModelServer], *, model: str | None, question: Question) -> int:
    """Talk until the input ends or /exit; return the exit code: 1 when a question had no answer.

    On a terminal Ctrl-C ends an answer, and not the chat.
    """
    with server as asked:
        models = asked.models()
        talk = Chat(asked, models=models, model=_chosen(model, models), question=question)
        if talk.is_interactive:
            typer.echo(f"chats with {talk.model}\n{_HELP}")
        for line in _lines(interactive=talk.is_interactive):
            if not talk.take(line):
                break
    return 1 if talk.failures else 0


@dataclass(slots=True)
class Chat:
    """One conversation."""

    server: ModelServer
    models: list[str]
    model: str
    question: Question
    messages: list[Message] = field(default_factory=list)
    failures: int = 0

    @property
    def is_interactive(self) -> bool:
        """Whether a person types, rather than a pipe."""
        return sys.stdin.isatty()

    def take(self, line: str) -> bool:
        """Do what a line asks for; return whether the chat goes on."""
        text = line.strip()
        command, _, rest = text.partition(" ")
        match command:
            case "":
                return True
            case "/exit" | "/quit":
                return False
            case "/reset":
                self.messages.clear()
                self._note("forgot what was said")
            case "/model":
                self._choose(rest.strip())
            case "/help":
                typer.echo(_HELP, err=True)
            case _ if command.startswith("/"):
                typer.echo(f"there is no command {command}\n{_HELP}", err=True)
            case _:
                self._say(text)
        return True

    def _choose(self, name: str) -> None:
        if not name:
            marks = (f"{'*' if each == self.model else ' '} {each}" for each in self.models)
            typer.echo("\n".join(marks), err=True)
            return
        self.models = self.server.models()
        if name in self.models:
            self.model = name
            self._note(f"chats with {name}")
        else:
            self._fail(f"the model {name!r} is not served here; served are {', '.join(self.models)}")

    def _say(self, text: str) -> None:
        asked = [*self.messages, Message("user", text)]
        said: list[str] = []
        try:
            for piece in self.server.chat(self.model, asked, self.question):
                said.append(piece)
                say(piece)
        except KeyboardInterrupt:
            if not self.is_interactive:
                raise
        except ClusterError as error:
            if said:
                typer.echo("")
            self._fail(f"{error.message}\n  {error.hint}" if error.hint else error.message)
            return
        typer.echo("")
        # What was cut short by Ctrl-C was said all the same.
        self.messages = [*asked, Message("assistant", "".join(said))]

    def _note(self, text: str) -> None:
        if self.is_interactive:
            typer.echo(text, err=True)

    def _fail(self, message: str) -> None:
        self.failures += 1
        typer.echo(f"error: {message}", err=True)


def _chosen(model: str | None, models: list[str]) -> str:
    """Return the model to begin with: the one asked for, else the newest that was tuned, else the base model."""
    if model is not None and model not in models:
        message = f"the model {model!r} is not served here; served are {', '.join(models)}"
        raise UserError(Reason.INVALID_SPEC, message, "Name one of them with --model.")
    return model or models[-1]


def _lines(*, interactive: bool) -> Iterator[str]:
    """Yield what is said, line by line."""
    if not interactive:
        yield from sys.stdin
        return
    import readline  # noqa: F401  (gives input() a history and editing)

    while True:
        try:
            yield input(_PROMPT)
        except EOFError:
            typer.echo("")
            return
        except KeyboardInterrupt:
            typer.echo("\n/exit or Ctrl-D ends")


def _only_job(layout: Layout) -> str:
    """Return the one job that has a result. Raises UserError where there is none, or more."""
    jobs = [each for each in Store(layout).all().values() if isinstance(each, FineTuningJob)]
    names = [job.metadata.name for job in jobs if job.status.artifacts.adapter is not None]
    if len(names) == 1:
        return names[0]
    told = f"holds several: {', '.join(names)}" if names else "holds no tuned model"
    raise UserError(Reason.INVALID_SPEC, f"{layout.root} {told}", "Name a job, or give the address of a server: --url.")
