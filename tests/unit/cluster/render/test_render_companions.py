"""What stands beside a server: budgets, autoscalers and ways in, each only where it is asked for."""

from dataclasses import replace
from typing import Any

import pytest
from tests.support.plans import options, server, server_owner

from finetuning_api.scaling import AutoscalingSpec, DisruptionSpec, KedaCron, KedaPrometheus, KedaSpec
from finetuning_operator.cluster.options import Doorway, GatewayRef, Options
from finetuning_operator.cluster.render import render_companions
from finetuning_operator.reconcile.plan import Server, Settings

Manifest = dict[str, Any]
SELECTOR = {"finetuning.dev/kind": "InferenceServer", "finetuning.dev/name": "chat"}
HOST = "chat.team-a.example.org"
KEDA = KedaSpec(
    cron=[KedaCron(timezone="Europe/Berlin", start="0 8 * * 1-5", end="0 18 * * 1-5", desired_replicas=2)],
    prometheus=KedaPrometheus(server_address="http://prometheus:9090", query="sum(up)", threshold=2.5),
    polling_seconds=15,
    cooldown_seconds=600,
)


def beside(wanted: Server, installation: Options | None = None) -> dict[str, Manifest]:
    """Return what stands beside a server by kind."""
    rendered = render_companions(wanted, owner=server_owner(), options=installation or options())
    for manifest in rendered:
        assert manifest["metadata"]["name"] == "chat"
        assert manifest["metadata"]["namespace"] == "team-a"
        assert [each["uid"] for each in manifest["metadata"]["ownerReferences"]] == ["uid-2"]
        assert manifest["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "finetuning-operator"
    return {manifest["kind"]: manifest for manifest in rendered}


def test_a_server_of_one_pod_stands_alone() -> None:
    assert beside(server()) == {}


@pytest.mark.parametrize(("address", "family"), [("10.0.0.7", "IPv4"), ("fd00::7", "IPv6")])
def test_the_operator_is_one_more_address_of_a_server_that_has_no_replica(address: str, family: str) -> None:
    installation = options(doorway=Doorway(address, 8090))
    found = beside(server(doorway=True), installation)

    assert beside(server(doorway=True)) == beside(server(), installation) == {}
    assert found["EndpointSlice"]["metadata"]["labels"]["kubernetes.io/service-name"] == "chat"
    assert {name: found["EndpointSlice"][name] for name in ("addressType", "endpoints", "ports")} == {
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": "http", "port": 8090, "protocol": "TCP"}],
    }


@pytest.mark.parametrize(
    ("asked", "rendered"),
    [
        (DisruptionSpec(max_unavailable=1), {"maxUnavailable": 1}),
        (DisruptionSpec(min_available=2), {"minAvailable": 2}),
    ],
)
def test_a_budget_counts_the_pods_of_the_server_and_lets_broken_ones_go(
    asked: DisruptionSpec, rendered: Manifest
) -> None:
    found = beside(server(disruption=asked))

    assert found.keys() == {"PodDisruptionBudget"}
    assert found["PodDisruptionBudget"]["spec"] == rendered | {
        "selector": {"matchLabels": SELECTOR},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }


def test_an_autoscaler_follows_cpu_and_requests_in_flight() -> None:
    scaling = AutoscalingSpec(
        min_replicas=2,
        max_replicas=9,
        target_cpu_utilization=60,
        target_requests_in_flight=8,
        scale_down_stabilization_seconds=120,
    )
    found = beside(server(replicas=None, autoscaling=scaling))

    assert found.keys() == {"HorizontalPodAutoscaler"}
    assert found["HorizontalPodAutoscaler"]["spec"] == {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
        "minReplicas": 2,
        "maxReplicas": 9,
        "metrics": [
            {
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}},
            },
            {
                "type": "Pods",
                "pods": {
                    "metric": {"name": "finetuning_server_requests_in_flight"},
                    "target": {"type": "AverageValue", "averageValue": "8"},
                },
            },
        ],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 120}},
    }


def test_keda_takes_the_place_of_the_autoscaler() -> None:
    found = beside(server(replicas=None, autoscaling=AutoscalingSpec(min_replicas=0, max_replicas=9, keda=KEDA)))

    assert found.keys() == {"ScaledObject"}
    assert found["ScaledObject"]["spec"] == {
        "scaleTargetRef": {"name": "chat"},
        "minReplicaCount": 0,
        "maxReplicaCount": 9,
        "pollingInterval": 15,
        "cooldownPeriod": 600,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}}}},
        "triggers": [
            {
                "type": "cron",
                "metadata": {
                    "timezone": "Europe/Berlin",
                    "start": "0 8 * * 1-5",
                    "end": "0 18 * * 1-5",
                    "desiredReplicas": "2",
                },
            },
            {
                "type": "prometheus",
                "metadata": {"serverAddress": "http://prometheus:9090", "query": "sum(up)", "threshold": "2.5"},
            },
        ],
    }


@pytest.mark.parametrize(("replicas", "paused"), [(None, "false"), (0, "true")])
def test_keda_does_not_start_what_is_switched_off(replicas: int | None, paused: str) -> None:
    scaled = server(replicas=replicas, autoscaling=AutoscalingSpec(max_replicas=9, keda=KEDA))
    annotations = beside(scaled)["ScaledObject"]["metadata"]["annotations"]
    assert annotations["autoscaling.keda.sh/paused"] == paused


@pytest.mark.parametrize(
    ("installation", "rest"),
    [
        (options(ingress_class="public"), {"ingressClassName": "public", "tls": [{"hosts": [HOST]}]}),
        (options(), {"tls": [{"hosts": [HOST]}]}),
        (options(settings=Settings(serving_scheme="http")), {}),
    ],
    ids=["class", "default-class", "plain"],
)
def test_an_ingress_leads_to_the_server_by_its_host(installation: Options, rest: Manifest) -> None:
    found = beside(server(host=HOST), installation)

    backend = {"service": {"name": "chat", "port": {"name": "http"}}}
    rule = {"host": HOST, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    assert found.keys() == {"Ingress"}
    assert found["Ingress"]["spec"] == {"rules": [rule]} | rest


def test_a_route_of_the_gateway_takes_the_place_of_the_ingress() -> None:
    found = beside(server(host=HOST), options(gateway=GatewayRef("edge", "public")))

    assert found.keys() == {"HTTPRoute"}
    assert found["HTTPRoute"]["spec"] == {
        "parentRefs": [{"namespace": "edge", "name": "public"}],
        "hostnames": [HOST],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                "backendRefs": [{"name": "chat", "port": 8000}],
                "timeouts": {"request": "0s"},
            }
        ],
    }


def test_every_change_of_what_is_asked_for_changes_the_mark_of_its_description() -> None:
    wanted = server(disruption=DisruptionSpec(max_unavailable=1))
    marks = {
        beside(each)["PodDisruptionBudget"]["metadata"]["annotations"]["finetuning.dev/description"]
        for each in (wanted, replace(wanted, disruption=DisruptionSpec(max_unavailable=2)))
    }
    assert len(marks) == 2
