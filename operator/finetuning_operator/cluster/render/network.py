"""Who may talk to whom: private by construction, whatever a program tries."""

from typing import Final

from finetuning_api.base import Resource
from finetuning_operator.cluster.options import Options, ProgressOptions
from finetuning_operator.cluster.render.labels import NETWORK, Manifest, Network, metadata, stamped
from finetuning_operator.reconcile import labels

SERVING_PORT: Final = "http"
"""Name of the port that a server answers on."""
RENDEZVOUS_PORT: Final = 29500
"""Where the workers of a step find each other."""
_EPHEMERAL_PORTS = (32768, 60999)
"""Linux gives these to whoever asks for any, in every new network namespace (net.ipv4.ip_local_port_range)."""
_OPERATOR_PODS = {"app.kubernetes.io/name": labels.OPERATOR}
_NAMESPACE_NAME = "kubernetes.io/metadata.name"
_NODE_LOCAL_DNS = "169.254.20.10/32"
"""The documented address of NodeLocal DNSCache: it answers from the host's network, which no selector matches."""


def render_network_policies(namespace: str, options: Options) -> tuple[Manifest, ...]:
    """Return what binds our pods in a namespace, by their label of the network.

    Nobody reaches a pod but a server's clients its port. Programs that hold data or models reach nothing but the
    progress endpoint, and DNS to find it; relocation reaches everything, or what the installation lists. Where no
    endpoint runs there is no DNS either: names that are looked up can carry data out.
    """
    progress = [_to_operator(options, options.progress), _to_dns()] if options.progress else []
    listed = options.outside.egress
    outside = [*listed, *(progress or [_to_dns()])] if listed else [{}]
    answers = {"ports": [{"port": SERVING_PORT, "protocol": "TCP"}]}
    return (
        _policy(namespace, Network.ISOLATED, ingress=[], egress=progress),
        _policy(namespace, Network.SERVING, ingress=[answers], egress=[]),
        _policy(namespace, Network.OPEN, ingress=[], egress=outside),
    )


def peers_policy(name: str, *, owner: Resource, pods: dict[str, str], step: str) -> Manifest:
    """Return what lets the workers of one step reach each other, and nobody else.

    They meet on one port; for what they send each other, gloo and NCCL take ports that the kernel gives them.
    """
    selector = {"podSelector": {"matchLabels": pods}}
    first, last = _EPHEMERAL_PORTS
    ports = [{"port": RENDEZVOUS_PORT, "protocol": "TCP"}, {"port": first, "endPort": last, "protocol": "TCP"}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(owner, name, **{labels.STEP: step}),
        "spec": {
            "podSelector": {"matchLabels": pods},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [selector], "ports": ports}],
            "egress": [{"to": [selector], "ports": ports}, _to_dns()],
        },
    }


def _policy(namespace: str, network: Network, *, ingress: list[Manifest], egress: list[Manifest]) -> Manifest:
    managed = {labels.MANAGED_BY: labels.OPERATOR}
    return stamped(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": f"finetuning-{network.value}", "namespace": namespace, "labels": managed},
            "spec": {
                "podSelector": {"matchLabels": managed | {NETWORK: network.value}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": ingress,
                "egress": egress,
            },
        }
    )


def _to_operator(options: Options, progress: ProgressOptions) -> Manifest:
    # A policy sees the pod's port, after the Service's was translated.
    namespace = {"matchLabels": {_NAMESPACE_NAME: options.operator_namespace}}
    peer = {"namespaceSelector": namespace, "podSelector": {"matchLabels": _OPERATOR_PODS}}
    return {"to": [peer], "ports": [{"port": progress.port, "protocol": "TCP"}]}


def _to_dns() -> Manifest:
    cluster = {"namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: "kube-system"}}}
    return {
        "to": [cluster, {"ipBlock": {"cidr": _NODE_LOCAL_DNS}}],
        "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
    }
