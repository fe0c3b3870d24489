"""Trainings of another shape on the node: several workers over the pod network, and a program of the user's own."""

import re

import pytest
from tests.support.cluster import Object, has_condition
from tests.support.e2e import Place, conditions, has_ended, kill, record, step_of
from tests.support.lifecycle import condition, stage
from tests.support.processes import REPOSITORY
from tests.support.real_node import RealNode

WORKERS = 2
SAVED_EVERY = 25
TOGETHER = {"training.maxSteps": 300, "training.checkpointEverySteps": SAVED_EVERY}
RESUMED = re.compile(r"resumed 1 time, the last time from step (\d+)")
SCRIPT = REPOSITORY / "examples" / "script" / "sft.py"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_train_together_lose_one_of_them_and_go_on(
    shared_place: Place, node: RealNode, strategy: str
) -> None:
    place, name = shared_place, f"together-{strategy}"
    place.tiny_job(name, {**TOGETHER, "parallelism": {"workers": WORKERS, "strategy": strategy}})
    place.wait_for_job(name, lambda found: has_ended(found) or step_of(found) > SAVED_EVERY)
    first = workers(place, name)
    addresses = {pod["status"]["podIP"] for pod in first}

    kill(node, first[-1])
    done = place.wait_complete(name)

    train = stage(done, "train")
    record(f"Two workers, {strategy}, one of them killed", f"{train['message']}\n{conditions(done)}")
    assert len(first) == len(addresses) == WORKERS
    told = RESUMED.fullmatch(condition(done, "Trained")["message"])
    assert told, condition(done, "Trained")
    assert int(told.group(1)) >= SAVED_EVERY
    assert train["attempts"] == 2


def test_a_program_of_the_users_own_trains_in_the_image_of_the_trainer(shared_place: Place) -> None:
    place = shared_place
    place.kubectl("create", "configmap", "sft", f"--from-file={SCRIPT}")
    script = {"source": "configmap://sft", "command": ["python", SCRIPT.name]}
    training = {"training.maxSteps": 4, "training.checkpointEverySteps": 2}
    place.tiny_job("scripted", {"script": script, "evaluation.enabled": True, **training})

    done = place.wait_complete("scripted", seconds=600)

    record("A script of the user's own", conditions(done))
    assert has_condition(done, "Evaluated")
    assert done["status"]["artifacts"]["adapter"]["digest"]


def workers(place: Place, name: str) -> list[Object]:
    """Return the pods that train for a job together, the first worker first."""
    found = place.pods("train", phase="Running", job=name)
    return sorted(found, key=lambda pod: int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]))
