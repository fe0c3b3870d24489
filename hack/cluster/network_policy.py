"""Network policies as rules of iptables: what the network of a cluster enforces, for the pods of one node.

Rules are checked where addresses of Services have become those of pods, and before anything that kube-proxy accepts.
What the node itself sends, such as probes, does not pass there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

Object = Mapping[str, Any]
TABLE = "mangle"
HOOK = "FT-POLICY"
"""Chain that forwarded packets, and those to the node itself, pass through."""
_EGRESS, _INGRESS = "FT-EGRESS", "FT-INGRESS"
_ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class State:
    """What a cluster says about its pods and who may talk to whom."""

    pods: Sequence[Object]
    namespaces: Sequence[Object]
    policies: Sequence[Object]


@dataclass(frozen=True, slots=True)
class _Direction:
    """One side of a policy."""

    kind: str
    rules: str
    peers: str
    own: str
    """Option of iptables that matches the pod that a policy is about."""
    other: str


_OUT = _Direction(kind="Egress", rules="egress", peers="to", own="-s", other="-d")
_IN = _Direction(kind="Ingress", rules="ingress", peers="from", own="-d", other="-s")


def render(state: State) -> str:
    """Return what ``iptables-restore --noflush`` reads; it replaces the rules of an earlier state."""
    pods = [pod for pod in state.pods if _address(pod) and not pod["spec"].get("hostNetwork")]
    reachable = State(pods, state.namespaces, state.policies)
    lines = [
        f"*{TABLE}",
        *(f":{chain} - [0:0]" for chain in (HOOK, _EGRESS, _INGRESS)),
        f"-A {HOOK} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN",
        f"-A {HOOK} -j {_EGRESS}",
        f"-A {HOOK} -j {_INGRESS}",
    ]
    for chain, direction in ((_EGRESS, _OUT), (_INGRESS, _IN)):
        for pod in pods:
            lines += [f"-A {chain} {rule}" for rule in _rules(pod, direction, state=reachable)]
    return "\n".join([*lines, "COMMIT", ""])


def _rules(pod: Object, direction: _Direction, *, state: State) -> Iterator[str]:
    """Yield the rules of a pod in one direction: what is allowed returns, the rest is dropped."""
    policies = [policy for policy in state.policies if _binds(policy, pod, direction)]
    if not policies:
        return
    own = f"{direction.own} {_address(pod)}/32"
    yield f"{own} {direction.other} {_address(pod)}/32 -j RETURN"  # A pod always reaches itself.
    for policy in policies:
        for rule in policy["spec"].get(direction.rules) or []:
            for match in _matches(rule, direction, pod=pod, namespace=policy["metadata"]["namespace"], state=state):
                yield " ".join(part for part in (own, match, "-j RETURN") if part)
    yield f"{own} -j DROP"


def _binds(policy: Object, pod: Object, direction: _Direction) -> bool:
    spec = policy["spec"]
    default = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    return (
        policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
        and direction.kind in (spec.get("policyTypes") or default)
        and selects(spec.get("podSelector") or {}, pod["metadata"].get("labels") or {})
    )


def _matches(rule: Object, direction: _Direction, *, pod: Object, namespace: str, state: State) -> Iterator[str]:
    """Yield the conditions under which a rule of a policy allows a packet; any of them suffices."""
    ports = rule.get("ports") or []
    peers = rule.get(direction.peers) or []
    for peer in peers:
        if "ipBlock" in peer:
            # Names of ports mean those of a pod: an address alone has none, unless the pod itself is the target.
            for block in _networks(peer["ipBlock"]):
                for port in _ports(ports, target=pod if direction is _IN else None):
                    yield f"{direction.other} {block} {port}".strip()
            continue
        for other in _peers(peer, namespace=namespace, state=state):
            for port in _ports(ports, target=pod if direction is _IN else other):
                yield f"{direction.other} {_address(other)}/32 {port}".strip()
    if not peers:
        yield from _anyone(ports, direction, pod=pod, state=state)


def _anyone(ports: Sequence[Object], direction: _Direction, *, pod: Object, state: State) -> Iterator[str]:
    """Yield the conditions of a rule without peers. A named port stands for another number at every target."""
    if direction is _IN:
        yield from _ports(ports, target=pod)
        return
    yield from _ports([port for port in ports if not _is_named(port)], target=None) if _numbered(ports) else ()
    named = [port for port in ports if _is_named(port)]
    for other in state.pods if named else ():
        for port in _ports(named, target=other):
            yield f"{direction.other} {_address(other)}/32 {port}"


def _numbered(ports: Sequence[Object]) -> bool:
    """Whether a rule says something without the names of ports: numbers, or nothing at all about ports."""
    return not ports or any(not _is_named(port) for port in ports)


def _is_named(port: Object) -> bool:
    return isinstance(port.get("port"), str)


def _peers(peer: Object, *, namespace: str, state: State) -> Iterator[Object]:
    spaces = peer.get("namespaceSelector")
    names = {
        space["metadata"]["name"]
        for space in state.namespaces
        if spaces is not None and selects(spaces, space["metadata"].get("labels") or {})
    }
    chosen = names if spaces is not None else {namespace}
    for pod in state.pods:
        labels = pod["metadata"].get("labels") or {}
        if pod["metadata"]["namespace"] in chosen and selects(peer.get("podSelector") or {}, labels):
            yield pod


def _ports(ports: Sequence[Object], *, target: Object | None) -> Iterator[str]:
    """Yield the conditions for the ports of a rule; one that says nothing if any port is allowed."""
    if not ports:
        yield ""
    for port in ports:
        protocol = port.get("protocol", "TCP")
        for number in _numbers(port, protocol=protocol, target=target):
            yield f"-p {protocol.lower()} {number}".strip()


def _numbers(port: Object, *, protocol: str, target: Object | None) -> Iterator[str]:
    number = port.get("port")
    if number is None:
        yield ""
    elif isinstance(number, int):
        yield f"--dport {number}:{port['endPort']}" if "endPort" in port else f"--dport {number}"
    elif target is not None:
        for each in _container_ports(target):
            if each.get("name") == number and each.get("protocol", "TCP") == protocol:
                yield f"--dport {each['containerPort']}"


def _container_ports(pod: Object) -> Iterator[Object]:
    for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]):
        yield from container.get("ports") or []


def _networks(block: Object) -> list[IPv4Network]:
    """Return the networks that make up a block without its exceptions; none of IPv6, which pods do not have here."""
    if ":" in block["cidr"]:
        return []
    parts = [IPv4Network(block["cidr"], strict=False)]
    for excluded in block.get("except") or []:
        parts = [rest for part in parts for rest in _without(part, IPv4Network(excluded, strict=False))]
    return parts


def _without(part: IPv4Network, excluded: IPv4Network) -> list[IPv4Network]:
    if not part.overlaps(excluded):
        return [part]
    return [] if part.subnet_of(excluded) else sorted(part.address_exclude(excluded))


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects labels. An empty one selects everything."""
    wanted = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(each, labels) for each in selector.get("matchExpressions") or []
    )


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case _:
            return value is None


def _address(pod: Object) -> str:
    """Return the address of a pod, empty before it has one and when it may be another's already."""
    status = pod.get("status", {})
    address: str = status.get("podIP", "") if status.get("phase") not in _ENDED else ""
    return address
