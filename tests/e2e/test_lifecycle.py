"""Suspending, resuming and deleting a job whose training runs, and names as long as they can be."""

import json
import re
from collections.abc import Mapping

from tests.support.bad_input import GOOD_ROWS
from tests.support.cluster import Object, has_condition
from tests.support.e2e import Place, conditions, endless, is_stepping, record
from tests.support.e2e_images import Image
from tests.support.inside import Inside, visitor

RESUMED = re.compile(r"resumed from the checkpoint of step (\d+) of")
SUSPEND, RESUME = '{"spec": {"suspend": true}}', '{"spec": {"suspend": false}}'
LONGEST_JOB = "a" * 52
LONG_CLAIM = "-".join(["rows", *["of-a-team-with-a-long-name"] * 3])
"""A claim of a user may have a name that no label can hold."""
WRITE_ROWS = "import pathlib, sys; pathlib.Path('/rows/rows.jsonl').write_text(sys.argv[1]); print('null')"


def test_a_suspended_training_saves_ends_and_goes_on_from_there(shared_place: Place) -> None:
    place = shared_place
    place.tiny_job("paused", endless())
    place.wait_for_job("paused", is_stepping)
    first = trainer(place, "paused")

    place.kubectl("patch", "ftj", "paused", "--type=merge", "--patch", SUSPEND)
    paused = place.wait_for_job("paused", lambda found: has_condition(found, "Suspended"))
    place.wait_gone("Job", "paused-train")
    place.wait_gone("Pod", first["metadata"]["name"])
    place.kubectl("patch", "ftj", "paused", "--type=merge", "--patch", RESUME)
    second = place.wait_for_pod("train", other_than=(first["metadata"]["name"],))["metadata"]["name"]
    # The status still tells the progress of before.
    told = place.cluster.wait_for(
        lambda: RESUMED.search(place.kubectl("logs", second)), what="the training tells from where it goes on"
    )
    resumed = place.get("FineTuningJob", "paused")
    place.kubectl("delete", "ftj", "paused")

    record("Suspended while it trained", conditions(paused))
    record("Resumed", f"{conditions(resumed)}\n{told.group()}")
    assert int(told.group(1)) > 0


def trainer(place: Place, name: str) -> Object:
    """Return the pod that trains for a job."""
    (pod,) = place.objects("Pod", labels=f"finetuning.dev/name={name},finetuning.dev/step=train")
    return pod


def test_what_is_deleted_while_it_trains_leaves_only_what_it_was_to_keep(shared_place: Place) -> None:
    place, jobs = shared_place, ("gone", "kept")
    place.tiny_job("gone", endless())
    place.tiny_job("kept", endless(**{"storage.retention": "Retain"}))
    for name in jobs:
        place.wait_for_job(name, is_stepping)
    claims = {name: place.get("PersistentVolumeClaim", f"{name}-adapter") for name in jobs}
    volumes = {name: claim["spec"]["volumeName"] for name, claim in claims.items()}

    place.kubectl("delete", "ftj", *jobs)
    gone = "neither a pod nor a Job of them is left"
    place.cluster.wait_for(lambda: not left(place, "Pod") + left(place, "Job"), what=gone, seconds=120)
    place.wait_gone("PersistentVolumeClaim", "gone-adapter")
    place.cluster.wait_gone("PersistentVolume", volumes["gone"])

    record("After deleting two jobs that trained, one with Retain", place.kubectl("get", "all,pvc,ftj,evj,reloc,infs"))
    assert place.names("PersistentVolumeClaim") == {"kept-adapter"} | place.names("Relocation")
    assert place.cluster.find("PersistentVolume", volumes["kept"]) is not None


def left(place: Place, kind: str) -> list[Object]:
    """Return what is left of a job's own objects of a kind, also what is on its way out."""
    return place.cluster.objects(kind, place.namespace, labels="finetuning.dev/kind=FineTuningJob")


def test_names_that_are_too_long_for_labels_are_names_like_others(
    shared_place: Place, images: Mapping[str, Image]
) -> None:
    place = shared_place
    place.cluster.create(claim(place.namespace, LONG_CLAIM))
    bring_rows(place, LONG_CLAIM, image=images["relocator"].reference)
    place.tiny_job(
        LONGEST_JOB,
        {"dataset.source": f"pvc://{LONG_CLAIM}", "dataset.endpoint": None, "training.maxSteps": 2},
    )

    done = place.wait_complete(LONGEST_JOB)

    pods = place.objects("Pod", labels=f"finetuning.dev/name={LONGEST_JOB}")
    record("The longest names", place.kubectl("get", "ftj,job,pod,pvc"))
    assert len(LONG_CLAIM) > 63
    assert done["status"]["artifacts"]["adapter"]["claimName"] == f"{LONGEST_JOB}-adapter"
    assert all(any(key.startswith("claim.finetuning.dev/rows-of") for key in pod["metadata"]["labels"]) for pod in pods)


def claim(namespace: str, name: str) -> Object:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def bring_rows(place: Place, name: str, *, image: str) -> None:
    """Write rows to a claim, as a user does before a job reads them."""
    pod = visitor(place.namespace, "writer", image=image, claims={name: "/rows"})
    place.cluster.create(pod)
    place.wait("Pod", "writer", lambda found: has_condition(found, "Ready"))
    rows = "".join(f"{json.dumps(row)}\n" for row in GOOD_ROWS)
    Inside(place.cluster, place.namespace, "writer").python(WRITE_ROWS, rows)
    place.kubectl("delete", "pod", "writer")
