"""The command `finetune`. Everything heavy is imported by the command that needs it: --help answers at once."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from finetuning_client import Client

app = typer.Typer(
    name="finetune",
    help="Fine-tune, evaluate and ask language models from one manifest: on this machine or on a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class ObjectFormat(StrEnum):
    """How an object is printed."""

    YAML = "yaml"
    JSON = "json"


class ReportFormat(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


class AnswerFormat(StrEnum):
    """How answers are printed."""

    TEXT = "text"
    JSON = "json"


class ExportForm(StrEnum):
    """What an export holds: finetuning_api's ExportFormat, which is loaded only by who exports."""

    MERGED = "merged"
    ADAPTER = "adapter"


class StatusFormat(StrEnum):
    """How the state of objects is printed."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


_PANEL = "Place (docs/cli.md tells how it is found)"
State = Annotated[Path, typer.Option("--state", help="State folder.", metavar="DIR")]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--state", help="Look in this state folder.", metavar="DIR", rich_help_panel=_PANEL, show_default=".finetuning"
    ),
]
InCluster = Annotated[bool, typer.Option("--cluster", help="Look in the cluster.", rich_help_panel=_PANEL)]
Namespace = Annotated[
    str | None, typer.Option("-n", "--namespace", help="Namespace of the cluster.", rich_help_panel=_PANEL)
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.", rich_help_panel=_PANEL)]
Kubeconfig = Annotated[
    Path | None, typer.Option("--kubeconfig", help="Kubeconfig file.", metavar="FILE", rich_help_panel=_PANEL)
]
JobName = Annotated[str, typer.Argument(help="Name of the job.", metavar="NAME")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens per answer at most.")]
AnyName = Annotated[str, typer.Argument(help="Name of an object, or KIND/NAME on a cluster.", metavar="NAME")]
_STATE = Path(".finetuning")


@contextmanager
def _told() -> Iterator[None]:
    """Show a failure that a person can act on as a message, without a traceback."""
    from finetuning_client import ClusterError, WaitTimeoutError
    from finetuning_workload.errors import ProgramError

    try:
        yield
    except (ProgramError, ClusterError) as error:
        typer.echo(f"error: {error.message}", err=True)
        if error.hint:
            typer.echo(f"  {error.hint}", err=True)
        raise typer.Exit(_TIMEOUT if isinstance(error, WaitTimeoutError) else 1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # Whoever read our output has gone: that is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


_TIMEOUT = 124
"""Exit code of a wait that took too long, as of the command `timeout`."""


def _cluster(namespace: str | None, *, context: str | None, kubeconfig: Path | None) -> "Client":
    from finetuning_cli.place import PlaceOptions

    return PlaceOptions(namespace=namespace, context=context, kubeconfig=kubeconfig).client()


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Manifest.", metavar="FILE")],
    state: State = _STATE,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Fail when another run uses the state folder.")] = False,
    output: Annotated[ObjectFormat | None, typer.Option("-o", "--output", help="Print the objects at the end.")] = None,
    presets: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with the presets that jobs pick: presets of the chart's values."),
    ] = None,
) -> None:
    """Do what a manifest asks for: relocate, train, evaluate. Run it again to go on where it stopped."""
    with _told():
        from finetuning_cli.commands.run import run_file

        raise typer.Exit(run_file(file, state=state, wait=not no_wait, output=output and output.value, presets=presets))


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Manifests.", metavar="FILE...")],
) -> None:
    """Report every mistake of manifests, each with its field and what to write instead."""
    with _told():
        from finetuning_cli.commands.validate import validate_files

        raise typer.Exit(validate_files(files))


@app.command()
def apply(
    files: Annotated[
        list[Path], typer.Option("-f", "--filename", help="Manifest, folder of manifests, or -.", metavar="FILE")
    ],
    force: Annotated[bool, typer.Option("--force-conflicts", help="Take over fields that others set.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Let the cluster check it, and change nothing.")] = False,
    output: Annotated[ObjectFormat | None, typer.Option("-o", "--output", help="Print the objects.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Bring manifests to a cluster, where the operator does what they ask for."""
    with _told():
        from finetuning_cli.cluster.apply import ApplyOptions, apply_paths

        options = ApplyOptions(force=force, dry_run=dry_run, output=output and output.value)
        client = _cluster(namespace, context=context, kubeconfig=kubeconfig)
        raise typer.Exit(apply_paths(files, client=client, options=options))


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(help="NAME, or KIND/NAME on a cluster; without it, all.", metavar="[NAME]")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="On a cluster: go on until the object ends.")] = False,
    output: Annotated[StatusFormat, typer.Option("-o", "--output", help="Form.")] = StatusFormat.TABLE,
    state: Folder = None,
    cluster: InCluster = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show where objects stand, or one object in full."""
    with _told():
        from finetuning_cli.place import PlaceOptions, local_state

        place = PlaceOptions(state, namespace, context, kubeconfig, cluster)
        folder = local_state(place, name)
        if folder is not None:
            from finetuning_cli.commands.inspect import show_status

            show_status(name, state=folder, output=output.value)
            return
        from finetuning_cli.cluster.inspect import show_status as show_cluster_status

        show_cluster_status(name, client=place.client(), output=output.value, watch=watch)


@app.command()
def wait(
    name: AnyName,
    goal: Annotated[
        str, typer.Option("--for", help="complete, failed or condition=NAME[=STATUS].", metavar="GOAL")
    ] = "complete",
    timeout: Annotated[
        str | None, typer.Option("--timeout", help="Longest wait, such as 90s, 10m or 2h; unset waits on.")
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Wait for a job on a cluster. Exit code 0: it is there. 1: it can never be, with the reason. 124: time is over."""
    with _told():
        from finetuning_cli.cluster.inspect import wait_for
        from finetuning_cli.durations import seconds_of
        from finetuning_client import Goal

        aim, seconds = Goal.parse(goal), seconds_of(timeout)
        client = _cluster(namespace, context=context, kubeconfig=kubeconfig)
        raise typer.Exit(wait_for(name, client=client, goal=aim, timeout=seconds))


