"""`finetune prompt` and `chat` on a cluster: the models of a job's InferenceServer, through a forwarded port."""

import os

from finetuning_api.base import Resource
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.inferenceserver import InferenceServer
from finetuning_cli.answers import gathered, show
from finetuning_cli.cluster.find import find
from finetuning_cli.commands.prompt import render
from finetuning_client import Client, ClusterError, NotFoundError
from finetuning_client.api import PODS, Object
from finetuning_client.forwarding import ForwardedConnection
from finetuning_client.models import TOKEN_ENV, ModelServer, Question
from finetuning_client.objects import typed
from finetuning_operator.reconcile.labels import selector


def ask(  # one keyword for each option of the command
    name: str, text: str, *, client: Client, chat: bool, raw: bool, max_new_tokens: int, as_json: bool
) -> None:
    """Print what every model of the server answers. Raises ClusterError when the job is not served."""
    resource, server = served(name, client)
    if isinstance(resource, FineTuningJob):
        question = render(resource, text, chat=chat, raw=raw, max_new_tokens=max_new_tokens)
    else:
        question = Question(text, chat=chat, max_new_tokens=max_new_tokens)
    events = (event for model in server.models() for event in gathered(model, server.answer(model, question)))
    show(events, as_json=as_json)


def served(name: str, client: Client) -> tuple[Resource, ModelServer]:
    """Return what is named, and the server that answers for it. Raises ClusterError when it is not served."""
    _, item = find(client, name)
    resource = typed(item)
    if isinstance(resource, FineTuningJob):
        server = _server_of(resource, client)
    elif isinstance(resource, InferenceServer):
        server = resource
    else:
        raise ClusterError(
            f"{name} is a {resource.kind}: it answers nothing", "Name a FineTuningJob or InferenceServer."
        )
    pod = _ready_pod(server, client)["metadata"]["name"]
    connection = ForwardedConnection(client.api, pod, server.spec.port)
    hint = f"See its log: kubectl logs {pod}"
    return resource, ModelServer(connection, f"the pod {pod}", hint=hint, token=os.environ.get(TOKEN_ENV))


def _server_of(job: FineTuningJob, client: Client) -> InferenceServer:
    name = job.metadata.name
    if job.spec.serving is None:
        hint = (
            "Give a job serving: {replicas: 1}, or make an InferenceServer with adapters: [{name: tuned, jobRef: ...}]."
        )
        raise ClusterError(f"{name} is not served: its spec has no serving", hint)
    try:
        return client.servers.get(name)
    except NotFoundError as error:
        gate = " and must pass its gate" if job.spec.serving.after_gate else ""
        message = f"{name} is not served yet ({job.status.phase.value}): it is trained and evaluated first{gate}"
        raise ClusterError(message, f"See how far it is: finetune status {name}") from error


def _ready_pod(server: InferenceServer, client: Client) -> Object:
    name = server.metadata.name
    pods: list[Object] = client.api.list(PODS, labels=selector(server.kind, name))["items"]
    ready = [pod for pod in pods if _is_ready(pod)]
    if not ready:
        hint = f"See why: finetune status InferenceServer/{name}"
        raise ClusterError(f"no pod of InferenceServer {name} is ready ({len(pods)} there)", hint)
    return ready[0]


def _is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
