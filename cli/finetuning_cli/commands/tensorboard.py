"""`finetune tensorboard`: the course of a training in a browser, here or, on a cluster, how to get there."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import typer

from finetuning_api.base import ClaimRef
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_cli.cluster.find import find
from finetuning_cli.commands.inspect import find_job
from finetuning_cli.local.layout import Layout
from finetuning_client import Client, ClusterError
from finetuning_client.objects import typed
from finetuning_operator.reconcile.job import TENSORBOARD_FOLDER
from finetuning_operator.reconcile.names import adapter_claim
from finetuning_workload.errors import UserError


def show_tensorboard(name: str, *, state: Path, port: int | None) -> None:
    """Become TensorBoard on the event files of a job, until Ctrl-C; it prints its address.

    Raises UserError where there are none yet, or no TensorBoard.
    """
    layout = Layout.at(state)
    job, _ = find_job(name, layout)
    folder = layout.claim(ClaimRef(claim_name=adapter_claim(job.metadata.name), path=TENSORBOARD_FOLDER))
    if not isinstance(job, FineTuningJob) or not folder.is_dir():
        hint = f"A FineTuningJob writes it from its first step on: finetune status {name} tells where it stands."
        raise UserError(Reason.INVALID_SPEC, f"{name} has no course of a training to show", hint)
    if find_spec("tensorboard") is None:
        raise UserError(Reason.UNSUPPORTED, "TensorBoard is not installed", "Install it: pip install tensorboard")
    # Without a port it takes 6006, or the next one that is free.
    arguments = ["--logdir", str(folder), "--host", "localhost", *(("--port", str(port)) if port is not None else ())]
    command = [sys.executable, "-P", "-m", "tensorboard.main", *arguments]
    os.execv(sys.executable, command)  # noqa: S606  (nothing of ours is left to do: it gets Ctrl-C itself)


def tell_tensorboard(name: str, *, client: Client, port: int | None) -> None:
    """Print where the TensorBoard of a job on a cluster answers. Raises ClusterError where it has none."""
    _, item = find(client, name)
    job = typed(item)
    if not isinstance(job, FineTuningJob) or job.spec.tensorboard is None:
        hint = "It is asked for when the job is made: spec.tensorboard: {}"
        raise ClusterError(f"{name} has no TensorBoard", hint)
    told = job.status.tensorboard
    if told is None:
        hint = "It runs from the start of the training until spec.tensorboard.ttlSecondsAfterFinished after the end."
        raise ClusterError(f"the TensorBoard of {name} does not run now", hint)
    if not told.url:
        raise ClusterError(f"the TensorBoard of {name} does not answer yet: {told.message}", "Ask again in a moment.")
    service = told.url.partition("://")[2].partition(".")[0]
    here = port if port is not None else 6006
    namespace = job.metadata.namespace
    typer.echo(f"{told.url} (inside the cluster)")
    typer.echo(f"kubectl -n {namespace} port-forward service/{service} {here}:6006   # then http://localhost:{here}")
