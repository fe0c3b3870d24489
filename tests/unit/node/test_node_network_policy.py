"""Network policies as rules: tried on packets that are judged by the rules as the kernel would."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hack.cluster.network_policy import State, render, selects

Object = dict[str, Any]
_WEB, _ASKER, _OTHER, _OUTSIDE = "10.244.0.10", "10.244.0.11", "10.244.0.12", "192.0.2.7"


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection."""

    source: str
    target: str
    port: int = 80
    protocol: str = "tcp"


def pod(name: str, address: str, *, labels: Mapping[str, str] | None = None, **status: str) -> Object:
    ports = [{"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]
    metadata = {"name": name, "namespace": status.pop("namespace", "a"), "labels": dict(labels or {"app": name})}
    spec = {"containers": [{"name": "main", "ports": ports}]}
    return {"metadata": metadata, "spec": spec, "status": {"podIP": address, "phase": "Running", **status}}


def policy(selector: Object | None = None, *, namespace: str = "a", **spec: object) -> Object:
    return {"metadata": {"name": "p", "namespace": namespace}, "spec": {"podSelector": selector or {}, **spec}}


def rules(*policies: Object, pods: list[Object] | None = None) -> str:
    default = [pod("web", _WEB), pod("asker", _ASKER), pod("other", _OTHER, namespace="b")]
    spaces = [{"metadata": {"name": name, "labels": {"team": name}}} for name in ("a", "b")]
    return render(State(default if pods is None else pods, spaces, list(policies)))


def passes(text: str, packet: Packet) -> bool:
    """Judge a packet by rules, chain by chain, as a kernel reads them."""
    return all(_verdict(text, chain, packet) != "DROP" for chain in ("FT-EGRESS", "FT-INGRESS"))


def _verdict(text: str, chain: str, packet: Packet) -> str:
    for line in text.splitlines():
        words = line.split()
        if words[:2] == ["-A", chain] and _matches(dict(zip(words[2::2], words[3::2], strict=True)), packet):
            return words[-1]
    return "RETURN"


def _matches(options: Mapping[str, str], packet: Packet) -> bool:
    low, _, high = options.get("--dport", "0:65535").partition(":")
    return (
        ip_address(packet.source) in ip_network(options.get("-s", "0.0.0.0/0"))
        and ip_address(packet.target) in ip_network(options.get("-d", "0.0.0.0/0"))
        and options.get("-p", packet.protocol) == packet.protocol
        and int(low) <= packet.port <= int(high or low)
    )


def test_without_policies_everything_passes() -> None:
    assert rules().splitlines() == [
        "*mangle",
        ":FT-POLICY - [0:0]",
        ":FT-EGRESS - [0:0]",
        ":FT-INGRESS - [0:0]",
        "-A FT-POLICY -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN",
        "-A FT-POLICY -j FT-EGRESS",
        "-A FT-POLICY -j FT-INGRESS",
        "COMMIT",
    ]


def test_a_closed_direction_drops_what_begins_there_and_nothing_else() -> None:
    text = rules(policy({"matchLabels": {"app": "asker"}}, policyTypes=["Egress"]))
    assert not passes(text, Packet(_ASKER, _WEB))
    assert not passes(text, Packet(_ASKER, _OUTSIDE, protocol="udp"))
    assert passes(text, Packet(_WEB, _ASKER))
    assert passes(text, Packet(_OTHER, _OUTSIDE))
    assert passes(text, Packet(_ASKER, _ASKER))


def test_a_policy_of_another_namespace_binds_nobody_here() -> None:
    assert passes(rules(policy(namespace="b", policyTypes=["Egress"])), Packet(_ASKER, _WEB))


@pytest.mark.parametrize(
    ("spec", "closed"),
    [
        ({}, {"in"}),
        ({"egress": [{"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]}]}, {"in", "out"}),
        ({"policyTypes": ["Egress"]}, {"out"}),
        ({"policyTypes": ["Ingress", "Egress"]}, {"in", "out"}),
    ],
)
def test_which_directions_a_policy_is_about(spec: Object, closed: set[str]) -> None:
    text = rules(policy({"matchLabels": {"app": "web"}}, **spec))
    found = {"out"} if not passes(text, Packet(_WEB, _OUTSIDE)) else set()
    found |= {"in"} if not passes(text, Packet(_OUTSIDE, _WEB)) else set()
    assert found == closed


def test_policies_add_up() -> None:
    closed = policy(policyTypes=["Ingress"])
    opened = policy(
        {"matchLabels": {"app": "web"}}, ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "asker"}}}]}]
    )
    text = rules(closed, opened)
    assert passes(text, Packet(_ASKER, _WEB))
    assert not passes(text, Packet(_WEB, _ASKER))
    assert not passes(text, Packet(_OTHER, _WEB))


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ({"podSelector": {}}, {_ASKER}),
        ({"namespaceSelector": {"matchLabels": {"team": "b"}}}, {_OTHER}),
        ({"namespaceSelector": {}}, {_ASKER, _OTHER}),
        ({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "other"}}}, {_OTHER}),
        ({"ipBlock": {"cidr": "192.0.2.0/24"}}, {_OUTSIDE}),
        ({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"]}}, {_ASKER, _OTHER}),
        ({"ipBlock": {"cidr": "192.0.2.0/28", "except": ["192.0.2.0/24"]}}, set()),
        ({"ipBlock": {"cidr": "fd00::/8"}}, set()),
    ],
)
def test_peers(peer: Object, allowed: set[str]) -> None:
    inward = rules(policy({"matchLabels": {"app": "web"}}, ingress=[{"from": [peer]}]))
    outward = rules(policy({"matchLabels": {"app": "web"}}, policyTypes=["Egress"], egress=[{"to": [peer]}]))
    others = (_ASKER, _OTHER, _OUTSIDE)
    assert {other for other in others if passes(inward, Packet(other, _WEB))} == allowed
    assert {other for other in others if passes(outward, Packet(_WEB, other))} == allowed


