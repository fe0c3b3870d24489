"""`finetune prompt` on a cluster: the models of a job's InferenceServer, side by side, through a forwarded port."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.inferenceserver import InferenceServer
from finetuning_cli.cluster.find import find
from finetuning_cli.commands.prompt import Question, render
from finetuning_client import Client, ClusterError, NotFoundError
from finetuning_client.api import PODS, Object
from finetuning_client.forwarding import PodConnection, forwarded
from finetuning_client.objects import typed
from finetuning_operator.reconcile.labels import selector


def ask(name: str, text: str, *, client: Client, chat: bool, raw: bool, max_new_tokens: int) -> None:
    """Print what every model of the server answers. Raises ClusterError when the job is not served."""
    _, item = find(client, name)
    resource = typed(item)
    if isinstance(resource, FineTuningJob):
        question = render(resource, text, chat=chat, raw=raw, max_new_tokens=max_new_tokens)
        server = _server_of(resource, client)
    elif isinstance(resource, InferenceServer):
        question = Question(text, chat=chat, max_new_tokens=max_new_tokens)
        server = resource
    else:
        raise ClusterError(
            f"{name} is a {resource.kind}: it answers nothing", "Name a FineTuningJob or InferenceServer."
        )
    pod = _ready_pod(server, client)
    console = Console()
    with forwarded(client.api, pod["metadata"]["name"], server.spec.port) as connection:
        for model, answer in answers(connection, question):
            console.print(f"{model}: {answer}", markup=False, soft_wrap=True, highlight=False)


def answers(connection: PodConnection, question: Question) -> Iterator[tuple[str, str]]:
    """Yield every model of an OpenAI-compatible server with its answer."""
    models = [str(model["id"]) for model in connection.ask("/v1/models")["data"]]
    for model in models:
        common: dict[str, Any] = {"model": model, "max_tokens": question.max_new_tokens, "temperature": 0}
        if question.chat:
            messages = [{"role": "user", "content": question.text}]
            choice = connection.ask("/v1/chat/completions", common | {"messages": messages})["choices"][0]
            yield model, str(choice["message"]["content"])
        else:
            choice = connection.ask("/v1/completions", common | {"prompt": question.text})["choices"][0]
            yield model, str(choice["text"])


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
