"""What stands beside a server's Deployment: budgets for drains, autoscalers, and ways in from outside."""

from collections.abc import Iterator
from typing import Any

from finetuning_api.base import Resource
from finetuning_api.scaling import AutoscalingSpec, KedaSpec
from finetuning_operator.cluster.options import Doorway, Options
from finetuning_operator.cluster.render.labels import Manifest, metadata, pod_selector, stamped
from finetuning_operator.cluster.render.network import SERVING_PORT
from finetuning_operator.reconcile import labels
from finetuning_operator.reconcile.plan import Server

REQUESTS_IN_FLIGHT = "finetuning_server_requests_in_flight"
"""Gauge of the server's /metrics that a custom metrics API has to offer for pods."""
_PAUSED = "autoscaling.keda.sh/paused"


def render_companions(server: Server, *, owner: Resource, options: Options) -> tuple[Manifest, ...]:
    """Return the objects beside a server's Deployment and Service; whatever is no longer among them is to go."""
    return tuple(stamped(manifest) for manifest in _companions(server, owner, options))


def _companions(server: Server, owner: Resource, options: Options) -> Iterator[Manifest]:
    if server.disruption is not None:
        yield _budget(server, owner)
    if server.autoscaling is not None:
        yield _scaled_object(server, owner) if server.autoscaling.keda else _autoscaler(server, owner)
    if server.doorway and options.doorway is not None:
        yield _doorway(server, owner, options.doorway)
    if server.host is not None:
        yield _route(server, owner, options) if options.gateway else _ingress(server, owner, options)


def _doorway(server: Server, owner: Resource, place: Doorway) -> Manifest:
    """Return one more address of the server's Service: the operator's own, beside those of replicas that are ready."""
    told = {"kubernetes.io/service-name": server.name, "endpointslice.kubernetes.io/managed-by": labels.OPERATOR}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata(owner, server.name, **told),
        "addressType": "IPv6" if ":" in place.address else "IPv4",
        "endpoints": [{"addresses": [place.address], "conditions": {"ready": True}}],
        "ports": [{"name": SERVING_PORT, "port": place.port, "protocol": "TCP"}],
    }


def _budget(server: Server, owner: Resource) -> Manifest:
    spec = {} if server.disruption is None else server.disruption.to_wire()
    # A pod that is not ready protects nobody by staying, and would stop a drain for ever.
    spec |= {"selector": {"matchLabels": pod_selector(owner)}, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
    return _manifest("policy/v1", "PodDisruptionBudget", server, owner, spec=spec)


def _autoscaler(server: Server, owner: Resource) -> Manifest:
    scaling = _scaling(server)
    metrics: list[Manifest] = []
    if scaling.target_cpu_utilization is not None:
        target = {"type": "Utilization", "averageUtilization": scaling.target_cpu_utilization}
        metrics.append({"type": "Resource", "resource": {"name": "cpu", "target": target}})
    if scaling.target_requests_in_flight is not None:
        target = {"type": "AverageValue", "averageValue": str(scaling.target_requests_in_flight)}
        metrics.append({"type": "Pods", "pods": {"metric": {"name": REQUESTS_IN_FLIGHT}, "target": target}})
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": server.name},
        "minReplicas": scaling.min_replicas,
        "maxReplicas": scaling.max_replicas,
        "metrics": metrics,
        "behavior": _behavior(scaling),
    }
    return _manifest("autoscaling/v2", "HorizontalPodAutoscaler", server, owner, spec=spec)


def _scaled_object(server: Server, owner: Resource) -> Manifest:
    scaling = _scaling(server)
    keda = scaling.keda or KedaSpec()
    spec = {
        "scaleTargetRef": {"name": server.name},
        "minReplicaCount": scaling.min_replicas,
        "maxReplicaCount": scaling.max_replicas,
        "pollingInterval": keda.polling_seconds,
        "cooldownPeriod": keda.cooldown_seconds,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(scaling)}},
        "triggers": list(_triggers(keda)),
    }
    manifest = _manifest("keda.sh/v1alpha1", "ScaledObject", server, owner, spec=spec)
    # A server that is switched off must not be started by KEDA; an ordinary autoscaler leaves one alone by itself.
    manifest["metadata"]["annotations"] = {_PAUSED: "false" if server.replicas is None else "true"}
    return manifest


def _triggers(keda: KedaSpec) -> Iterator[Manifest]:
    for window in keda.cron:
        yield {"type": "cron", "metadata": {name: str(value) for name, value in window.to_wire().items()}}
    if keda.prometheus is not None:
        asked = keda.prometheus
        told = {"serverAddress": asked.server_address, "query": asked.query, "threshold": f"{asked.threshold:g}"}
        yield {"type": "prometheus", "metadata": told}


def _behavior(scaling: AutoscalingSpec) -> Manifest:
    return {"scaleDown": {"stabilizationWindowSeconds": scaling.scale_down_stabilization_seconds}}


def _scaling(server: Server) -> AutoscalingSpec:
    if server.autoscaling is None:
        message = f"server {server.name} is not scaled"
        raise ValueError(message)
    return server.autoscaling


def _ingress(server: Server, owner: Resource, options: Options) -> Manifest:
    backend = {"service": {"name": server.name, "port": {"name": SERVING_PORT}}}
    paths = [{"path": "/", "pathType": "Prefix", "backend": backend}]
    spec: Manifest = {"rules": [{"host": server.host, "http": {"paths": paths}}]}
    if options.ingress_class is not None:
        spec["ingressClassName"] = options.ingress_class
    if options.settings.serving_scheme == "https":
        # Without a Secret of its own: the controller's certificate is that of the whole domain.
        spec["tls"] = [{"hosts": [server.host]}]
    return _manifest("networking.k8s.io/v1", "Ingress", server, owner, spec=spec)


def _route(server: Server, owner: Resource, options: Options) -> Manifest:
    gateway = options.gateway
    parents = [{"namespace": gateway.namespace, "name": gateway.name}] if gateway else []
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [{"name": server.name, "port": server.port}],
        # Answers are streamed for as long as the server itself allows.
        "timeouts": {"request": "0s"},
    }
    spec = {"parentRefs": parents, "hostnames": [server.host], "rules": [rule]}
    return _manifest("gateway.networking.k8s.io/v1", "HTTPRoute", server, owner, spec=spec)


def _manifest(version: str, kind: str, server: Server, owner: Resource, *, spec: dict[str, Any]) -> Manifest:
    return {"apiVersion": version, "kind": kind, "metadata": metadata(owner, server.name), "spec": spec}
