"""TensorBoard of a job: from the start of its training until some time after its end, and never in its way.

It mounts the adapter's claim, and where that is ReadWriteOnce every pod that mounts it must run on the same node. So it
steps aside while a stage of the job waits for a node: what it would hold there is no reason to wait.
"""

from dataclasses import replace
from datetime import datetime
from posixpath import join
from typing import Final, cast

from finetuning_api.base import ConditionStatus, ConditionType, StageState
from finetuning_api.finetuningjob import FineTuningJob, FineTuningJobStatus
from finetuning_api.inferenceserver import HealthCheck, ServerVariant
from finetuning_api.reasons import Reason
from finetuning_api.tensorboard import TensorBoardSpec, TensorBoardStatus
from finetuning_operator.reconcile.conditions import is_terminal, is_true, shorten
from finetuning_operator.reconcile.job import TENSORBOARD_FOLDER, TRAIN, TUNE
from finetuning_operator.reconcile.lifecycle import soonest
from finetuning_operator.reconcile.names import adapter_claim, child_name, server_url
from finetuning_operator.reconcile.needs import claim_mount
from finetuning_operator.reconcile.plan import ImageRole, Observed, Plan, Server, ServerState, Settings
from finetuning_operator.reconcile.stages import seconds_left, sentences

COMPONENT: Final = "tensorboard"
_PORT: Final = 6006
_STARTUP_SECONDS: Final = 300
_FOR_A_NODE: Final = frozenset({Reason.UNSCHEDULABLE, Reason.VOLUME_CONFLICT})


def with_tensorboard(job: FineTuningJob, plan: Plan, *, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Return the plan of a job with its TensorBoard, where one is asked for and it is time for it."""
    spec = job.spec.tensorboard
    if spec is None or settings.local:
        return plan
    status = cast("FineTuningJobStatus", plan.status)
    ended = is_terminal(status.conditions)
    left = seconds_left(spec.ttl_seconds_after_finished, status.completion_time, now) if ended else None
    if left == 0 or not _is_time(status, ended=ended):
        return plan if status.tensorboard is None else _with_status(plan, status, None)
    server = _server(job, spec, settings)
    told = _told(job, observed.servers.get(server.name), server)
    plan = plan if told == status.tensorboard else _with_status(plan, status, told)
    return replace(plan, servers=(*plan.servers, server), requeue_after=soonest(plan.requeue_after, left))


def _is_time(status: FineTuningJobStatus, *, ended: bool) -> bool:
    begun = [stage for stage in status.stages if stage.name in {TUNE, TRAIN} and stage.start_time]
    if not begun or is_true(status.conditions, ConditionType.SUSPENDED):
        return False
    waits = any(
        condition.status is not ConditionStatus.TRUE and condition.reason in _FOR_A_NODE
        for condition in status.conditions
    )
    return ended or not (waits or begun[-1].state is StageState.PENDING)


def _server(job: FineTuningJob, spec: TensorBoardSpec, settings: Settings) -> Server:
    mount = claim_mount(adapter_claim(job.metadata.name), settings)
    folder = join(mount.path, TENSORBOARD_FOLDER)
    module = ("python", "-m", "tensorboard.main")
    return Server(
        name=child_name(job.metadata.name, COMPONENT),
        variant=ServerVariant.COMMAND,
        port=_PORT,
        replicas=1,
        health=HealthCheck(path="/data/environment", startup_seconds=_STARTUP_SECONDS),
        role=ImageRole.TRAINER,
        component=COMPONENT,
        command=(*module, "--logdir", folder, "--bind_all", "--port", str(_PORT)),
        mounts=(mount,),
        resources=spec.resources,
        # It runs where the job runs, with nothing of what the job works with.
        pod=job.spec.pod.model_copy(update={"env": [], "volumes": [], "shared_memory_size": None}),
    )


def _told(job: FineTuningJob, state: ServerState | None, server: Server) -> TensorBoardStatus:
    old = job.status.tensorboard
    if state is not None and state.ready:
        return TensorBoardStatus(url=server_url(server.name, namespace=job.metadata.namespace, port=server.port))
    words = state.hindrance if state else None
    message = sentences(words.message, words.hint) if words else "waits for its pod"
    return TensorBoardStatus(url=old.url if old else "", message=shorten(message))


def _with_status(plan: Plan, status: FineTuningJobStatus, told: TensorBoardStatus | None) -> Plan:
    return replace(plan, status=status.model_copy(update={"tensorboard": told}))
