"""What stands beside jobs on a careful site, with policies, an authority of its own, and servers that may be woken."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email import message_from_string, policy
from typing import Any

import pytest
from tests.support.cluster import Object, has_condition
from tests.support.e2e import SYSTEM, Installation, Place, conditions, record
from tests.support.e2e_images import Image
from tests.support.e2e_site import STORE, TINY_MODEL
from tests.support.inside import OPEN, Inside, visitor
from tests.support.receiver import Receiver

JOB, SLEEPER = "demo", "sleeper"
BOARD = f"{JOB}-tensorboard"
CURVES = {"learning_rate", "loss", "tokens_per_second"}
WAKE_PORT = 8090
SECONDS = 300
_ASK = """
import json, sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=30) as answer:
    print(answer.read().decode())
"""
_ASK_LIKE_A_CLIENT = """
import json, sys, time, urllib.error, urllib.request
body = json.dumps({"model": sys.argv[2], "prompt": "Message: hello\\nTriage: ", "max_tokens": 4}).encode()
headers = {"Content-Type": "application/json", "Connection": "close"}
request = urllib.request.Request(sys.argv[1], data=body, headers=headers)
told, deadline = [], time.monotonic() + 240
while time.monotonic() < deadline and (not told or told[-1]["status"] != 200):
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            told.append({"status": answer.status, "content": json.load(answer)})
    except urllib.error.HTTPError as error:
        pause = error.headers["Retry-After"]
        told.append({"status": error.code, "after": pause, "content": json.load(error)})
        time.sleep(int(pause))
