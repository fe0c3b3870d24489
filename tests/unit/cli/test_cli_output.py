"""What `finetune status` shows of an object, line by line."""

import io

from rich.console import Console
from tests.support.objects import NOW, job

from finetuning_api.finetuningjob import FineTuningJob, FineTuningJobStatus
from finetuning_api.notification import NotificationEvent, NotificationState, NotificationStatus, NotificationType
from finetuning_api.tensorboard import TensorBoardStatus
from finetuning_cli.output import print_status


def shown(resource: FineTuningJob) -> list[str]:
    """Return what is printed, with single spaces."""
    console = Console(file=io.StringIO(), width=200)
    print_status(console, resource, layout=None)
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def with_status(**fields: object) -> FineTuningJob:
    return job().model_copy(update={"status": FineTuningJobStatus.model_validate(fields)})


def test_status_tells_who_was_told_and_why_not() -> None:
    told = NotificationStatus(
        name="notify-1",
        event=NotificationEvent.STARTED,
        type=NotificationType.SLACK,
        secret_name="chat",
        time=NOW,
        state=NotificationState.SENT,
    )
    refused = told.model_copy(
        update={
            "name": "notify-2",
            "event": NotificationEvent.GATE,
            "type": NotificationType.EMAIL,
            "secret_name": "mail",
            "state": NotificationState.FAILED,
            "message": "the server refused [the login]",
        }
    )
    lines = shown(with_status(notifications=[told, refused]))

    assert "notification to secret state message" in lines
    assert "Started slack chat Sent" in lines
    assert "Gate email mail Failed the server refused [the login]" in lines


def test_status_of_a_job_that_tells_nobody_says_nothing_of_notifications() -> None:
    assert not [line for line in shown(with_status()) if line.startswith("notification")]


def test_status_tells_where_tensorboard_answers_or_what_it_waits_for() -> None:
    there = with_status(tensorboard=TensorBoardStatus(url="http://demo-tensorboard.team.svc:6006"))
    waiting = with_status(tensorboard=TensorBoardStatus(message="0 of 1 replicas answer"))

    assert "tensorboard http://demo-tensorboard.team.svc:6006" in shown(there)
    assert "tensorboard 0 of 1 replicas answer" in shown(waiting)
