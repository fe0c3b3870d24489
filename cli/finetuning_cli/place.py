"""Where a command looks: in a state folder of this machine, or in a cluster."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from finetuning_api import KINDS
from finetuning_api.reasons import Reason
from finetuning_cli.local.layout import Layout
from finetuning_workload.errors import UserError

if TYPE_CHECKING:
    from finetuning_client import Client

STATE_FOLDER = Path(".finetuning")


@dataclass(frozen=True, slots=True)
class PlaceOptions:
    """What the command line says of the place. Nothing given means: find out."""

    state: Path | None = None
    namespace: str | None = None
    context: str | None = None
    kubeconfig: Path | None = None
    cluster: bool = False

    @property
    def names_cluster(self) -> bool:
        """Whether an option asks for a cluster."""
        return self.cluster or any(each is not None for each in (self.namespace, self.context, self.kubeconfig))

    def client(self) -> "Client":
        """Return a client of the cluster. Raises ClusterError."""
        from finetuning_client import Client

        return Client(namespace=self.namespace, context=self.context, kubeconfig=self.kubeconfig)


def local_state(options: PlaceOptions, name: str | None, *, destructive: bool = False) -> Path | None:
    """Return the state folder that a command is about, None for the cluster.

    An option decides where there is one. Without any, the state folder of the working folder decides when it holds
    the name, and the cluster gets what it does not hold. Only what destroys never goes on to the cluster from a
    folder that has a state: a name mistyped here must not delete its namesake there.

    Raises UserError when options contradict each other.
    """
    if options.state is not None:
        if options.names_cluster:
            hint = "Leave out --state for the cluster, or the options of the cluster for the folder."
            raise UserError(Reason.INVALID_SPEC, "--state names a folder, the other options a cluster", hint)
        return options.state
    if options.names_cluster:
        return None
    from finetuning_client.connection import is_configured

    layout = Layout.at(STATE_FOLDER)
    exists = layout.objects.is_dir()
    if (exists and (name is None or _holds(layout, name))) or not is_configured():
        return STATE_FOLDER
    if exists and destructive:
        hint = f"If you mean the cluster: finetune delete {name} --cluster"
        raise UserError(Reason.INVALID_SPEC, f"{layout.root} holds no object named {name!r}", hint)
    if exists:
        typer.echo(f"{layout.root} holds no object named {name!r}: looks in the cluster", err=True)
    return None


def _holds(layout: Layout, name: str) -> bool:
    return any(layout.object_file(kind.__name__, name).exists() for kind in KINDS)
