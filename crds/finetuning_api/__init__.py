"""The contract: custom resources, RunConfigs, reasons, and the generator of the CRDs."""

from finetuning_api.base import API_VERSION, GROUP, VERSION, Condition, ConditionStatus, ConditionType, Resource
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.inferenceserver import InferenceServer
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.relocation import Relocation

KINDS: tuple[type[Resource], ...] = (FineTuningJob, EvaluationJob, Relocation, InferenceServer)
"""Every kind of the API."""

__all__ = [
    "API_VERSION",
    "GROUP",
    "KINDS",
    "VERSION",
    "Condition",
    "ConditionStatus",
    "ConditionType",
    "EvaluationJob",
    "ExitCode",
    "FineTuningJob",
    "InferenceServer",
    "Reason",
    "Relocation",
    "Resource",
]
