"""The operator with the real server in its pods: what clients get while an adapter is trained and during a rollout.

The node is the one of the other real programs (tests.support.node); who is sent where is decided by the readiness of
pods, as the cluster's network would do it.
"""

import secrets
import threading
from collections import Counter

import httpx
from tests.cluster.test_real_programs import MODEL, SECONDS, Site, site
from tests.support.bad_input import GOOD_ROWS
from tests.support.cluster import Object, has_condition
from tests.support.lifecycle import condition, has_ended

__all__ = ["site"]

OF_SERVER = "finetuning.dev/kind=InferenceServer"


def _servers(site: Site, name: str) -> list[Object]:
    """Return the pods of a server that clients are sent to: those that are ready and not on their way out."""
    found = site.cluster.objects("Pod", site.namespace, labels=f"finetuning.dev/name={name},{OF_SERVER}")
    return [pod for pod in found if has_condition(pod, "Ready") and "deletionTimestamp" not in pod["metadata"]]


def _models(site: Site, pod: Object) -> list[str]:
    answer = httpx.get(f"{site.node.url(pod)}/v1/models").raise_for_status()
    return [each["id"] for each in answer.json()["data"]]


def test_a_server_answers_while_its_adapter_is_trained_and_then_serves_it_in_the_same_process(site: Site) -> None:
    changes = {"training.maxSteps": 200, "serving": {"afterGate": False}, "evaluation": {"enabled": False}}
    site.create("early", site.add_rows([*GOOD_ROWS]), changes)
    site.wait("early", lambda found: has_condition(found, "Serving") or has_ended(found))
    (pod,) = _servers(site, "early")
    during = _models(site, pod)

    done = site.wait("early", has_ended)

    assert has_condition(done, "Complete"), condition(done, "Failed")
    after = site.cluster.wait_for(
        lambda: found if "early" in (found := _models(site, pod)) else None, what="the adapter is served"
    )
    assert (during, after) == ([MODEL], [MODEL, "early"])
    asked = {"model": "early", "prompt": "Message: hello\nTriage: ", "max_tokens": 4}
    answer = httpx.post(f"{site.node.url(pod)}/v1/completions", json=asked, timeout=SECONDS).raise_for_status()
    assert answer.json()["model"] == "early"
    assert [each["metadata"]["uid"] for each in _servers(site, "early")] == [pod["metadata"]["uid"]]
    site.cluster.delete(done)


class Client(threading.Thread):
    """Asks whoever is ready, again and again, as clients behind one address do."""

    def __init__(self, site: Site, name: str, token: str) -> None:
        super().__init__(name="client", daemon=True)
        self._site, self._server = site, name
        self._headers = {"Authorization": f"Bearer {token}"}
        self._asked = {"model": MODEL, "prompt": "one two", "max_tokens": 4}
        self.answers: Counter[str] = Counter()
        """Good answers by pod."""
        self.failures: list[str] = []
        self.enough = threading.Event()

    def run(self) -> None:
        while not self.enough.is_set():
            for pod in _servers(self._site, self._server):
                self._ask(pod)

    def _ask(self, pod: Object) -> None:
        url = f"{self._site.node.url(pod)}/v1/completions"
        try:
            answer = httpx.post(url, json=self._asked, headers=self._headers, timeout=SECONDS)
        except httpx.TransportError as error:
            self.failures.append(repr(error))
            return
        if answer.is_success:
            self.answers[pod["metadata"]["name"]] += 1
        else:
            self.failures.append(answer.text)


def test_a_rollout_under_load_fails_no_request_and_strangers_are_refused(site: Site) -> None:
    token = secrets.token_urlsafe()
    head = {"name": "tokens", "namespace": site.namespace}
    site.cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": head, "stringData": {"alice": token}})
    spec = {"model": {"source": f"hf://{MODEL}", "endpoint": site.hub.url}, "authSecretRef": {"name": "tokens"}}
    made = site.cluster.create(
        {
            "apiVersion": "finetuning.dev/v1alpha1",
            "kind": "InferenceServer",
            "metadata": {"name": "steady", "namespace": site.namespace},
            "spec": spec,
        }
    )

    def ready(revision: int) -> Object:
        return site.cluster.wait_for_object(
            "InferenceServer",
            "steady",
            site.namespace,
            where=lambda now: has_condition(now, "Ready") and now["status"]["revision"] == revision,
            seconds=SECONDS,
        )

    ready(1)
    (old,) = _servers(site, "steady")
    assert httpx.post(f"{site.node.url(old)}/v1/completions", json={"model": MODEL}).status_code == 401
    client = Client(site, "steady", token)
    client.start()
    site.cluster.patch(made, {"spec": {"env": [{"name": "NOTE", "value": "second"}]}})
    ready(2)
    (new,) = _servers(site, "steady")
    site.cluster.wait_gone("Pod", old["metadata"]["name"], site.namespace)
    site.cluster.wait_for(lambda: client.answers[new["metadata"]["name"]] > 1, what="answers of the new pod")
    client.enough.set()
    client.join(timeout=SECONDS)

    assert client.failures == []
    assert client.answers.keys() == {old["metadata"]["name"], new["metadata"]["name"]}
    site.cluster.delete(made)
