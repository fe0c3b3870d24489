"""InferenceServers on a real API server: serving before the gate, scaling, budgets, rollouts and ways in from outside.

Pods are played; Deployments, autoscalers, budgets and the garbage collector are Kubernetes' own.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support import definitions, pods
from tests.support.api_proxy import ApiProxy
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.lifecycle import MODEL, condition, is_running, resource
from tests.support.operator_process import Identity, OperatorProcess, free_port
from tests.support.private_plane import PrivatePlane
from tests.support.processes import wait_until
from tests.support.site import Pool, Site, pool, uid

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords

OF_SERVER = "finetuning.dev/kind=InferenceServer"
DOMAIN = "ai.example.org"
OPERATOR_ADDRESS = "10.200.0.1"
"""Nobody asks there: what a Service does with its addresses is Kubernetes' own."""
EARLY = {"replicas": 1, "afterGate": False}
BY_CPU = {"minReplicas": 2, "maxReplicas": 4, "targetCpuUtilization": 60}


@pytest.fixture(scope="module")
def served(private_plane: PrivatePlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """An operator that exposes servers by a Gateway, in a cluster that at first knows none."""
    cluster, folder = private_plane.cluster, tmp_path_factory.mktemp("servers")
    options = {"SERVING_DOMAIN": DOMAIN, "GATEWAY": "edge/public", "RESYNC_SECONDS": "1"}
    options |= {"WAKE_PORT": str(free_port()), "POD_IP": OPERATOR_ADDRESS}
    with pool(cluster, Identity.install(cluster), folder=folder, **options) as lent:
        yield lent


@pytest.fixture
def site(served: Pool) -> Site:
    """A namespace whose pods run until their end is played."""
    return served.lend()


def server(site: Site, **spec: object) -> Object:
    """Create a server whose model is there."""
    return site.create(resource("InferenceServer", "answers", site.namespace, **({"model": MODEL} | spec)))


def is_ready(found: Object) -> bool:
    return has_condition(found, "Ready")


def warnings(found: Object) -> str:
    return " ".join(found.get("status", {}).get("warnings", ()))


def told(found: Object) -> str:
    return str(condition(found, "Ready").get("message", ""))


def server_pod(site: Site, *, other_than: tuple[str, ...] = (), phase: str = "") -> Object:
    return pods.wait_for_pod(site.cluster, site.namespace, labels=OF_SERVER, phase=phase, other_than=other_than)


def at_rest(served: Pool, site: Site) -> bool:
    """Whether nothing is written while everything is listed anew, once what was under way is done."""

    def lists() -> int:
        return len(served.proxy.seen(verbs={"list"}, target="networkpolicies"))

    def quiet() -> bool:
        before, listed = served.writes(site), lists()
        wait_until(lambda: lists() >= listed + 2, seconds=30, what="two full lists")
        return served.writes(site) == before

    wait_until(quiet, seconds=60, what="nothing is written any more")
    return quiet()


class TestServingBeforeTheGate:
    """The base model answers while its adapter is made."""

    def test_the_server_of_a_job_answers_during_training_and_its_pods_never_change(self, site: Site) -> None:
        site.job(serving=EARLY)
        site.play("preflight")
        training = site.wait_for_job(where=lambda now: is_running("train")(now) and has_condition(now, "Serving"))
        before, pod = site.get("Deployment"), server_pod(site, phase="Running")
        trainer = site.pod("train")

        assert training["status"]["serving"]["url"] == f"http://demo.{site.namespace}.svc:8000"
        assert told(site.get("InferenceServer")) == "1 of 1 replicas answer; demo follows from FineTuningJob demo"
        assert pod["spec"]["nodeName"] == trainer["spec"]["nodeName"]
        site.play("train", "evaluate")
        done = site.wait_for_job()

        site.wait("InferenceServer", where=lambda now: told(now) == "1 of 1 replicas answer")
        after = site.get("Deployment")
        assert has_condition(done, "Complete")
        assert (uid(after), after["metadata"]["generation"]) == (uid(before), before["metadata"]["generation"])
        assert uid(server_pod(site)) == uid(pod)

    def test_the_server_of_a_job_that_fails_before_it_trained_holds_no_pod(self, site: Site) -> None:
        site.job(serving=EARLY)
        site.play("preflight")
        site.wait_for_job(where=lambda now: has_condition(now, "Serving"))
        words = LastWords(reason=Reason.LOSS_DIVERGED, message="the loss is not finite")
        pods.finish(site.cluster, site.pod("train"), exit_code=1, message=words.model_dump_json())

        failed = site.wait_for_job()

        site.wait("InferenceServer", where=lambda now: now["status"]["replicas"] == 0 and now["spec"]["replicas"] == 0)
        assert condition(failed, "Serving")["message"] == "the job failed before it had anything to serve"

    def test_an_adapter_of_an_unfinished_job_is_mounted_before_it_is_there(self, site: Site) -> None:
        site.job("late", evaluation={"enabled": False})
        site.wait_for_job("late", where=is_running("preflight"))
        server(site, adapters=[{"name": "mine", "jobRef": "late", "awaited": True}])
        site.wait("InferenceServer", "answers", where=is_ready)
        before = site.get("Deployment", "answers")

        site.play("preflight", "train")

        site.wait("InferenceServer", "answers", where=lambda now: told(now) == "1 of 1 replicas answer")
        after = site.get("Deployment", "answers")
        assert after["metadata"]["generation"] == before["metadata"]["generation"]
        mounts = after["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        assert {"/volumes/late-adapter": True}.items() <= {
            each["mountPath"]: each.get("readOnly", False) for each in mounts
        }.items()


class TestCanary:
    """A name that stands for two models."""

    def test_the_share_that_a_job_asks_for_reaches_its_server_can_change_and_can_end(self, site: Site) -> None:
        def told_to_pods() -> dict[str, Any] | None:
            template = site.get("Deployment")["spec"]["template"]
            config: dict[str, Any] = json.loads(template["metadata"]["annotations"]["finetuning.dev/run-config"])
            return config.get("canary")

        made = site.job(serving=EARLY | {"canary": {"name": "live", "weight": 10}})
        site.play("preflight")
        site.wait("InferenceServer", where=is_ready)
        first = told_to_pods()
        site.patch(made, spec={"serving": {"canary": {"name": "live", "weight": 60}}})
        wait_until(lambda: told_to_pods() != first, seconds=60, what="the new share is told")
        second = told_to_pods()
        site.patch(made, spec={"serving": {"canary": None}})
        wait_until(lambda: told_to_pods() is None, seconds=60, what="the share is taken back")

        assert first == {"name": "live", "stable": "acme/tiny", "adapter": "demo", "weight": 10}
        assert second == {"name": "live", "stable": "acme/tiny", "adapter": "demo", "weight": 60}
        assert "canary" not in site.get("InferenceServer")["spec"]


class TestWaking:
    """A server that was shut down because nobody asked it, and is asked."""

    def test_the_operator_answers_for_it_and_starts_it(self, served: Pool, site: Site) -> None:
        server(site, idleShutdownMinutes=30)
        ready = site.wait("InferenceServer", "answers", where=is_ready)
        site.cluster.wait_gone("EndpointSlice", "answers", site.namespace)
        shut = {"since": "2026-01-01T12:00:00Z", "generation": ready["metadata"]["generation"], "wake": ""}
        site.cluster.patch(ready, {"status": {"idle": shut}}, subresource="status")
        site.wait("Deployment", "answers", where=lambda now: now["spec"]["replicas"] == 0)
        asleep = site.wait("InferenceServer", "answers", where=lambda now: now["status"]["replicas"] == 0)
        doorway = site.wait("EndpointSlice", "answers", where=lambda _: True)
        former = [{"addresses": ["10.200.0.99"], "conditions": {"ready": True}}]
        site.cluster.patch(doorway, {"endpoints": former})
        mended = site.wait("EndpointSlice", "answers", where=lambda now: now["endpoints"] == doorway["endpoints"])

        host = f"answers.{site.namespace}.svc:8000"
        port = doorway["ports"][0]["port"]
        refused = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", headers={"Host": host}, json={})

        woken = site.wait("InferenceServer", "answers", where=is_ready)
        site.cluster.wait_gone("EndpointSlice", "answers", site.namespace)
        assert told(asleep) == "no request for 30 min: nothing answers. The next request starts it"
        assert [each["addresses"] for each in doorway["endpoints"]] == [[OPERATOR_ADDRESS]]
        assert doorway["metadata"]["labels"]["kubernetes.io/service-name"] == "answers"
        assert uid(mended) == uid(doorway)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert refused.json()["error"]["code"] == "starting"
        assert "idle" not in woken["status"]
        assert at_rest(served, site)


class TestScaling:
    """Who decides how many replicas there are."""

    def test_an_autoscaler_owns_the_replicas_and_goes_when_it_is_unset(self, served: Pool, site: Site) -> None:
        made = server(site, autoscaling=BY_CPU)
        scaled = site.wait("InferenceServer", "answers", where=lambda now: told(now) == "2 of 2 replicas answer")
        autoscaler, budget = site.get("HorizontalPodAutoscaler", "answers"), site.get("PodDisruptionBudget", "answers")

        assert is_ready(scaled)
        assert (autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]) == (2, 4)
        assert budget["spec"]["maxUnavailable"] == 1
        site.patch(site.get("Deployment", "answers"), spec={"replicas": 3})
        site.wait("InferenceServer", "answers", where=lambda now: told(now) == "3 of 3 replicas answer")
        assert at_rest(served, site)
        assert site.get("Deployment", "answers")["spec"]["replicas"] == 3

        site.patch(made, spec={"autoscaling": {"maxReplicas": 6}})
        site.wait("HorizontalPodAutoscaler", "answers", where=lambda now: now["spec"]["maxReplicas"] == 6)
        site.patch(made, spec={"autoscaling": None})

        site.wait_gone("HorizontalPodAutoscaler", "answers")
        site.wait_gone("PodDisruptionBudget", "answers")
        site.wait("InferenceServer", "answers", where=lambda now: now["status"]["replicas"] == 1)

    def test_a_scaled_server_is_switched_off_and_on_and_cannot_be_scaled_by_hand(self, site: Site) -> None:
        made = server(site, autoscaling=BY_CPU)
        site.wait("InferenceServer", "answers", where=is_ready)

        refused = scale(site, 3)
        assert refused.returncode == 1
        assert "autoscaling decides how many replicas there are" in refused.stderr
        assert scale(site, 0).returncode == 0
        site.wait("InferenceServer", "answers", where=lambda now: now["status"]["replicas"] == 0)
        site.patch(made, spec={"replicas": 1})
        site.wait("InferenceServer", "answers", where=lambda now: told(now) == "2 of 2 replicas answer")

    def test_a_budget_follows_its_server_and_what_is_asked_of_it(self, site: Site) -> None:
        made = server(site, replicas=2)
        site.wait("PodDisruptionBudget", "answers", where=lambda now: now["spec"].get("maxUnavailable") == 1)
        site.patch(made, spec={"disruption": {"minAvailable": 1}})
        asked = site.wait("PodDisruptionBudget", "answers", where=lambda now: now["spec"].get("minAvailable") == 1)
        assert "maxUnavailable" not in asked["spec"]
        site.cluster.delete(asked)
        site.wait_for_uid("PodDisruptionBudget", "answers", other_than=asked)

        site.patch(made, spec={"disruption": None, "replicas": 1})
        site.wait_gone("PodDisruptionBudget", "answers")
        site.patch(made, spec={"replicas": 3})
        site.wait("PodDisruptionBudget", "answers")
        site.cluster.delete(made)
        site.wait_gone("PodDisruptionBudget", "answers")


