"""The command `finetune`. Everything heavy is imported by the command that needs it: --help answers at once."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="finetune",
    help="Fine-tune, evaluate and ask language models from one manifest, on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class ObjectFormat(StrEnum):
    """How an object is printed."""

    YAML = "yaml"
    JSON = "json"


class StatusFormat(StrEnum):
    """How the state of objects is printed."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


State = Annotated[Path, typer.Option("--state", help="State folder.", metavar="DIR")]
JobName = Annotated[str, typer.Argument(help="Name of the job.", metavar="NAME")]
_STATE = Path(".finetuning")


@contextmanager
def _told() -> Iterator[None]:
    """Show a failure that a person can act on as a message, without a traceback."""
    from finetuning_workload.errors import ProgramError

    try:
        yield
    except ProgramError as error:
        typer.echo(f"error: {error.message}", err=True)
        if error.hint:
            typer.echo(f"  {error.hint}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # Whoever read our output has gone: that is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Manifest.", metavar="FILE")],
    state: State = _STATE,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Fail when another run uses the state folder.")] = False,
    output: Annotated[ObjectFormat | None, typer.Option("-o", "--output", help="Print the objects at the end.")] = None,
) -> None:
    """Do what a manifest asks for: relocate, train, evaluate. Run it again to go on where it stopped."""
    with _told():
        from finetuning_cli.commands.run import run_file

        raise typer.Exit(run_file(file, state=state, wait=not no_wait, output=output and output.value))


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Manifests.", metavar="FILE...")],
) -> None:
    """Report every mistake of manifests, each with its field and what to write instead."""
    with _told():
        from finetuning_cli.commands.validate import validate_files

        raise typer.Exit(validate_files(files))


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="Name of an object; without it, all.", metavar="[NAME]")] = None,
    state: State = _STATE,
    output: Annotated[StatusFormat, typer.Option("-o", "--output", help="Form.")] = StatusFormat.TABLE,
) -> None:
    """Show where objects stand, or one object as a cluster would show it."""
    with _told():
        from finetuning_cli.commands.inspect import show_status

        show_status(name, state=state, output=output.value)


@app.command()
def logs(
    name: JobName,
    stage: Annotated[str | None, typer.Argument(help="Stage; without it, the latest.", metavar="[STAGE]")] = None,
    state: State = _STATE,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stage ends.")] = False,
) -> None:
    """Print the log of a stage."""
    with _told():
        from finetuning_cli.commands.inspect import show_logs

        show_logs(name, stage, state=state, follow=follow)


@app.command()
def report(name: JobName, state: State = _STATE) -> None:
    """Print the results of a job: table, intervals, verdict, and where the report lies."""
    with _told():
        from finetuning_cli.commands.inspect import show_report

        show_report(name, state=state)


@app.command()
def prompt(
    name: JobName,
    text: Annotated[str, typer.Argument(help="What to ask.", metavar="TEXT")],
    state: State = _STATE,
    chat: Annotated[bool, typer.Option("--chat", help="Send TEXT as a user's message of a chat.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Send TEXT as it is, without the job's prompt template.")] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens per answer at most.")] = 128,
) -> None:
    """Ask base and tuned model the same, side by side."""
    with _told():
        from finetuning_cli.commands.prompt import ask

        ask(name, text, state=state, chat=chat, raw=raw, max_new_tokens=max_new_tokens)


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="Name of an object.", metavar="NAME")],
    state: State = _STATE,
) -> None:
    """Remove a job with its adapter and report. Relocated models and data stay for other jobs."""
    with _told():
        from finetuning_cli.commands.delete import delete_object

        delete_object(name, state=state)


@app.command()
def crds(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail when a file is out of date.")] = False,
    root: Annotated[Path, typer.Option("--root", help="Root of the repository.", metavar="DIR")] = Path(),
) -> None:
    """Write crds/*.yaml and docs/manifest-reference.md from the types."""
    from finetuning_api.generate import write_generated

    stale = write_generated(root, check=check)
    for path in stale:
        typer.echo(f"{path} {'is out of date: run finetune crds' if check else 'written'}")
    raise typer.Exit(1 if check and stale else 0)


@app.command()
def reference() -> None:
    """Print the reference of all manifests as Markdown."""
    from finetuning_api.reference import reference_markdown

    with _told():
        typer.echo(reference_markdown())


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as version_of

    typer.echo(version_of("finetuning-operator"))
