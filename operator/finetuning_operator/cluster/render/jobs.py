"""Steps as Jobs: one pod, or as many as train together, tried again by the exit codes of the contract."""

from finetuning_api.base import Resource
from finetuning_api.reasons import ExitCode
from finetuning_api.runconfig import MASTER_ADDRESS_ENV, MASTER_PORT_ENV, SECRET_ENV_PREFIX, WORKER_ENV
from finetuning_operator.cluster.options import Options
from finetuning_operator.cluster.progress.address import ProgressKey
from finetuning_operator.cluster.render.labels import CONTAINER, Manifest, Network, metadata, of_owner, pod_selector
from finetuning_operator.cluster.render.network import RENDEZVOUS_PORT, peers_policy
from finetuning_operator.cluster.render.placement import Placement, affinity_of
from finetuning_operator.cluster.render.pods import Program, pod_template, with_progress
from finetuning_operator.reconcile import labels
from finetuning_operator.reconcile.names import child_name
from finetuning_operator.reconcile.plan import Step

_QUEUE_NAME = "kueue.x-k8s.io/queue-name"
_GRACE_SECONDS = 120
"""Long enough to write a checkpoint to a slow volume after SIGTERM."""


def render_step(step: Step, *, owner: Resource, options: Options, placement: Placement) -> tuple[Manifest, ...]:
    """Return the Job of a step; where several pods train together also what lets them find and reach each other."""
    name = child_name(owner.metadata.name, step.name)
    program = _program(step, owner=owner, options=options, placement=placement)
    head = metadata(owner, name, **{labels.STEP: step.name})
    if step.queue is not None:
        head["labels"][_QUEUE_NAME] = step.queue
    head["annotations"] = {labels.IMAGE: image_of(step, options)}
    if step.earlier_attempts:
        head["annotations"][labels.EARLIER_ATTEMPTS] = str(step.earlier_attempts)
    template = pod_template(program, owner=owner, options=options, progress=options.progress)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": head, "spec": _job_spec(step) | {"template": template}}
    if step.workers == 1:
        return (job,)
    pods = pod_selector(owner) | {labels.STEP: step.name}
    return job, _rendezvous(step, owner=owner, name=name), peers_policy(name, owner=owner, pods=pods, step=step.name)


def lasting_parts(step: Step, *, owner: Resource) -> Manifest:
    """Return what a step's Job keeps whoever edits it: the labels by which it is found, and how many pods it has.

    Its limits may be changed, and whether it is suspended is for a queue to say.
    """
    return {"metadata": {"labels": of_owner(owner) | {labels.STEP: step.name}}, "spec": _pods_of(step)}


def image_of(step: Step, options: Options) -> str:
    """Return the image that a step's pods run."""
    return step.own_image or options.images[step.image]


def _job_spec(step: Step) -> Manifest:
    spec: Manifest = {
        **_pods_of(step),
        "backoffLimit": step.retries,
        "podFailurePolicy": {"rules": _failure_rules()},
        # A pod is replaced when it has ended, not when it is asked to: two must never write one volume. With a
        # podFailurePolicy this is the only value that is allowed, and it is written out because we depend on it.
        "podReplacementPolicy": "Failed",
    }
    if step.workers > 1:
        spec["completionMode"] = "Indexed"
    if step.deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = step.deadline_seconds
    if step.queue is not None:
        # Kueue starts it, by this field, which is never touched again.
        spec["suspend"] = True
    return spec


def _pods_of(step: Step) -> Manifest:
    return {"completions": step.workers, "parallelism": step.workers}


def _failure_rules() -> list[Manifest]:
    """Return what the end of a pod means, first match first; every other end counts against the retries."""

    def exited(code: ExitCode) -> Manifest:
        return {"onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [code.value]}}

    return [
        {"action": "FailJob"} | exited(ExitCode.USER_ERROR),
        {"action": "Ignore"} | exited(ExitCode.INTERRUPTED),
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def _program(step: Step, *, owner: Resource, options: Options, placement: Placement) -> Program:
    name = child_name(owner.metadata.name, step.name)
    secret = {"prefix": SECRET_ENV_PREFIX, "secretRef": {"name": step.secret, "optional": False}}
    together = step.workers > 1
    program = Program(
        image=image_of(step, options),
        role=step.image,
        network=Network.OPEN if step.network else Network.ISOLATED,
        container={"envFrom": [secret]} if step.secret is not None else {},
        environment=_world(step, name),
        references=_rank(step),
        config=step.config,
        mounts=step.mounts,
        resources=step.resources,
        pod=step.pod,
        priority_class=step.priority_class,
        affinity=affinity_of(step, placement),
        labels={labels.STEP: step.name},
        spec={
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": _GRACE_SECONDS,
            **({"subdomain": name} if together else {}),
        },
    )
    if options.progress is None:
        return program
    key = ProgressKey(owner.metadata.namespace, owner.kind, owner.metadata.name, step.name)
    return with_progress(program, key, owner=owner, progress=options.progress)


def _world(step: Step, name: str) -> dict[str, str]:
    """Return what the processes of a distributed training must know of each other.

    The trainer reads MASTER_* and, of each pod, FINETUNING_WORKER. Scripts of a user's own find the names of
    torch.distributed, and in PET_* the defaults of torchrun's options.
    """
    if step.workers * step.processes_per_worker == 1:
        return {}
    # The Job controller names the host of each pod <job>-<index>; the headless Service makes a name of it.
    address = f"{name}-0.{name}" if step.workers > 1 else "localhost"
    port = str(RENDEZVOUS_PORT)
    return {
        MASTER_ADDRESS_ENV: address,
        MASTER_PORT_ENV: port,
        "WORLD_SIZE": str(step.workers * step.processes_per_worker),
        "PET_MASTER_ADDR": address,
        "PET_MASTER_PORT": port,
        "PET_NNODES": str(step.workers),
        "PET_NPROC_PER_NODE": str(step.processes_per_worker),
    }


def _rank(step: Step) -> tuple[Manifest, ...]:
    """Return which of the workers a pod is; with one process each that is its rank as well."""
    if step.workers == 1:
        return ()
    names = (WORKER_ENV, "PET_NODE_RANK", *(("RANK",) if step.processes_per_worker == 1 else ()))
    index = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']"}}
    return tuple({"name": name, "valueFrom": index} for name in names)


def _rendezvous(step: Step, *, owner: Resource, name: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, name, **{labels.STEP: step.name}),
        "spec": {
            "clusterIP": "None",
            # The workers look for each other before any of them is ready.
            "publishNotReadyAddresses": True,
            "selector": pod_selector(owner) | {labels.STEP: step.name},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }
