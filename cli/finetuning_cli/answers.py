"""Answers as they come: on a terminal they grow, in a pipe each is there once it is whole."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import typer
from rich.console import Console
from rich.markup import escape

_UNSEEN = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""What a terminal would obey rather than show."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a model said since its last piece."""

    model: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; it comes after its pieces, where there are any."""

    model: str
    text: str
    tokens: int | None = None
    """Tokens generated; None where nobody tells."""
    seconds: float | None = None


def gathered(model: str, texts: Iterable[str]) -> Iterator[Piece | Answer]:
    """Yield the pieces of one answer, and then the whole of it."""
    kept = []
    for text in texts:
        kept.append(text)
        yield Piece(model, text)
    yield Answer(model, "".join(kept))


def show(answers: Iterable[Piece | Answer], *, as_json: bool) -> None:
    """Print answers: on a terminal one growing after the other, each under the name of its model."""
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal and not as_json:
        _show_growing(answers, console)
        return
    for answer in answers:
        if isinstance(answer, Piece):
            continue
        typer.echo(_json(answer) if as_json else f"{answer.model}: {answer.text}")


def say(text: str) -> None:
    """Write a piece of an answer at once: to a terminal without what that would obey, through a pipe as it is."""
    # color: else every escape is cut out where there is no terminal.
    typer.echo(text.translate(_UNSEEN) if sys.stdout.isatty() else text, nl=False, color=True)


def _show_growing(answers: Iterable[Piece | Answer], console: Console) -> None:
    begun: set[str] = set()
    with console.status("loads the model ...") as status:
        for answer in answers:
            status.stop()
            if answer.model not in begun:
                begun.add(answer.model)
                console.print(f"[bold]{escape(answer.model)}[/bold]")
                if isinstance(answer, Answer):
                    say(answer.text)
            if isinstance(answer, Piece):
                say(answer.text)
            else:
                console.print(f"\n[dim]{_measured(answer)}[/dim]")


def _measured(answer: Answer) -> str:
    if answer.tokens is None or answer.seconds is None:
        return ""
    return f"{answer.tokens} tokens in {answer.seconds:.1f} s"


def _json(answer: Answer) -> str:
    told = {"candidate": answer.model, "text": answer.text, "tokens": answer.tokens, "seconds": answer.seconds}
    return json.dumps({name: value for name, value in told.items() if value is not None}, ensure_ascii=False)