@pytest.mark.parametrize(
    ("port", "allowed"),
    [
        ({"port": 80}, {("tcp", 80)}),
        ({"port": "http"}, {("tcp", 8080)}),
        ({"port": "dns", "protocol": "UDP"}, {("udp", 53)}),
        ({"port": "dns"}, set()),
        ({"port": 80, "endPort": 8080}, {("tcp", 80), ("tcp", 8080)}),
        ({"protocol": "UDP"}, {("udp", 53), ("udp", 80)}),
    ],
)
@pytest.mark.parametrize("peers", [{}, {"podSelector": {}}])
def test_ports(port: Object, allowed: set[tuple[str, int]], peers: Object) -> None:
    named = [peers] if peers else []
    asked = [("tcp", 80), ("tcp", 8080), ("tcp", 53), ("udp", 53), ("udp", 80)]
    packets = {(protocol, number): Packet(_ASKER, _WEB, number, protocol) for protocol, number in asked}

    inward = rules(policy({"matchLabels": {"app": "web"}}, ingress=[{"from": named, "ports": [port]}]))
    assert {key for key, packet in packets.items() if passes(inward, packet)} == allowed

    selector = {"matchLabels": {"app": "asker"}}
    outward = rules(policy(selector, policyTypes=["Egress"], egress=[{"to": named, "ports": [port]}]))
    assert {key for key, packet in packets.items() if passes(outward, packet)} == allowed


def test_an_open_rule_lets_everything_through() -> None:
    assert passes(rules(policy(policyTypes=["Egress"], egress=[{}])), Packet(_ASKER, _OUTSIDE))


def test_an_address_that_may_be_another_pods_by_now_binds_nobody() -> None:
    ended = pod("ended", _ASKER, phase="Succeeded")
    assert passes(rules(policy(policyTypes=["Egress"]), pods=[ended]), Packet(_ASKER, _WEB))


def test_pods_of_the_hosts_network_are_the_host() -> None:
    host = pod("host", _OUTSIDE)
    host["spec"]["hostNetwork"] = True
    assert passes(rules(policy(policyTypes=["Egress"]), pods=[host]), Packet(_OUTSIDE, _WEB))


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ({"key": "app", "operator": "In", "values": ["web", "x"]}, True),
        ({"key": "app", "operator": "In", "values": ["x"]}, False),
        ({"key": "app", "operator": "NotIn", "values": ["x"]}, True),
        ({"key": "none", "operator": "NotIn", "values": ["x"]}, True),
        ({"key": "app", "operator": "Exists"}, True),
        ({"key": "none", "operator": "Exists"}, False),
        ({"key": "none", "operator": "DoesNotExist"}, True),
        ({"key": "app", "operator": "DoesNotExist"}, False),
    ],
)
def test_expressions_of_selectors(expression: Object, *, holds: bool) -> None:
    assert selects({"matchExpressions": [expression]}, {"app": "web"}) is holds
