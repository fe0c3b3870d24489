"""Objects for scripts: as the cluster sends them, without the bookkeeping of field owners."""

import json
from collections.abc import Sequence

import typer
import yaml

from finetuning_client.api import Object


def plain(item: Object) -> Object:
    """Return an object without metadata.managedFields, as ``kubectl get`` shows it."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    return {**item, "metadata": metadata}


def print_objects(items: Sequence[Object], *, output: str, as_list: bool) -> None:
    """Print one object, or a list: an array in JSON, documents in YAML."""
    shown = [plain(item) for item in items]
    if output == "json":
        typer.echo(json.dumps(shown if as_list else shown[0], indent=2))
    else:
        documents = (yaml.safe_dump(item, sort_keys=False, allow_unicode=True, width=120) for item in shown)
        typer.echo("---\n".join(documents), nl=False)
