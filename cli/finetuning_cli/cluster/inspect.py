"""`finetune status`, `wait`, `logs` and `report` on a cluster."""

import json
import math
from collections.abc import Iterator

import typer
from rich.console import Console

from finetuning_api.base import Resource
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_cli.cluster.find import ALL_KINDS, find
from finetuning_cli.cluster.objects_out import plain, print_objects
from finetuning_cli.display import LiveDisplay
from finetuning_cli.output import has_results, print_outcome, print_status, report_content, status_table
from finetuning_client import Client, ClusterError, Goal, NotFoundError, WaitFailedError
from finetuning_client.api import Kind, Object
from finetuning_client.following import Deadline, follow
from finetuning_client.logs import LogChoice, log_lines
from finetuning_client.objects import typed
from finetuning_client.waiting import Standing, has_ended, outcome_text, standing


def show_status(name: str | None, *, client: Client, output: str, watch: bool) -> None:
    """Print one object, or a line for each; with ``watch`` until the object has ended."""
    if name is None:
        if watch:
            raise ClusterError("--watch follows one object", "Name it: finetune status NAME --watch")
        _show_all(client, output)
        return
    kind, item = find(client, name)
    if watch:
        item = _follow(client, kind, item["metadata"]["name"], output=output)
    elif output != "table":
        print_objects([item], output=output, as_list=False)
    if output == "table":
        print_status(Console(), typed(item), layout=None)
        if not (item.get("status") or {}).get("conditions"):
            place = client.connection.place
            typer.echo(f"no operator has looked at it yet: does one run, and does it watch the {place}?", err=True)


def _show_all(client: Client, output: str) -> None:
    items = [item for kind in ALL_KINDS for item in client.api.list(kind)["items"]]
    if output != "table":
        print_objects(items, output=output, as_list=True)
    elif not items:
        typer.echo(f"there are no objects in {client.connection.place}", err=True)
    else:
        Console().print(status_table({(each.kind, each.metadata.name): each for each in _readable(items)}))


def _readable(items: list[Object]) -> Iterator[Resource]:
    """Yield what this version can read; say what it cannot."""
    for item in items:
        try:
            yield typed(item)
        except ClusterError as error:
            typer.echo(f"{error.message}. {error.hint}", err=True)


def _follow(client: Client, kind: Kind, name: str, *, output: str) -> Object:
    """Show an object until it has ended, and return its last state."""
    latest: Object = {}
    with LiveDisplay(Console(stderr=True)) as display:
        for latest in _until_end(follow(client.api, kind, name, deadline=Deadline(None))):
            if output == "json":
                typer.echo(json.dumps(plain(latest)))
            elif output == "yaml":
                typer.echo("---")
                print_objects([latest], output=output, as_list=False)
            else:
                _show(display, latest)
    return latest


def _until_end(changes: Iterator[Object]) -> Iterator[Object]:
    for item in changes:
        yield item
        if has_ended(item):
            return


def _show(display: LiveDisplay, item: Object) -> None:
    resource = typed(item)
    key = (resource.kind, resource.metadata.name)
    display.show({key: resource}, (key,))


def wait_for(name: str, *, client: Client, goal: Goal, timeout: float) -> int:
    """Wait for a condition; return 0 when it is there, 1 when it can never be. Raises WaitTimeoutError."""
    kind, found = find(client, name)
    deadline = Deadline(None if math.isinf(timeout) else timeout)
    errors = Console(stderr=True)
    try:
        with LiveDisplay(errors) as display:
            for item in follow(client.api, kind, found["metadata"]["name"], deadline=deadline):
                _show(display, item)
                found = item
                if standing(item, goal) is not Standing.OPEN:
                    break
    except NotFoundError as error:
        raise WaitFailedError(error.message, "Nothing is left to wait for.") from error
    title = f"{kind.name} {found['metadata']['name']}"
    if standing(found, goal) is Standing.NEVER:
        raise WaitFailedError(f"{title}: {outcome_text(found, goal)}", f"See more: finetune status {name} --cluster")
    typer.echo(f"{title}: {goal.text_for(kind.name)}")
    return 0


def show_logs(name: str, *, client: Client, choice: LogChoice) -> None:
    """Print the log of a stage."""
    _, item = find(client, name)
    for line in log_lines(client.api, typed(item), choice):
        typer.echo(line)


def show_report(name: str, *, client: Client, output: str) -> None:
    """Print the results of a job from its status. Raises ClusterError while there are none."""
    resource = typed(find(client, name)[1])
    if not isinstance(resource, FineTuningJob | EvaluationJob):
        raise ClusterError(f"{name} is a {resource.kind}, not a job", "Give the name of a job.")
    if not has_results(resource):
        hint = f"See how far it is: finetune status {name}"
        raise ClusterError(f"{name} has no results yet ({resource.status.phase.value})", hint)
    if output == "json":
        typer.echo(json.dumps(report_content(resource), indent=2))
    else:
        print_outcome(Console(), resource, layout=None)
