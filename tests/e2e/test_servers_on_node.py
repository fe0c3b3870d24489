"""Servers on a real node: a rollout that no client notices, and a shutdown when nobody asks."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.support.cluster import Object, Refused, has_condition
from tests.support.e2e import Place, conditions, record
from tests.support.e2e_images import Image
from tests.support.e2e_site import STORE, TINY_MODEL
from tests.support.forwarding import forwarded
from tests.support.pods import restricted_spec
from tests.support.served import is_ready

SECONDS = 240
_ASKING = (Path(__file__).parent / "asking.py").read_text()


@pytest.fixture
def server(shared_place: Place, request: pytest.FixtureRequest) -> Object:
    """A server of a tiny model, ready; the test's parameter adds to its spec."""
    name = f"answers-{secrets.token_hex(2)}"
    model = {"source": TINY_MODEL, "endpoint": STORE}
    shared_place.create("InferenceServer", name, model=model, **getattr(request, "param", {}))
    return shared_place.wait("InferenceServer", name, _is_ready, seconds=SECONDS)


@pytest.mark.parametrize("server", [{"idleShutdownMinutes": 1}], indirect=True)
def test_a_server_that_nobody_asks_goes_and_comes_back_when_it_is_woken(shared_place: Place, server: Object) -> None:
    name = server["metadata"]["name"]
    idle = shared_place.wait("InferenceServer", name, lambda found: bool(found["status"].get("idle")), seconds=SECONDS)
    shared_place.cluster.wait_for(lambda: not _pods(shared_place, name), what="its pods are gone", seconds=SECONDS)
    assert idle["status"]["url"] == server["status"]["url"]
    record("A server that nobody asked for a minute", conditions(shared_place.get("InferenceServer", name)))

    shared_place.kubectl("annotate", "infs", name, "finetuning.dev/wake=now")
    woken = shared_place.wait("InferenceServer", name, _is_ready, seconds=SECONDS)

    assert "idle" not in woken["status"] or woken["status"]["idle"] is None
    with forwarded(shared_place.cluster, shared_place.namespace, f"svc/{name}", 8000) as way:
        assert is_ready(way.url)
    shared_place.cluster.delete(woken)


def test_a_rollout_loses_no_request_of_clients_of_the_service(
    shared_place: Place, server: Object, images: dict[str, Image]
) -> None:
    name = server["metadata"]["name"]
    (old,) = _pods(shared_place, name)
    with _clients(shared_place, server, image=images["relocator"].reference) as client:
        _wait_for_answers(shared_place, client, more_than=0)
        change = {"spec": {"env": [{"name": "A_CHANGE", "value": "of the pods"}]}}
        shared_place.cluster.patch(server, change)

        def is_rolled_out() -> bool:
            names = [each["metadata"]["name"] for each in _pods(shared_place, name)]
            return len(names) == 1 and names != [old["metadata"]["name"]]

        shared_place.cluster.wait_for(is_rolled_out, what="the new pod answers alone", seconds=SECONDS)
        until_now = _wait_for_answers(shared_place, client, more_than=0)["answered"]
        outcomes = _wait_for_answers(shared_place, client, more_than=until_now + 4)

    record("Requests over the Service during a rollout", json.dumps(outcomes, indent=1))
    assert set(outcomes) == {"answered"}
    shared_place.cluster.delete(server)


def _is_ready(found: Object) -> bool:
    return has_condition(found, "Ready")


def _pods(place: Place, name: str) -> list[Object]:
    """Return the pods of a server, those too that are on their way out."""
    labels = f"finetuning.dev/name={name},finetuning.dev/kind=InferenceServer"
    return place.cluster.objects("Pod", place.namespace, labels=labels)


@contextmanager
def _clients(place: Place, server: Object, *, image: str) -> Iterator[str]:
    """Ask a server from a pod while the block runs; yields the pod's name.

    The Service is asked by its address: a name server that is slow to answer would count as a request that was lost.
    """
    spec = restricted_spec()
    (container,) = spec["containers"]
    name = server["metadata"]["name"]
    address = place.cluster.get("Service", name, place.namespace)["spec"]["clusterIP"]
    url = urlsplit(server["status"]["url"])
    env = {"ASK_URL": url._replace(netloc=f"{address}:{url.port or 80}").geturl(), "ASK_MODEL": name}
    container |= {
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", _ASKING],
        "env": [{"name": key, "value": value} for key, value in env.items()],
    }
    metadata = {"name": f"clients-{secrets.token_hex(2)}", "namespace": place.namespace}
    pod = place.cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    try:
        yield pod["metadata"]["name"]
    finally:
        place.cluster.delete(pod)


def _wait_for_answers(place: Place, client: str, *, more_than: int) -> dict[str, int]:
    """Return how requests ended once so many were answered."""

    def look() -> dict[str, int] | None:
        found = _outcomes(place, client)
        return found if found and found["answered"] > more_than else None

    return place.cluster.wait_for(look, what="clients are answered", seconds=SECONDS)


def _outcomes(place: Place, client: str) -> dict[str, int] | None:
    """Return how many requests ended how, by the last line of the clients' pod; None before there is one."""
    path = place.cluster.path("Pod", client, namespace=place.namespace, subresource="log")
    try:
        found: dict[str, int] = place.cluster.request("GET", f"{path}?tailLines=1")
    except Refused:
        return None  # Its container is not there yet.
    return found if found.get("answered") else None
