"""`finetune export` on a cluster: the job is told, and the operator does it."""

import typer

from finetuning_api.finetuningjob import FineTuningJob
from finetuning_cli.cluster.find import find
from finetuning_cli.exports import Wish, export_record, told, with_export
from finetuning_client import Client, ClusterError
from finetuning_client.objects import typed


def export(name: str, wish: Wish, *, client: Client) -> None:
    """Ask for an export of a job, or tell what became of it. Raises ClusterError for what is no job."""
    kind, item = find(client, name)
    job = typed(item)
    if not isinstance(job, FineTuningJob):
        raise ClusterError(f"{name} is an {kind.name}, which makes no model", "Name a FineTuningJob.")
    plain_name = job.metadata.name
    export_name, exports = with_export(job, wish)
    record = export_record(job, export_name)
    if record is not None:
        typer.echo(f"export {record.name}: {record.state.value} ({client.connection.place})")
        for word, text in told(record):
            typer.echo(f"  {word:<10}{text}")
        return
    # Whoever else changes the list between reading and writing wins, and this is refused: nobody's export is lost.
    version = {"resourceVersion": item["metadata"]["resourceVersion"]}
    client.api.merge(kind, plain_name, {"metadata": version, "spec": {"exports": exports}})
    typer.echo(f"export {export_name} of {plain_name} was asked for ({client.connection.place})")
    typer.echo(f"  wait for it: finetune wait {plain_name} --for condition=Exported", err=True)
