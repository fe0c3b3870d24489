"""The pure core: one function a kind turns an object and what is observed into a plan."""

from datetime import datetime

from finetuning_api.base import Resource
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.inferenceserver import InferenceServer
from finetuning_api.relocation import Relocation
from finetuning_operator.reconcile.evaluation import reconcile_evaluation
from finetuning_operator.reconcile.export import with_exports
from finetuning_operator.reconcile.job import reconcile_job
from finetuning_operator.reconcile.notify import with_notifications
from finetuning_operator.reconcile.plan import Observed, Plan, Settings
from finetuning_operator.reconcile.presets import with_preset
from finetuning_operator.reconcile.references import references
from finetuning_operator.reconcile.relocation import reconcile_relocation
from finetuning_operator.reconcile.server import reconcile_server
from finetuning_operator.reconcile.tensorboard import with_tensorboard
from finetuning_operator.reconcile.track import with_tracking


def reconcile(resource: Resource, *, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Return the desired state of one object. Pure: the same arguments give the same plan.

    Raises TypeError for an object of another kind.
    """
    match resource:
        case FineTuningJob():
            job = with_preset(resource, settings)
            plan = reconcile_job(job, observed=observed, now=now, settings=settings)
            plan = with_tensorboard(job, plan, observed=observed, now=now, settings=settings)
            plan = with_exports(job, plan, observed=observed, now=now, settings=settings)
            plan = with_tracking(job, plan, observed=observed, now=now, settings=settings)
            return with_notifications(job, plan, observed=observed, now=now, settings=settings)
        case EvaluationJob():
            return reconcile_evaluation(resource, observed=observed, now=now, settings=settings)
        case Relocation():
            return reconcile_relocation(resource, observed=observed, now=now, settings=settings)
        case InferenceServer():
            return reconcile_server(resource, observed=observed, now=now, settings=settings)
    message = f"{resource.kind} is not a kind of this API"
    raise TypeError(message)


__all__ = ["reconcile", "references"]
