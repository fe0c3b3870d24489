"""Notifications as tests send them: a job's numbers, the program in this process or as a process of its own."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.support.relocator import Ended, Relocator

from finetuning_api.metrics import EvaluationRow, Metric, Verdict
from finetuning_api.notification import NotificationEvent, NotificationType
from finetuning_api.runconfig import SECRET_ENV_PREFIX, JobIdentity, NotifyConfig, NotifyResult
from finetuning_relocator.notify.send import notify
from finetuning_workload.program import Context, StopFlag

ID = "uid-1/notify-0123abcd-succeeded"
ROWS = (
    EvaluationRow(
        metric=Metric.PERPLEXITY, base=21.5, tuned=8.25, delta=-13.25, ci_low=-14.5, ci_high=-12.0, samples=120
    ),
    EvaluationRow(metric=Metric.EXACT_MATCH, base=0.1, tuned=0.9, delta=0.8, samples=120),
)
TABLE = (
    "metric       base  tuned  delta   95 % interval  rows\n"
    "perplexity   21.5  8.25   -13.25  [-14.5, -12]   120\n"
    "exact-match  0.1   0.9    +0.8    -              120"
)


def config(kind: NotificationType, **fields: Any) -> NotifyConfig:  # noqa: ANN401  (fields of NotifyConfig)
    """Return what the program is told of a job that has ended well."""
    standard = {
        "job": JobIdentity(kind="FineTuningJob", name="triage", namespace="team-a", uid="uid-1"),
        "type": kind,
        "secret": "hook",
        "id": ID,
        "event": NotificationEvent.SUCCEEDED,
        "time": datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
        "phase": "Complete",
        "evaluation": ROWS,
        "verdict": Verdict.PASS,
        "gate": "0.8 >= 0.1",
        "url": "http://triage.team-a.svc:8000",
    }
    return NotifyConfig.model_validate(standard | fields)


def variables(secret: Mapping[str, str]) -> dict[str, str]:
    """Return a Secret as it reaches the program."""
    return {f"{SECRET_ENV_PREFIX}{key}": value for key, value in secret.items()}


def send(told: NotifyConfig, **secret: str) -> NotifyResult:
    """Send a notification from this process."""
    return notify(told, Context(stop=StopFlag(), environment=variables(secret)))


def run(relocator: Relocator, told: NotifyConfig, **secret: str) -> Ended:
    """Send a notification by the program."""
    trusted = {name: os.environ[name] for name in ("SSL_CERT_FILE",) if name in os.environ}
    relocator.environment |= variables(secret) | trusted
    return relocator.run(told)