def scale(site: Site, replicas: int) -> subprocess.CompletedProcess[str]:
    """Scale the server of a namespace as a user does."""
    arguments = ("scale", "infs", "answers", f"--replicas={replicas}", "-n", site.namespace)
    return site.cluster.kubectl(*arguments, check=False)


class TestRollout:
    """From one description to the next, and back."""

    def test_a_rollout_that_fails_is_told_keeps_the_old_pod_and_is_taken_back(self, served: Pool) -> None:
        site = served.lend("hold")
        made = server(site, health={"startupSeconds": 4})
        old = pods.run(site.cluster, server_pod(site))
        first = site.wait("InferenceServer", "answers", where=is_ready)
        assert first["status"]["revision"] == 1

        site.patch(made, spec={"image": "example/server:none"})
        new = server_pod(site, other_than=(old["metadata"]["name"],))
        pods.image_pull_error(site.cluster, new)
        failed = site.wait(
            "InferenceServer", "answers", where=lambda now: condition(now, "Ready").get("reason") == "RolloutStalled"
        )

        assert failed["status"]["readyReplicas"] == 1
        assert failed["status"]["revision"] == 2
        for part in ("1 of 1 replicas answer", "no progress for 8 s", "apply the former specification"):
            assert part in told(failed)
        assert site.get("Pod", old["metadata"]["name"])["status"]["phase"] == "Running"
        site.patch(made, spec={"image": None})

        back = site.wait("InferenceServer", "answers", where=is_ready)
        assert back["status"]["revision"] == 3
        assert site.get("Pod", old["metadata"]["name"])["status"]["phase"] == "Running"

    def test_what_runs_is_left_alone_while_a_new_adapter_is_waited_for(self, site: Site) -> None:
        site.finished_job("good")
        made = server(site, adapters=[{"name": "triage", "jobRef": "good"}])
        site.wait("InferenceServer", "answers", where=is_ready)
        before = site.get("Deployment", "answers")

        site.patch(made, spec={"adapters": [{"name": "triage", "jobRef": "later"}]})
        site.wait("InferenceServer", "answers", where=lambda now: "FineTuningJob later" in told(now))
        assert site.get("Deployment", "answers")["metadata"]["generation"] == before["metadata"]["generation"]
        site.finished_job("later")

        site.wait("InferenceServer", "answers", where=is_ready)
        assert site.get("Deployment", "answers")["metadata"]["generation"] > before["metadata"]["generation"]


