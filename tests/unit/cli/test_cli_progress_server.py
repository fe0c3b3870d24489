import threading
from collections.abc import Iterator

import httpx
import pytest

from finetuning_cli.local.progress_server import ProgressServer

REPORT = {"trainerStatus": {"progressPercentage": 40, "lastUpdatedTime": "2026-03-01T12:00:00Z", "metrics": []}}
PLACE = "FineTuningJob/demo/train"


class Listener:
    def __init__(self) -> None:
        self.heard = threading.Event()
        self.server = ProgressServer(self.heard.set)

    def post(self, *, token: str | None = None, json: object = REPORT) -> int:
        headers = {b"Authorization": f"Bearer {self.server.token if token is None else token}".encode("latin-1")}
        return httpx.post(self.server.url(PLACE), json=json, headers=headers, trust_env=False).status_code


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.server.close()


def test_report_is_kept_for_its_step_and_wakes_the_run(listener: Listener) -> None:
    assert listener.post() == 202

    latest = listener.server.latest(PLACE)
    assert latest is not None
    assert latest.progress_percentage == 40
    assert listener.heard.is_set()
    assert listener.server.latest("FineTuningJob/demo/evaluate") is None


def test_report_of_an_earlier_attempt_is_forgotten(listener: Listener) -> None:
    listener.post()
    listener.server.forget(PLACE)

    assert listener.server.latest(PLACE) is None


@pytest.mark.parametrize("token", ["guess", "gu\xe9ss"])
def test_report_without_the_token_of_this_run_is_refused(listener: Listener, token: str) -> None:
    assert listener.post(token=token) == 401
    assert listener.server.latest(PLACE) is None


@pytest.mark.parametrize(("json", "status"), [({"other": 1}, 400), ({"x": "y" * 70_000}, 413)])
def test_nonsense_is_refused(listener: Listener, json: object, status: int) -> None:
    assert listener.post(json=json) == status
    assert not listener.heard.is_set()
