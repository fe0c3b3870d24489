"""The API of finetuning-operator from Python: create jobs, follow them, read their logs and results."""

from finetuning_client.client import Client
from finetuning_client.errors import (
    ClusterError,
    CredentialsRefusedError,
    ForbiddenError,
    KindsMissingError,
    NotConfiguredError,
    NotFoundError,
    RefusedError,
    UnavailableError,
    UnreachableError,
    WaitFailedError,
    WaitTimeoutError,
)
from finetuning_client.objects import Objects
from finetuning_client.results import Results
from finetuning_client.waiting import Goal

__all__ = [
    "Client",
    "ClusterError",
    "CredentialsRefusedError",
    "ForbiddenError",
    "Goal",
    "KindsMissingError",
    "NotConfiguredError",
    "NotFoundError",
    "Objects",
    "RefusedError",
    "Results",
    "UnavailableError",
    "UnreachableError",
    "WaitFailedError",
    "WaitTimeoutError",
]