class TestCompanionsOfSomeClusters:
    """What only a cluster with the Gateway API or with KEDA can do."""

    def test_what_the_cluster_does_not_know_is_a_warning_until_it_does(
        self, served: Pool, site: Site, tmp_path: Path
    ) -> None:
        tokens = {"authSecretRef": {"name": "tokens"}}
        cron = {"start": "0 8 * * *", "end": "0 18 * * *", "desiredReplicas": 2}
        keda = {"maxReplicas": 3, "keda": {"cron": [cron]}}
        made = server(site, expose=True, autoscaling=keda, **tokens)
        lacking = site.wait(
            "InferenceServer", "answers", where=lambda now: is_ready(now) and "scaledobjects" in warnings(now)
        )
        assert "this cluster knows no httproutes.gateway.networking.k8s.io" in warnings(lacking)
        assert lacking["status"]["externalUrl"] == ""

        for source in (definitions.GATEWAY_ROUTES, definitions.SCALED_OBJECTS):
            definitions.install(site.cluster, source, folder=tmp_path)

        route = site.wait("HTTPRoute", "answers")
        assert route["spec"]["hostnames"] == [f"answers.{site.namespace}.{DOMAIN}"]
        assert route["spec"]["parentRefs"][0]["name"] == "public"
        assert site.wait("ScaledObject", "answers")["spec"]["scaleTargetRef"] == {"name": "answers"}
        found = site.wait("InferenceServer", "answers", where=lambda now: not warnings(now))
        assert found["status"]["externalUrl"] == f"https://answers.{site.namespace}.{DOMAIN}"
        assert found["status"]["url"] == lacking["status"]["url"]
        assert at_rest(served, site)

        site.patch(made, spec={"expose": False, "autoscaling": None})
        site.wait_gone("HTTPRoute", "answers")
        site.wait_gone("ScaledObject", "answers")


