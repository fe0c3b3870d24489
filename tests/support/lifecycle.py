"""Manifests of whole lives, and what tests ask of them."""

from collections import Counter
from collections.abc import Callable

from tests.support.cluster import Cluster, Object, has_condition
from tests.support.processes import wait_until

from finetuning_api.base import API_VERSION

MODEL: Object = {"source": "hf://acme/tiny", "revision": "v1"}
DATASET: Object = {"source": "s3://bucket/rows.jsonl", "revision": "7", "prompt": "{message}", "completion": "{triage}"}


def resource(kind: str, name: str, namespace: str, **spec: object) -> Object:
    """Return one of our objects."""
    head = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": head, "spec": spec}


def relocation(namespace: str, name: str = "model", **spec: object) -> Object:
    """Return a Relocation of a small model."""
    return resource("Relocation", name, namespace, **(MODEL | spec))


def job(namespace: str, name: str = "demo", **spec: object) -> Object:
    """Return a job that relocates, trains and evaluates one metric."""
    fields: Object = {"model": MODEL, "dataset": DATASET, "evaluation": {"metrics": ["exact-match"]}}
    return resource("FineTuningJob", name, namespace, **(fields | spec))


def has_ended(target: Object) -> bool:
    """Whether an object is Complete or Failed."""
    return has_condition(target, "Complete") or has_condition(target, "Failed")


def is_running(step: str) -> Callable[[Object], bool]:
    """Return whether a stage of an object runs."""
    return lambda found: stage(found, step).get("state") == "Running"


is_training = is_running("train")
"""Whether a job's training runs."""


def wait_for_end(cluster: Cluster, namespace: str, name: str = "demo") -> Object:
    """Return a job once it has ended."""
    return cluster.wait_for_object("FineTuningJob", name, namespace, where=has_ended)


def condition(target: Object, kind: str) -> Object:
    """Return status, reason and message of a condition; nothing where it was never set."""
    found = [each for each in target.get("status", {}).get("conditions", ()) if each["type"] == kind]
    return {name: found[0].get(name) for name in ("status", "reason", "message")} if found else {}


def stages(target: Object) -> list[tuple[str, str]]:
    """Return the stages of an object with their states."""
    return [(stage["name"], stage["state"]) for stage in target.get("status", {}).get("stages", ())]


def stage(target: Object, name: str) -> Object:
    """Return a stage of an object; nothing where it has none of that name."""
    found: list[Object] = target.get("status", {}).get("stages", [])
    return next((each for each in found if each["name"] == name), {})


def stage_message(target: Object, name: str) -> str:
    """Return what a stage says of itself."""
    return str(stage(target, name).get("message", ""))


def names(cluster: Cluster, kind: str, namespace: str) -> set[str]:
    """Return the names of all objects of a kind."""
    return {found["metadata"]["name"] for found in cluster.objects(kind, namespace)}


def wait_for_events(cluster: Cluster, namespace: str, *expected: tuple[str, str], name: str = "demo") -> None:
    """Wait until each of the (type, reason) was told of a job, and fail when one was told twice.

    Other events may be there: on a slow machine a volume or a node is waited for long enough to be told.
    """

    def told() -> Counter[tuple[str, str]]:
        return Counter((event["type"], event["reason"]) for event in cluster.events(namespace, name=name))

    wait_until(lambda: set(expected) <= told().keys(), seconds=30, what=f"events {expected}")
    assert {each: told()[each] for each in expected} == dict.fromkeys(expected, 1)
