"""Drift: what an API server fills in is none, what somebody changed or what is no longer wanted is."""

from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest
from tests.support.plans import pod, server
from tests.unit.cluster.render.manifests import serve

from finetuning_api.inferenceserver import ServerVariant
from finetuning_operator.cluster.render import differs
from finetuning_operator.reconcile.plan import Server
from finetuning_operator.reconcile.quantities import parse_quantity


@pytest.mark.parametrize(
    ("desired", "observed"),
    [
        ({"a": 1}, {"a": 1, "filledIn": 2}),
        ({"spec": {"a": "x"}}, {"spec": {"a": "x", "b": {}}, "status": {}}),
        ({"list": [{"name": "a"}]}, {"list": [{"name": "a", "protocol": "TCP"}]}),
        ({"readOnly": False, "text": "", "list": [], "map": {}, "none": None, "zero": 0}, {}),
        ({"limits": {"cpu": "1000m", "memory": "1024Mi"}}, {"limits": {"cpu": "1", "memory": "1Gi"}}),
        ({"requests": {"cpu": 1}}, {"requests": {"cpu": "1", "memory": "1Gi"}}),
        ({"sizeLimit": "2048Mi"}, {"sizeLimit": "2Gi"}),
    ],
)
def test_the_same_meaning_is_no_difference(desired: dict[str, Any], observed: dict[str, Any]) -> None:
    assert not differs(desired, observed)


@pytest.mark.parametrize(
    ("desired", "observed"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {}),
        ({"a": {"b": 1}}, {"a": None}),
        ({"a": {"b": 1}}, {"a": "text"}),
        ({"a": [1]}, {"a": "1"}),
        ({"list": [{"name": "a"}]}, {"list": [{"name": "a"}, {"name": "b"}]}),
        ({"list": [{"name": "a"}, {"name": "b"}]}, {"list": [{"name": "b"}, {"name": "a"}]}),
        ({"flag": False}, {"flag": True}),
        ({"flag": True}, {"flag": 1}),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "2"}}),
        ({"limits": {"cpu": "1"}}, {"limits": {}}),
        ({"limits": {"cpu": "1"}}, {}),
        ({"sizeLimit": "1Gi"}, {"sizeLimit": "1G"}),
        ({"sizeLimit": "1Gi"}, {}),
        ({"value": "1000m"}, {"value": "1"}),
    ],
)
def test_another_meaning_is_a_difference(desired: dict[str, Any], observed: dict[str, Any]) -> None:
    assert differs(desired, observed)


def test_what_is_rendered_twice_is_the_same() -> None:
    for first, second in zip(serve(server()), serve(server()), strict=True):
        assert not differs(first, second)


@pytest.mark.parametrize(
    "wanted", [server(pod=pod(labels={"team": "nlp"})), server(pod=pod(nodeSelector={"gpu": "a100"}))]
)
def test_what_is_no_longer_wanted_is_noticed_although_nothing_names_it(wanted: Server) -> None:
    before, after = serve(wanted)[0], serve(server())[0]
    without_hash = deepcopy(after)
    del without_hash["metadata"]["annotations"]

    assert not differs(without_hash, before)
    assert differs(after, before)


def test_only_what_changed_differs() -> None:
    (deployment, service), (other, same) = serve(server()), serve(server(replicas=3))
    assert differs(other, deployment)
    assert not differs(same, service)
    assert differs(serve(server(ServerVariant.VLLM))[0], deployment)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", "1"), ("1500m", "1.5"), ("1Ki", "1024"), ("1.5Gi", "1610612736"), ("2k", "2000"), ("1e3", "1000"),
        ("3E", "3e18"), ("250u", "0.00025"), ("0", "0"), (".5", "0.5"),
    ],
)  # fmt: skip
def test_quantities_have_a_value(text: str, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "one", "1Xi", "Gi", "m", "1 Gi 2"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        parse_quantity(text)