def test_an_ingress_leads_to_a_server_where_the_installation_has_a_class_for_it(
    cluster: Cluster, namespace: str, proxy: ApiProxy, run_operator: Callable[..., OperatorProcess]
) -> None:
    env = {
        "FINETUNING_NAMESPACES": namespace,
        "FINETUNING_SERVING_DOMAIN": DOMAIN,
        "FINETUNING_SERVING_SCHEME": "http",
        "FINETUNING_INGRESS_CLASS": "public",
    }
    run_operator(env=env, via=proxy).wait_ready()
    site = Site(cluster, namespace)
    made = server(site, expose=True)

    ready = site.wait("InferenceServer", "answers", where=lambda now: is_ready(now) and warnings(now) != "")
    host = f"answers.{namespace}.{DOMAIN}"
    spec = site.get("Ingress", "answers")["spec"]
    assert (spec["ingressClassName"], [rule["host"] for rule in spec["rules"]]) == ("public", [host])
    assert ready["status"]["externalUrl"] == f"http://{host}"
    assert warnings(ready) == "spec.expose: everybody who reaches the address may ask; set spec.authSecretRef"
    site.patch(made, spec={"expose": False})
    site.wait_gone("Ingress", "answers")
    closed = site.wait("InferenceServer", "answers", where=lambda now: not warnings(now))
    assert closed["status"]["externalUrl"] == ""
