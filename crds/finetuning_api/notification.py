"""Notifications: who is told of what becomes of a job, and whether they were."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from finetuning_api.base import A_SET, ApiModel, Message, ObjectName, SecretRef

MOST_NOTIFICATIONS = 256
"""Entries that a status may hold; see reconcile.notify for what keeps them below it."""


class NotificationType(StrEnum):
    """Where a notification goes."""

    SLACK = "slack"
    WEBHOOK = "webhook"
    CLOUDEVENTS = "cloudevents"
    EMAIL = "email"


class NotificationEvent(StrEnum):
    """What a notification tells."""

    STARTED = "Started"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    GATE = "Gate"
    STALLED = "Stalled"


class NotificationSpec(ApiModel):
    """Somebody who wants to know."""

    type: NotificationType = Field(
        description="Format and transport: slack (incoming webhook), webhook (plain JSON), cloudevents (structured mode"
        " over HTTP) or email (SMTP)."
    )
    secret_ref: SecretRef = Field(
        description="Secret with the address and its credentials: url, and optionally token or header; for email host,"
        " from and to, and optionally port, username, password and tls."
    )
    events: list[NotificationEvent] = Field(
        default=[NotificationEvent.SUCCEEDED, NotificationEvent.FAILED],
        min_length=1,
        max_length=8,
        description="Events to tell, from now on: what has happened already is not told.",
        json_schema_extra=A_SET,
    )


class NotificationState(StrEnum):
    """What became of a notification."""

    PENDING = "Pending"
    SENT = "Sent"
    FAILED = "Failed"


class NotificationStatus(ApiModel):
    """One notification. It is sent at least once; one that could not be delivered changes nothing else of the job."""

    name: str = Field(max_length=63, description="Name of its step.")
    event: NotificationEvent = Field(description="What it tells.")
    type: NotificationType = Field(description="Format and transport.")
    secret_name: ObjectName = Field(description="Secret with the address.")
    time: datetime = Field(description="When the event was noticed.")
    state: NotificationState = Field(default=NotificationState.PENDING, description="Whether it was delivered.")
    message: Message = Field(default="", description="Why it is not delivered, or not yet.")
