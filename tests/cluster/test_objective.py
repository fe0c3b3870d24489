"""A training by preferences on a real API server: through all stages as any other, told what its program needs."""

import json

import pytest
from tests.support.cluster import Cluster, Object, Refused, has_condition
from tests.support.lifecycle import DATASET, condition, job, stages, wait_for_end
from tests.support.player import play

PAIRS: Object = DATASET | {"completion": "{better}", "rejected": "{worse}"}


def learning(namespace: str, **spec: object) -> Object:
    """Return a job that learns preferences."""
    fields: Object = {"dataset": PAIRS, "training": {"objective": "dpo", "preferenceBeta": 0.2}}
    return job(namespace, **(fields | spec))


def told_to(cluster: Cluster, namespace: str, name: str) -> Object:
    """Return the RunConfig of a Job's pods."""
    template = cluster.get("Job", name, namespace)["spec"]["template"]
    found: Object = json.loads(template["metadata"]["annotations"]["finetuning.dev/run-config"])
    return found


@pytest.mark.usefixtures("operator")
def test_a_job_that_learns_preferences_goes_through_all_stages(cluster: Cluster, namespace: str) -> None:
    with play(cluster, namespace=namespace) as player:
        cluster.create(learning(namespace))
        done = wait_for_end(cluster, namespace)

    assert has_condition(done, "Complete"), condition(done, "Failed")
    played = [step for step, _ in player.played]
    assert played[played.index("preflight") :] == ["preflight", "train", "evaluate"]
    assert {state for _, state in stages(done)} <= {"Succeeded", "Skipped"}
    for name in ("demo-preflight", "demo-train"):
        told = told_to(cluster, namespace, name)
        assert (told["training"]["objective"], told["training"]["preferenceBeta"]) == ("dpo", 0.2)
        assert told["dataset"]["rows"]["rejected"] == "{worse}"


@pytest.mark.usefixtures("operator")
def test_what_preferences_do_not_have_yet_is_refused_before_anything_is_brought(
    cluster: Cluster, namespace: str
) -> None:
    cluster.create(learning(namespace, parallelism={"workers": 2}))

    refused = wait_for_end(cluster, namespace)

    assert condition(refused, "Accepted")["message"].startswith("spec.parallelism with several processes")
    assert not cluster.objects("Job", namespace)


def test_pairs_and_their_objective_come_together(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(Refused, match="objective dpo and dataset"):
        cluster.create(learning(namespace, dataset=DATASET))
