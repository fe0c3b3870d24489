"""Who may talk to whom: nobody reaches a program, and a program with data reaches nothing but its endpoint."""

from typing import Any

from tests.support.plans import options

from finetuning_operator.cluster.options import Options, Outside
from finetuning_operator.cluster.render import render_network_policies

DNS = {
    "to": [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}},
        {"ipBlock": {"cidr": "169.254.20.10/32"}},
    ],
    "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
}


def policies(installation: Options) -> dict[str, Any]:
    found = render_network_policies("team-a", installation)
    assert {policy["metadata"]["namespace"] for policy in found} == {"team-a"}
    assert all(policy["spec"]["policyTypes"] == ["Ingress", "Egress"] for policy in found)
    return {policy["spec"]["podSelector"]["matchLabels"]["finetuning.dev/network"]: policy["spec"] for policy in found}


def test_programs_with_data_reach_the_progress_endpoint_and_the_names_it_needs() -> None:
    isolated = policies(options(operator_namespace="operators"))["isolated"]

    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "operators"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "finetuning-operator"}},
    }
    assert isolated["egress"] == [{"to": [operator], "ports": [{"port": 8443, "protocol": "TCP"}]}, DNS]
    assert isolated["ingress"] == []


def test_without_an_endpoint_programs_with_data_reach_nothing_at_all() -> None:
    assert policies(options(progress=None))["isolated"]["egress"] == []


def test_servers_answer_on_their_port_and_reach_nothing() -> None:
    serving = policies(options())["serving"]
    assert (serving["ingress"], serving["egress"]) == ([{"ports": [{"port": "http", "protocol": "TCP"}]}], [])


def test_relocation_reaches_everything_and_nobody_reaches_it() -> None:
    fetching = policies(options())["open"]
    assert (fetching["ingress"], fetching["egress"]) == ([], [{}])


def test_relocation_may_be_bound_to_what_an_installation_lists() -> None:
    mirror = {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 443, "protocol": "TCP"}]}
    outside = Outside(egress=(mirror,))

    reached = policies(options(outside=outside))["open"]["egress"]
    assert reached == [mirror, *policies(options())["isolated"]["egress"]]
    assert policies(options(outside=outside, progress=None))["open"]["egress"] == [mirror, DNS]


def test_only_our_own_pods_are_bound() -> None:
    for spec in policies(options()).values():
        assert spec["podSelector"]["matchLabels"]["app.kubernetes.io/managed-by"] == "finetuning-operator"
