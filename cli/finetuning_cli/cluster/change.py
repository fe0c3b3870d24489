"""`finetune cancel`, `resume` and `delete` on a cluster."""

import typer

from finetuning_cli.cluster.find import find
from finetuning_cli.cluster.objects_out import plain
from finetuning_client import Client, ClusterError
from finetuning_client.api import Kind, Object
from finetuning_client.waiting import has_ended

_STOPPABLE = frozenset({"FineTuningJob", "EvaluationJob"})
_FATES = {
    "Delete": "its adapter is deleted with it",
    "Retain": "its adapter stays on the claim {claim}",
    "Trash": "its adapter stays on the claim {claim} until the trash is emptied",
}


def cancel(name: str, *, client: Client) -> None:
    """Stop a job after a checkpoint and keep it. Raises ClusterError for what cannot be stopped."""
    kind, item = _stoppable(client, name)
    plain_name = item["metadata"]["name"]
    if has_ended(item):
        typer.echo(f"{kind.name} {plain_name} has ended already ({item['status'].get('phase', '')})")
        return
    client.api.merge(kind, plain_name, {"spec": {"suspend": True}})
    typer.echo(f"{kind.name} {plain_name} stops after a checkpoint ({client.connection.place})")
    typer.echo(f"  go on: finetune resume {name}    remove it: finetune delete {name} --cluster", err=True)


def resume(name: str, *, client: Client) -> None:
    """Let a cancelled job go on at its last checkpoint."""
    kind, item = _stoppable(client, name)
    plain_name = item["metadata"]["name"]
    if has_ended(item):
        hint = "A finished job never runs again: apply it under another name."
        raise ClusterError(f"{kind.name} {plain_name} has ended ({item['status'].get('phase', '')})", hint)
    client.api.merge(kind, plain_name, {"spec": {"suspend": False}})
    typer.echo(f"{kind.name} {plain_name} goes on ({client.connection.place})")


def _stoppable(client: Client, name: str) -> tuple[Kind, Object]:
    kind, item = find(client, name)
    if kind.name not in _STOPPABLE:
        hint = f"Delete it: finetune delete {name} --cluster"
        raise ClusterError(f"{kind.name} {item['metadata']['name']} has nothing to cancel", hint)
    return kind, item


def delete(name: str, *, client: Client) -> None:
    """Delete an object: what it runs is stopped, what it owns is removed."""
    kind, item = find(client, name)
    plain_name = item["metadata"]["name"]
    client.api.delete(kind, plain_name)
    typer.echo(f"deleted {kind.name} {plain_name} ({client.connection.place})")
    if fate := _fate(plain(item)):
        typer.echo(f"  {fate}; relocated models and data stay for other jobs")


def _fate(item: Object) -> str:
    """Return what becomes of a job's adapter."""
    adapter = ((item.get("status") or {}).get("artifacts") or {}).get("adapter")
    if item["kind"] != "FineTuningJob" or not adapter:
        return ""
    retention = (item["spec"].get("storage") or {}).get("retention", "Delete")
    return _FATES.get(retention, "").format(claim=adapter["claimName"])
