"""Steps as Jobs: when they are tried again, how they wait, and how several pods become one training."""

from tests.support.objects import relocation
from tests.support.plans import options, owner, resources, step
from tests.unit.cluster.render.manifests import container, environment, job_of, pod_spec, render

from finetuning_operator.cluster.render import CONTAINER, Placement, render_step

OWNER = {
    "apiVersion": "finetuning.dev/v1alpha1",
    "kind": "FineTuningJob",
    "name": "demo",
    "uid": "uid-1",
    "controller": True,
}
LABELS = {
    "app.kubernetes.io/managed-by": "finetuning-operator",
    "finetuning.dev/kind": "FineTuningJob",
    "finetuning.dev/name": "demo",
    "finetuning.dev/step": "train",
}


def test_a_step_is_one_job_named_after_its_owner_and_itself() -> None:
    (job,) = render(step())

    assert job["metadata"] == {
        "name": "demo-train",
        "namespace": "team-a",
        "labels": LABELS,
        "annotations": {"finetuning.dev/image": "images.example/finetuning-trainer:1"},
        "ownerReferences": [OWNER],
    }
    assert job["spec"]["template"]["metadata"]["labels"] == LABELS | {
        "finetuning.dev/network": "isolated",
        "claim.finetuning.dev/reloc-data": "",
        "claim.finetuning.dev/reloc-base": "",
        "claim.finetuning.dev/demo-adapter": "",
    }


def test_an_image_of_the_user_takes_the_place_of_the_installation_s() -> None:
    made = render(step(own_image="team/trainer:1"))
    assert container(made)["image"] == "team/trainer:1"
    assert made[0]["metadata"]["annotations"] == {"finetuning.dev/image": "team/trainer:1"}


def test_a_job_that_runs_a_stage_again_knows_how_often_it_was_started_before() -> None:
    (job,) = render(step(earlier_attempts=3))
    assert job["metadata"]["annotations"]["finetuning.dev/earlier-attempts"] == "3"


def test_a_job_of_a_long_name_is_still_a_name() -> None:
    (job,) = render_step(step(), owner=owner("a" * 63), options=options(), placement=Placement())
    assert len(job["metadata"]["name"]) == 63


def test_relocations_of_the_longest_names_have_jobs_and_labels_of_their_own() -> None:
    """A user's own Relocation may have 63 characters, all that a Job or a label holds."""
    owners = [relocation("hf://acme/tiny", name=f"{'a' * 62}{last}") for last in "bc"]
    jobs = [
        job_of(render_step(step(name), owner=each, options=options(), placement=Placement()))
        for each in owners
        for name in ("measure", "relocate", "convert")
    ]
    names = {job["metadata"]["name"] for job in jobs}
    told = [job["spec"]["template"]["metadata"]["labels"] for job in jobs]

    assert len(names) == len(jobs)
    assert max(map(len, names)) <= 63
    assert {each["finetuning.dev/name"] for each in told} == {each.metadata.name for each in owners}
    assert all(len(value) <= 63 for each in told for value in each.values())


def test_exit_codes_of_the_contract_decide_about_the_next_try() -> None:
    spec = job_of(render(step(retries=5)))["spec"]

    assert spec["backoffLimit"] == 5
    assert spec["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [1]}},
        {"action": "Ignore", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [143]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    assert pod_spec(render(step()))["restartPolicy"] == "Never"
    assert container(render(step()))["name"] == CONTAINER


def test_never_do_two_pods_write_one_volume() -> None:
    assert job_of(render(step()))["spec"]["podReplacementPolicy"] == "Failed"


def test_a_pod_has_time_to_save() -> None:
    assert pod_spec(render(step()))["terminationGracePeriodSeconds"] == 120


def test_a_deadline_is_that_of_the_job() -> None:
    assert job_of(render(step(deadline_seconds=90)))["spec"]["activeDeadlineSeconds"] == 90
    assert "activeDeadlineSeconds" not in job_of(render(step()))["spec"]


def test_a_queue_decides_when_the_job_starts() -> None:
    queued, free = job_of(render(step(queue="gpus"))), job_of(render(step()))

    assert queued["metadata"]["labels"] == LABELS | {"kueue.x-k8s.io/queue-name": "gpus"}
    assert queued["spec"]["suspend"] is True
    assert "suspend" not in free["spec"]


def test_one_worker_with_one_process_is_told_of_no_others() -> None:
    names = environment(render(step())).keys()
    assert not {"MASTER_ADDR", "WORLD_SIZE", "RANK", "PET_NNODES"} & names


def test_processes_of_one_worker_meet_in_their_pod() -> None:
    manifests = render(step(processes_per_worker=4, resources=resources(limits={"nvidia.com/gpu": "4"})))
    variables = environment(manifests)

    assert [manifest["kind"] for manifest in manifests] == ["Job"]
    assert {name: value for name, value in variables.items() if name.startswith(("MASTER", "WORLD", "PET"))} == {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
        "WORLD_SIZE": "4",
        "PET_MASTER_ADDR": "localhost",
        "PET_MASTER_PORT": "29500",
        "PET_NNODES": "1",
        "PET_NPROC_PER_NODE": "4",
    }


def test_workers_are_an_indexed_job_whose_pods_find_the_first_of_them() -> None:
    job, service, _ = manifests = render(step(workers=4, processes_per_worker=2))
    variables = environment(manifests)

    assert {name: job["spec"][name] for name in ("completionMode", "completions", "parallelism")} == {
        "completionMode": "Indexed",
        "completions": 4,
        "parallelism": 4,
    }
    assert pod_spec(manifests)["subdomain"] == service["metadata"]["name"] == "demo-train"
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {name: label for name, label in LABELS.items() if name.startswith("finetuning.dev/")},
        "ports": [{"name": "rendezvous", "port": 29500}],
    }
    assert variables["MASTER_ADDR"] == "demo-train-0.demo-train"
    assert (variables["WORLD_SIZE"], variables["PET_NNODES"], variables["PET_NPROC_PER_NODE"]) == ("8", "4", "2")


def test_a_worker_knows_which_it_is() -> None:
    index = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']"}}

    def looked_up(processes: int) -> dict[str, object]:
        variables = container(render(step(workers=2, processes_per_worker=processes)))["env"]
        return {each["name"]: each["valueFrom"] for each in variables if "valueFrom" in each}

    assert looked_up(1) == {"FINETUNING_WORKER": index, "PET_NODE_RANK": index, "RANK": index}
    assert looked_up(2) == {"FINETUNING_WORKER": index, "PET_NODE_RANK": index}


def test_workers_of_one_step_reach_each_other_where_they_meet_and_nothing_else() -> None:
    job, _, policy = render(step(workers=2))
    peers = {"podSelector": {"matchLabels": {k: v for k, v in LABELS.items() if k.startswith("finetuning.dev/")}}}

    assert policy["metadata"]["ownerReferences"] == [OWNER]
    assert policy["spec"]["podSelector"] == peers["podSelector"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    ports = [
        {"port": 29500, "protocol": "TCP"},
        {"port": 32768, "endPort": 60999, "protocol": "TCP"},
    ]
    assert policy["spec"]["ingress"] == [{"from": [peers], "ports": ports}]
    dns = {port["port"] for port in policy["spec"]["egress"][1]["ports"]}
    assert policy["spec"]["egress"][0] == {"to": [peers], "ports": ports}
    assert (len(policy["spec"]["egress"]), dns) == (2, {53})