print(json.dumps(told))
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A namespace with a job, a server that is asked for nothing, a receiver of messages, and a client."""

    place: Place
    receiver: Receiver
    client: Inside
    """A pod that no policy binds."""


@pytest.fixture(scope="module")
def site_with_rules(
    shared_place: Place,
    installation: Installation,
    images: Mapping[str, Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """The release as a careful site installs it, and everything that is to be seen there, all of it at once."""
    place, folder = shared_place, tmp_path_factory.mktemp("receiver")
    receiver = Receiver.start(place, image=images["site"].reference, folder=folder)
    authority = _authority(receiver.certificate.path.read_text())
    place.cluster.create(authority)
    installation.install(
        {
            "caBundle": {"configMap": authority["metadata"]["name"]},
            "networkPolicy": {"enabled": True},
            "serving": {"wakePort": WAKE_PORT},
        }
    )
    try:
        model = {"source": TINY_MODEL, "endpoint": STORE}
        place.create("InferenceServer", SLEEPER, model=model, idleShutdownMinutes=1)
        receiver.make_secrets(web="team-hook", mail="team-mail")
        place.tiny_job(JOB, _changes())
        place.cluster.create(visitor(place.namespace, "client", image=images["relocator"].reference))
        place.wait("Pod", "client", _is_ready)
        yield Site(place, receiver, Inside(place.cluster, place.namespace, "client"))
    finally:
        place.cluster.delete(authority)
        installation.install()


def _authority(certificates: str) -> Object:
    metadata = {"name": "site-authorities", "namespace": SYSTEM}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"ca.crt": certificates}}


def _changes() -> dict[str, object]:
    """Return changes of a tiny job: so many steps that others can look at it, a board, and who is to be told."""
    hook = {"type": "webhook", "secretRef": {"name": "team-hook"}, "events": ["Started", "Succeeded"]}
    mail = {"type": "email", "secretRef": {"name": "team-mail"}, "events": ["Succeeded"]}
    return {
        "training.maxSteps": 1500,
        "training.checkpointEverySteps": 500,
        "tensorboard": {"ttlSecondsAfterFinished": 5},
        "notifications": [hook, mail],
    }


def test_tensorboard_answers_for_a_job_that_trains_and_goes_after_its_time(site_with_rules: Site) -> None:
    place, client = site_with_rules.place, site_with_rules.client
    told = place.wait_for_job(JOB, lambda found: bool(_board(found).get("url")), seconds=SECONDS)
    url = _board(told)["url"]
    assert url == f"http://{BOARD}.{place.namespace}.svc:6006"

    def curve() -> list[Any]:
        known = client.python(_ASK, f"{url}/data/plugin/scalars/tags").get(".", {})
        asked = f"{url}/data/plugin/scalars/scalars?run=.&tag=loss"
        return list(client.python(_ASK, asked)) if set(known) >= CURVES else []

    points = place.cluster.wait_for(lambda: curve() or None, what="TensorBoard has read the curves", seconds=SECONDS)
    place.wait_complete(JOB, seconds=SECONDS)
    for kind in ("Deployment", "Service"):
        place.wait_gone(kind, BOARD)
    ended = place.wait_for_job(JOB, lambda found: not _board(found).get("url"))

    record("TensorBoard of a job that trains", f"{url}\n{len(points)} points of its loss, the first {points[0]}")
    assert points[0][1] == 1
    assert has_condition(ended, "Complete")
    assert f"{JOB}-adapter" in place.names("PersistentVolumeClaim")


def _board(job: Object) -> Object:
    found: Object = job.get("status", {}).get("tensorboard") or {}
    return found


def test_a_webhook_and_a_mail_arrive_over_tls_that_the_sites_authority_vouches_for(site_with_rules: Site) -> None:
    place, receiver = site_with_rules.place, site_with_rules.receiver
    place.wait_complete(JOB, seconds=SECONDS)
    told = place.wait_for_job(JOB, lambda found: {each["state"] for each in _notices(found)} == {"Sent"})
    notices = {(each["type"], each["event"]): each["name"] for each in _notices(told)}
    hooks, (mail,) = receiver.taken("webhook"), receiver.taken("mail")
    letter = message_from_string(mail["content"], policy=policy.default)

    title = f"FineTuningJob {place.namespace}/{JOB} succeeded"
    record("A webhook and a mail of a job", f"{hooks[-1]['body']['title']}\n\n{mail['content']}")
    assert set(notices) == {("webhook", "Started"), ("webhook", "Succeeded"), ("email", "Succeeded")}
    assert [each["body"]["event"] for each in hooks] == ["Started", "Succeeded"]
    identity = f"{told['metadata']['uid']}/{notices['webhook', 'Succeeded']}"
    assert (hooks[-1]["identity"], hooks[-1]["path"], hooks[-1]["body"]["title"]) == (identity, "/hook", title)
    assert (mail["sender"], mail["recipients"]) == ("jobs@example.org", ["team@example.org"])
    assert letter["Subject"] == title


def _notices(job: Object) -> list[Object]:
    found: list[Object] = job["status"].get("notifications") or []
    return found


def test_a_request_over_the_service_wakes_a_server_that_was_shut_down(site_with_rules: Site) -> None:
    place, client = site_with_rules.place, site_with_rules.client
    place.wait("InferenceServer", SLEEPER, lambda found: bool(found["status"].get("idle")), seconds=SECONDS)
    selector = f"finetuning.dev/name={SLEEPER},finetuning.dev/kind=InferenceServer"
    place.cluster.wait_for(
        lambda: not place.cluster.objects("Pod", place.namespace, labels=selector), what="its pods are gone"
    )
    shut_down = place.get("InferenceServer", SLEEPER)
    address = f"{SLEEPER}.{place.namespace}.svc:8000"
    place.cluster.wait_for(lambda: client.reach({"it": address}) == {"it": OPEN}, what="somebody answers in its place")

    answers = client.python(_ASK_LIKE_A_CLIENT, f"http://{address}/v1/completions", SLEEPER)

    told = [(each["status"], each.get("after")) for each in answers]
    record("A server that was shut down, and what a client was told", f"{conditions(shut_down)}\n{told}")
    assert set(told[:-1]) == {(503, "10")}
    assert told[-1] == (200, None)
    assert answers[0]["content"]["error"]["code"] == "starting"
    assert answers[-1]["content"]["model"] == SLEEPER
    woken = place.wait("InferenceServer", SLEEPER, _is_ready)
    assert not woken["status"].get("idle")


def _is_ready(found: Object) -> bool:
    return has_condition(found, "Ready")