@app.command()
def logs(
    name: AnyName,
    stage: Annotated[str | None, typer.Argument(help="Stage; without it, the latest.", metavar="[STAGE]")] = None,
    stage_option: Annotated[str | None, typer.Option("--stage", help="The same as the second argument.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", min=0, help="On a cluster: only the last lines.")] = None,
    worker: Annotated[int, typer.Option("--worker", min=0, help="On a cluster: which worker of several.")] = 0,
    state: Folder = None,
    cluster: InCluster = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of a stage."""
    with _told():
        from finetuning_cli.place import PlaceOptions, local_state

        place = PlaceOptions(state, namespace, context, kubeconfig, cluster)
        folder, wanted = local_state(place, name), stage or stage_option
        if folder is not None:
            from finetuning_cli.commands.inspect import show_logs

            show_logs(name, wanted, state=folder, follow=follow)
            return
        from finetuning_cli.cluster.inspect import show_logs as show_cluster_logs
        from finetuning_client.logs import LogChoice

        choice = LogChoice(wanted, worker=worker, follow=follow, tail=tail)
        show_cluster_logs(name, client=place.client(), choice=choice)


@app.command()
def report(
    name: JobName,
    output: Annotated[ReportFormat, typer.Option("-o", "--output", help="Form.")] = ReportFormat.TABLE,
    state: Folder = None,
    cluster: InCluster = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the results of a job: table, intervals, verdict, and where the report lies."""
    with _told():
        from finetuning_cli.place import PlaceOptions, local_state

        place = PlaceOptions(state, namespace, context, kubeconfig, cluster)
        folder = local_state(place, name)
        if folder is not None:
            from finetuning_cli.commands.inspect import show_report

            show_report(name, state=folder, output=output.value)
            return
        from finetuning_cli.cluster.inspect import show_report as show_cluster_report

        show_cluster_report(name, client=place.client(), output=output.value)


@app.command()
def prompt(
    name: JobName,
    text: Annotated[str, typer.Argument(help="What to ask.", metavar="TEXT")],
    chat: Annotated[bool, typer.Option("--chat", help="Send TEXT as a user's message of a chat.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Send TEXT as it is, without the job's prompt template.")] = False,
    max_new_tokens: MaxNewTokens = 128,
    output: Annotated[AnswerFormat, typer.Option("-o", "--output", help="Form.")] = AnswerFormat.TEXT,
    state: Folder = None,
    cluster: InCluster = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Ask base and tuned model the same, and show the answers as they come. On a cluster the job must be served."""
    with _told():
        from finetuning_cli.place import PlaceOptions, local_state

        place, as_json = PlaceOptions(state, namespace, context, kubeconfig, cluster), output is AnswerFormat.JSON
        folder = local_state(place, name)
        if folder is not None:
            from finetuning_cli.commands.prompt import ask

            ask(name, text, state=folder, chat=chat, raw=raw, max_new_tokens=max_new_tokens, as_json=as_json)
            return
        from finetuning_cli.cluster.prompt import ask as ask_cluster

        ask_cluster(
            name, text, client=place.client(), chat=chat, raw=raw, max_new_tokens=max_new_tokens, as_json=as_json
        )


@app.command()
def chat(
    name: Annotated[
        str | None, typer.Argument(help="Name of the job; here unset is the only one.", metavar="[NAME]")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Model to begin with.", metavar="NAME", show_default="the tuned one")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="Chat with the server at this address.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=2, help="0 says what is likeliest; higher varies more.")
    ] = 0.0,
    state: Folder = None,
    cluster: InCluster = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Talk with a model: lines are turns, answers come as they are made. On a cluster the job must be served."""
    with _told():
        from finetuning_cli.commands.chat import chat as chat_with
        from finetuning_cli.commands.chat import server_for
        from finetuning_cli.place import PlaceOptions
        from finetuning_client.models import Question

        place = PlaceOptions(state, namespace, context, kubeconfig, cluster)
        question = Question("", chat=True, max_new_tokens=max_new_tokens, temperature=temperature)
        raise typer.Exit(chat_with(server_for(name, place=place, url=url), model=model, question=question))


@app.command()
def serve(
    target: Annotated[str, typer.Argument(help="Name of a job that was run here, or its manifest.", metavar="NAME")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8000,
    tokens: Annotated[
        Path | None,
        typer.Option("--tokens", help="Folder with a file for each token; unset lets everybody ask.", metavar="DIR"),
    ] = None,
    state: State = _STATE,
) -> None:
    """Serve base and tuned model of a job on this machine, with the server that clusters run, until Ctrl-C."""
    with _told():
        from finetuning_cli.commands.serve import serve as serve_job

        serve_job(target, state=state, host=host, port=port, tokens=tokens)


@app.command()
def tensorboard(
    name: JobName,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Port; without it 6006, or the next one that is free."),
    ] = None,
    state: Folder = None,
    cluster: InCluster = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show the course of a training in TensorBoard until Ctrl-C; on a cluster, tell where the job's own one answers."""
    with _told():
        from finetuning_cli.commands.tensorboard import show_tensorboard, tell_tensorboard
        from finetuning_cli.place import PlaceOptions, local_state

        place = PlaceOptions(state, namespace, context, kubeconfig, cluster)
        folder = local_state(place, name)
        if folder is not None:
            show_tensorboard(name, state=folder, port=port)
        else:
            tell_tensorboard(name, client=place.client(), port=port)


@app.command()
def export(
    name: JobName,
    form: Annotated[
        ExportForm,
        typer.Option("--format", help="merged: one model that needs no PEFT. adapter: as it was trained."),
    ] = ExportForm.MERGED,
    to: Annotated[
        str | None,
        typer.Option("--to", help="oci://registry/repository:tag or hf://owner/name; unset keeps it.", metavar="ADDR"),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch of the hub.", metavar="NAME")] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="Address of a private hub or registry.", metavar="URL")
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option("--secret", help="Secret that may write there; here variables that begin with its name."),
    ] = None,
    any_verdict: Annotated[bool, typer.Option("--any-verdict", help="Also export what did not pass its gate.")] = False,
    state: Folder = None,
    cluster: InCluster = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Make something of a job's result for others: a merged model, or a copy in a registry or on a hub."""
    with _told():
        from finetuning_api.export import ExportFormat
        from finetuning_cli.exports import Wish
        from finetuning_cli.place import PlaceOptions, local_state

        place = PlaceOptions(state, namespace, context, kubeconfig, cluster)
        folder = local_state(place, name)
        wish = Wish(ExportFormat(form.value), to, revision, endpoint, secret, after_gate=not any_verdict)
        if folder is not None:
            from finetuning_cli.commands.export import export as export_here

            raise typer.Exit(export_here(name, wish, state=folder))
        from finetuning_cli.cluster.export import export as export_in_cluster

        export_in_cluster(name, wish, client=place.client())


@app.command()
def cancel(name: AnyName, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Stop a job on a cluster after a checkpoint, and keep it. A local run is stopped with Ctrl-C."""
    with _told():
        from finetuning_cli.cluster.change import cancel as cancel_job

        cancel_job(name, client=_cluster(namespace, context=context, kubeconfig=kubeconfig))


@app.command()
def resume(name: AnyName, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Let a cancelled job on a cluster go on at its last checkpoint."""
    with _told():
        from finetuning_cli.cluster.change import resume as resume_job

        resume_job(name, client=_cluster(namespace, context=context, kubeconfig=kubeconfig))


@app.command()
def delete(
    name: AnyName,
    state: Folder = None,
    cluster: InCluster = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Remove a job with its adapter and report. Relocated models and data stay for other jobs."""
    with _told():
        from finetuning_cli.place import PlaceOptions, local_state

        place = PlaceOptions(state, namespace, context, kubeconfig, cluster)
        folder = local_state(place, name, destructive=True)
        if folder is not None:
            from finetuning_cli.commands.delete import delete_object

            delete_object(name, state=folder)
            return
        from finetuning_cli.cluster.change import delete as delete_in_cluster

        delete_in_cluster(name, client=place.client())


@app.command()
def crds(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail when a file is out of date.")] = False,
    root: Annotated[Path, typer.Option("--root", help="Root of the repository.", metavar="DIR")] = Path(),
) -> None:
    """Write crds/*.yaml, the chart's crds.yaml and docs/manifest-reference.md from the types."""
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
