"""Programs report with the tokens that a real API server gives their pods, and with no other."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_kube_config
from tests.support import pods
from tests.support.cluster import Cluster, Object
from tests.support.models import tiny_llama
from tests.support.operator_process import Identity
from tests.support.processes import REPOSITORY, environment
from tests.support.progress import RunningEndpoint, report

from finetuning_api.runconfig import PROGRESS_CA_ENV, PROGRESS_TOKEN_ENV, PROGRESS_URL_ENV
from finetuning_operator.cluster.api import ClusterApi, TokenBucket
from finetuning_operator.cluster.progress.address import Owner, ProgressKey

STOCK_TRAINER = REPOSITORY / "tests" / "support" / "stock_trainer.py"
TRAINING_SECONDS = 300


@dataclass(slots=True)
class OperatorReviews:
    """The operator's own client, with the operator's own rights; connected in the event loop that first needs it."""

    kubeconfig: Path
    api: ClusterApi | None = None
    asked: list[str] = field(default_factory=list)

    async def create_raw(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self.api is None:
            configuration = Configuration()
            await load_kube_config(config_file=str(self.kubeconfig), client_configuration=configuration)
            self.api = ClusterApi(ApiClient(configuration), bucket=TokenBucket(rate=50, burst=100))
        self.asked.append(path)
        return await self.api.create_raw(path, body)

    async def close(self) -> None:
        if self.api is not None:
            await self.api.close()


@dataclass(frozen=True, slots=True)
class Site:
    """An endpoint beside a cluster, with one object that it knows."""

    cluster: Cluster
    endpoint: RunningEndpoint
    owner: Owner

    @property
    def key(self) -> ProgressKey:
        return ProgressKey(self.owner.namespace, self.owner.kind, self.owner.name, "train")

    def token(self, audience: str, *, bound_to: Object | None = None, namespace: str = "") -> str:
        """Return what the kubelet would put into a pod's projected volume."""
        namespace = namespace or self.owner.namespace
        spec: Object = {"audiences": [audience], "expirationSeconds": 3600}
        if bound_to is not None:
            metadata = bound_to["metadata"]
            spec["boundObjectRef"] = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "uid": metadata["uid"],
            }
        path = self.cluster.path("ServiceAccount", "default", namespace=namespace, subresource="token")
        asked: Object = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        made = self.cluster.request("POST", path, body=asked, content_type="application/json")
        return str(made["status"]["token"])

    def post(self, token: str) -> httpx.Response:
        return self.endpoint.post(token, key=self.key, json=report(progressPercentage=40))


@pytest.fixture
def site(cluster: Cluster, namespace: str, operator_identity: Identity, tmp_path: Path) -> Iterator[Site]:
    reviews = OperatorReviews(operator_identity.write_kubeconfig(tmp_path / "kubeconfig"))
    owner = Owner(namespace, "FineTuningJob", "triage", "uid-1")
    endpoint = RunningEndpoint(reviews, tmp_path, owners={owner})
    with endpoint.listening():
        yield Site(cluster, endpoint, owner)
        endpoint.run(reviews.close())


def _pod(site: Site) -> Object:
    metadata = {"name": "triage-train-x", "namespace": site.owner.namespace}
    return site.cluster.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pods.restricted_spec()}
    )


def test_a_stock_transformers_script_reports_with_what_its_pod_is_given(site: Site, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(site.token(site.owner.audience, bound_to=_pod(site)))
    given = {
        PROGRESS_URL_ENV: site.endpoint.url_of(site.key),
        PROGRESS_TOKEN_ENV: str(token),
        PROGRESS_CA_ENV: str(site.endpoint.ca),
    }
    command = [sys.executable, str(STOCK_TRAINER), str(tiny_llama(tmp_path / "model")), str(tmp_path / "output")]

    done = subprocess.run(
        command, env=environment(given), capture_output=True, text=True, timeout=TRAINING_SECONDS, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    told = [status for key, status in site.endpoint.changed if key == site.key and status is not None]
    percents = [status.progress_percentage for status in told]
    assert (percents[0], percents[-1]) == (0, 100)
    midway = next(status for status in told if status.progress_percentage not in {0, 100})
    named = {metric.name: metric.value for metric in midway.metrics}
    assert named["total_steps"] == "20"
    assert int(named["step"]) * 5 == midway.progress_percentage
    assert float(named["loss"]) > 0
    assert midway.estimated_remaining_seconds is not None
    assert set(site.endpoint.answers) == {202}


def test_one_review_serves_many_reports_and_names_the_pod(site: Site) -> None:
    pod = _pod(site)
    token = site.token(site.owner.audience, bound_to=pod)

    assert [site.post(token).status_code for _ in range(5)] == [202] * 5

    (accepted,) = site.endpoint.verifier._accepted.values()
    assert (accepted.reporter.service_account, accepted.reporter.pod) == ("default", "triage-train-x")
    assert isinstance(site.endpoint.reviews, OperatorReviews)
    assert len(site.endpoint.reviews.asked) == 1


def test_a_token_for_the_api_server_itself_is_refused(site: Site) -> None:
    answer = site.post(site.token("https://kubernetes.default.svc"))

    assert (answer.status_code, answer.json()["message"]) == (
        401,
        "the token was not made for this endpoint: its audience is another",
    )


def test_the_token_of_another_job_is_refused(site: Site) -> None:
    other = replace(site.owner, name="other", uid="uid-2")
    site.endpoint.owners.add(other)

    answer = site.post(site.token(other.audience))

    assert (answer.status_code, answer.json()["message"]) == (403, "the token was made for another object")


def test_a_service_account_of_another_namespace_cannot_report_here(site: Site) -> None:
    answer = site.post(site.token(site.owner.audience, namespace="default"))

    assert answer.status_code == 403
    assert len(site.endpoint.store) == 0


def test_a_token_with_a_changed_signature_is_refused_by_the_api_server(site: Site) -> None:
    token = site.token(site.owner.audience)
    head, _, signature = token.rpartition(".")

    answer = site.post(f"{head}.{signature[::-1]}")

    assert (answer.status_code, answer.json()["message"]) == (401, "the token is not valid, or no longer")


def test_a_token_ends_with_its_pod(site: Site) -> None:
    pod = _pod(site)
    token = site.token(site.owner.audience, bound_to=pod)
    site.cluster.delete(pod)
    site.cluster.wait_gone("Pod", "triage-train-x", site.owner.namespace)

    # The API server itself may remember the pod for a few seconds.
    site.cluster.wait_for(lambda: _refused_afresh(site, token), what="the token of a pod that is gone is refused")


def _refused_afresh(site: Site, token: str) -> bool:
    site.endpoint.verifier._accepted.clear()
    site.endpoint.verifier._refused.clear()
    return site.post(token).status_code == 401


def test_without_the_right_to_review_nothing_is_accepted(site: Site, cluster: Cluster, tmp_path: Path) -> None:
    token = site.token(site.owner.audience)
    stranger = Identity(cluster.server, cluster.ca, site.token("https://kubernetes.default.svc"))
    stranger.write_kubeconfig(tmp_path / "kubeconfig")

    answer = site.post(token)

    assert (answer.status_code, answer.json()["message"]) == (
        503,
        "the token cannot be verified at the moment",
    )
