"""What is left of a whole job on a cluster, so that a run in trouble can be compared with one that had none."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from tests.support.api_proxy import ApiProxy, Seen
from tests.support.cluster import WAIT_SECONDS, Cluster, Object, has_condition
from tests.support.lifecycle import job, names
from tests.support.operator_process import OperatorProcess
from tests.support.processes import wait_until

NAME = "demo"
CHILD_KINDS = (
    "Relocation",
    "EvaluationJob",
    "InferenceServer",
    "Job",
    "PersistentVolumeClaim",
    "Deployment",
    "Service",
    "NetworkPolicy",
)
_PASSING = frozenset({"VolumeUnavailable"})
"""Told of a pod that was looked at before its new claim was bound, which depends on the cluster's speed."""
_TIMES = frozenset({"startTime", "completionTime", "lastTransitionTime"})
_SHOWN = 4000
"""Characters of a log, in the message of a failure."""
_REPORTER = "finetuning-operator"


def manifest(namespace: str, name: str = NAME, **spec: object) -> Object:
    """Return a job with everything: two relocations, training, evaluation and a server."""
    return job(namespace, name, **({"serving": {}} | spec))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that a job left, without what differs between two good runs: times, uids and its namespace."""

    status: Mapping[str, Any]
    children: Mapping[str, frozenset[str]]
    events: Counter[tuple[str, str, str]]
    """How often (kind, name, reason) was told."""


def outcome(cluster: Cluster, namespace: str) -> Outcome:
    """Return what a namespace shows of its job now."""
    found = cluster.find("FineTuningJob", NAME, namespace) or {}
    told = [each for each in cluster.events(namespace) if each["source"].get("component") == _REPORTER]
    return Outcome(
        status=_without_times(found.get("status", {}), namespace),
        children={kind: frozenset(names(cluster, kind, namespace)) for kind in CHILD_KINDS},
        events=Counter(
            (each["involvedObject"]["kind"], each["involvedObject"]["name"], each["reason"])
            for each in told
            if each["reason"] not in _PASSING
            for _ in range(each["count"])
        ),
    )


def wait_for_outcomes(
    cluster: Cluster, expected: Mapping[str, Outcome], *, operator: OperatorProcess, seconds: float = WAIT_SECONDS
) -> None:
    """Return once every namespace shows what is expected of it; fail with all differences."""
    waiting = dict(expected)

    def are_as_expected() -> bool:
        assert operator.exit_code is None, f"the operator ended with {operator.exit_code}"
        for namespace, outcome_ in tuple(waiting.items()):
            if is_complete(cluster, namespace) and outcome(cluster, namespace) == outcome_:
                del waiting[namespace]
        return not waiting

    try:
        wait_until(are_as_expected, seconds=seconds, what=f"the outcome in {len(waiting)} namespaces")
    except AssertionError as error:
        for namespace in waiting:
            error.add_note(f"{namespace}: {difference(outcome(cluster, namespace), expected[namespace])}")
        error.add_note(operator.logs[-_SHOWN:])
        raise


def difference(found: Outcome, expected: Outcome) -> dict[str, Any]:
    """Return the parts of an outcome that are not as expected: (found, expected)."""
    parts = {f"status.{name}": (found.status.get(name), value) for name, value in expected.status.items()}
    parts |= {kind: (sorted(found.children[kind]), sorted(names)) for kind, names in expected.children.items()}
    parts["events"] = (dict(found.events - expected.events), dict(expected.events - found.events))
    return {name: pair for name, pair in parts.items() if pair[0] != pair[1]}


def is_complete(cluster: Cluster, namespace: str, name: str = NAME, *, served: bool = True) -> bool:
    """Whether a job says that it is complete and, where that was asked for, served."""
    found = cluster.find("FineTuningJob", name, namespace)
    wanted = ("Complete", "Serving") if served else ("Complete",)
    return found is not None and all(has_condition(found, each) for each in wanted)


def is_told(cluster: Cluster, namespace: str, *, served: bool = True) -> bool:
    """Whether the job ended and all was said of it."""
    if not is_complete(cluster, namespace, served=served):
        return False
    return "Succeeded" in {event["reason"] for event in cluster.events(namespace, name=NAME)}


def own_writes(proxy: ApiProxy, namespace: str | None = None) -> list[Seen]:
    """Return all writes but those of the leader election."""
    return [seen for seen in proxy.writes(namespace=namespace) if seen.asked.resource != "leases"]


def made(proxy: ApiProxy, namespace: str) -> Counter[tuple[str, str]]:
    """Return how often each (plural, name) was created; the proxy must keep bodies."""
    return Counter(
        (seen.asked.target, json.loads(seen.body)["metadata"]["name"])
        for seen in proxy.seen(verbs={"create"}, namespace=namespace)
        if seen.answered == HTTPStatus.CREATED
    )


def deleted(proxy: ApiProxy, namespace: str) -> list[str]:
    """Return what was deleted through a proxy."""
    return [f"{seen.asked.resource} {seen.asked.name}" for seen in proxy.seen(verbs={"delete"}, namespace=namespace)]


def _without_times(part: Any, namespace: str) -> Any:  # noqa: ANN401  (any part of a JSON document)
    if isinstance(part, dict):
        return {name: _without_times(value, namespace) for name, value in part.items() if name not in _TIMES}
    if isinstance(part, list):
        parts = [_without_times(each, namespace) for each in part]
        # Conditions are a set by type; the order in which they came is not a result.
        return sorted(parts, key=lambda each: str(each.get("type", ""))) if _are_conditions(parts) else parts
    return part.replace(namespace, "<namespace>") if isinstance(part, str) else part


def _are_conditions(parts: list[Any]) -> bool:
    return all(isinstance(each, dict) and "type" in each for each in parts)
