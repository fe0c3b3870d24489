"""Finds the pods of a stage and reads their logs, also across retries."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetuning_api.base import Resource
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.relocation import Relocation
from finetuning_client.api import PODS, Api, Object, kind_of
from finetuning_client.errors import ClusterError, NotFoundError, RefusedError
from finetuning_client.waiting import has_ended
from finetuning_operator.reconcile import labels
from finetuning_operator.reconcile.names import evaluation_name
from finetuning_operator.reconcile.needs import job_needs

_INDEX = "batch.kubernetes.io/job-completion-index"
_PAUSE_SECONDS = 1.0
_SERVE = "serve"
_PROGRAM = "program"
_WAITING = frozenset({"Pending", "Unknown"})


@dataclass(frozen=True, slots=True)
class LogChoice:
    """Which log is read, and how much of it."""

    stage: str | None = None
    """None is the stage that started last."""
    worker: int = 0
    follow: bool = False
    tail: int | None = None


def log_lines(api: Api, resource: Resource, choice: LogChoice) -> Iterator[str]:
    """Yield the lines of a log; with ``follow`` until the object has ended, through retries and new pods.

    Raises NotFoundError where there is no pod to read from.
    """
    read: set[str] = set()
    while True:
        pod = _chosen(api, resource, choice, read)
        if pod is not None and pod["metadata"]["uid"] not in read and pod["status"].get("phase") not in _WAITING:
            read.add(pod["metadata"]["uid"])
            yield from _lines_of(api, pod, choice)
        elif not choice.follow or has_ended(_now(api, resource)):
            if not read:
                raise _nothing(resource, choice, pod)
            return
        else:
            time.sleep(_PAUSE_SECONDS)
        if not choice.follow:
            return


def _now(api: Api, resource: Resource) -> Object:
    return api.get(kind_of(type(resource)), resource.metadata.name)


def _chosen(api: Api, resource: Resource, choice: LogChoice, read: Collection[str]) -> Object | None:
    """Return the latest pod of the stage and worker, of those of one second one that was not read; None without any."""
    by_stage = _pods_by_stage(api, resource)
    if choice.stage is not None and choice.stage not in by_stage:
        if by_stage and not choice.follow:
            known = ", ".join(sorted(by_stage))
            message = f"{resource.metadata.name} has no pod of a stage {choice.stage!r}"
            raise NotFoundError(message, f"There are pods of {known}.")
        return None
    pods = [pod for stage, found in by_stage.items() if choice.stage in {None, stage} for pod in found]
    mine = [pod for pod in pods if _worker(pod) == choice.worker]
    return max(mine, key=lambda pod: (_created(pod), pod["metadata"]["uid"] not in read), default=None)


def _created(pod: Object) -> str:
    """Return when a pod was made, to the second: a retry may follow within the same."""
    return str(pod["metadata"]["creationTimestamp"])


def _pods_by_stage(api: Api, resource: Resource) -> Mapping[str, Sequence[Object]]:
    """Return the pods of an object and of those that it made, by the names that `finetune logs` uses for stages."""
    found: dict[str, list[Object]] = {}
    for prefix, kind, name in _owners(resource):
        for pod in api.list(PODS, labels=labels.selector(kind, name))["items"]:
            step = pod["metadata"]["labels"].get(labels.STEP, _SERVE)
            found.setdefault(f"{prefix}{step}", []).append(pod)
    return found


def _owners(resource: Resource) -> Iterator[tuple[str, str, str]]:
    name = resource.metadata.name
    yield "", resource.kind, name
    if isinstance(resource, FineTuningJob):
        yield "", EvaluationJob.__name__, evaluation_name(name)
        for need in job_needs(resource.spec):
            yield f"{need.role.value}/", Relocation.__name__, need.name
        if resource.spec.serving is not None:
            yield "", "InferenceServer", name


def _worker(pod: Object) -> int:
    return int(pod["metadata"]["labels"].get(_INDEX, 0))


def _lines_of(api: Api, pod: Object, choice: LogChoice) -> Iterator[str]:
    query = {"container": _container(pod)}
    query |= {"follow": "true"} if choice.follow else {}
    query |= {"tailLines": str(choice.tail)} if choice.tail is not None else {}
    name = pod["metadata"]["name"]
    try:
        yield from api.log(name, query=query, silence=None if choice.follow else 60)
    except RefusedError as error:
        hint = "See how far it is: finetune status, or with -f wait for it."
        why = error.message.rpartition("\n")[2].strip()
        raise ClusterError(f"the pod {name} has no log yet: {why}", hint) from error


def _container(pod: Object) -> str:
    """Return our container; a cluster may have put others beside it."""
    names = [str(each["name"]) for each in pod["spec"]["containers"]]
    return _PROGRAM if _PROGRAM in names else names[0]


def _nothing(resource: Resource, choice: LogChoice, pod: Object | None) -> ClusterError:
    name = resource.metadata.name
    stage = f" for stage {choice.stage}" if choice.stage else ""
    if pod is not None:
        return NotFoundError(f"the pod {pod['metadata']['name']} has not started", f"See why: finetune status {name}")
    worker = f" of worker {choice.worker}" if choice.worker else ""
    hint = "It has not started, or its pods are gone. What the programs said last is in its stages: finetune status"
    return NotFoundError(f"{name} has no pod{worker}{stage}", f"{hint} {name}")
