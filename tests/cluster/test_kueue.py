"""Jobs with a queueName under the stock Kueue, which alone decides when their steps run.

Kueue is built from its own module and installed by its own manifests; the operator is a process of its own with the
rights of the chart, and a proxy counts what it writes. Only what programs do in pods is played.
"""

from collections.abc import Iterator

import pytest
from hack.cluster.binaries import PLANE, QUEUE, BuildError, require_binaries
from tests.support import pods
from tests.support.cluster import Object, has_condition
from tests.support.kueue import GROUP, cluster_queue, local_queue, running_kueue
from tests.support.lifecycle import DATASET, MODEL, condition, is_running, job, resource, stage_message
from tests.support.objects import RESULTS
from tests.support.operator_process import Identity
from tests.support.private_plane import PrivatePlane
from tests.support.site import Pool, Site, pool, uid

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords

QUEUE_NAME = f"{GROUP}/queue-name"
ALL_OF_IT = {"cpu": "1", "memory": "8Gi", "nvidia.com/gpu": "1"}
"""What the queue of each test has. Every pod of ours asks for cpu and memory, so a queue needs them."""
TWICE_OF_IT = {"cpu": "2", "memory": "16Gi", "nvidia.com/gpu": "2"}
ONE_GPU: Object = {"limits": {"nvidia.com/gpu": 1}}
URGENT = "urgent"
"""A priority before that of our jobs."""


@pytest.fixture(scope="module")
def served(private_plane: PrivatePlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """An operator and Kueue, which serve a cluster of their own."""
    cluster, folder = private_plane.cluster, tmp_path_factory.mktemp("kueue")
    try:
        program = require_binaries((*PLANE, *QUEUE))["kueue"]
    except BuildError as error:
        pytest.fail(str(error), pytrace=False)
    with (
        running_kueue(cluster, program=program, folder=folder),
        pool(cluster, Identity.install(cluster), folder=folder) as lent,
    ):
        head = {"apiVersion": f"{GROUP}/v1beta2", "kind": "WorkloadPriorityClass", "metadata": {"name": URGENT}}
        cluster.create({**head, "value": 1000})
        yield lent


@pytest.fixture
def site(served: Pool) -> Site:
    """A namespace with the queue ``team``, whose pods run until their end is played."""
    return with_queue(served.lend())


def test_a_whole_job_passes_its_queue_and_nobody_but_kueue_starts_its_steps(served: Pool) -> None:
    site = with_queue(served.lend("auto"))
    site.cluster.create(job(site.namespace, queueName="team", resources=ONE_GPU))

    done = site.wait_for_job()

    assert has_condition(done, "Complete")
    jobs = site.cluster.objects("Job", site.namespace)
    queued = {each["metadata"]["name"] for each in jobs if each["metadata"]["labels"].get(QUEUE_NAME) == "team"}
    assert queued == {"demo-preflight", "demo-train", "demo-evaluation-evaluate"}
    assert all(QUEUE_NAME in each["metadata"]["labels"] or is_of_a_relocation(each) for each in jobs)
    workloads = site.cluster.objects("Workload", site.namespace)
    assert {each["metadata"]["ownerReferences"][0]["name"] for each in workloads} == queued
    assert all(has_condition(each, "Admitted") for each in workloads)
    assert writes_of_jobs(served, site) == ["create jobs"] * len(jobs)
    assert served.rests(site)


def test_without_room_it_says_why_it_waits_and_goes_on_when_there_is_room(site: Site, served: Pool) -> None:
    holder = tenant(site)
    site.job(queueName="team")
    neighbour = with_queue(served.lend(), leads_to=site.namespace)
    neighbour.job(queueName="team", pendingDeadlineSeconds=1)

    told = wait_for_word(site, "quota", of="preflight")
    patient = wait_for_word(neighbour, "quota", of="preflight")

    word = kueue_says(site, "demo-preflight", "QuotaReserved")
    assert "insufficient unused quota" in word
    queued = {"status": "False", "reason": "Queued", "message": f"waits in the queue team: {word}"}
    assert condition(told, "Trained") == queued
    # Nobody asks why before 5 s of waiting, so the second that it would wait for its pod is over.
    assert condition(patient, "Trained") == queued
    assert served.rests(site)
    pods.finish(site.cluster, holder)
    site.play("preflight", "train", "evaluate")
    assert has_condition(site.wait_for_job(), "Complete")


def test_training_that_must_give_way_is_resumed_and_has_not_failed(site: Site, served: Pool) -> None:
    train = in_training(site, backoffLimit=0)
    holder = tenant(site, priority=URGENT)

    told = wait_for_word(site, "quota")

    word, why = (kueue_says(site, "demo-train", kind) for kind in ("QuotaReserved", "Evicted"))
    assert why.startswith("Preempted to accommodate a workload")
    message = f"waits in the queue team: {word}. Kueue took it back: {why}"
    assert condition(told, "Trained") == {"status": "False", "reason": "Queued", "message": message}
    assert served.rests(site)
    pods.finish(site.cluster, holder)
    resume(site)
    site.play("evaluate")
    done = site.wait_for_job()
    assert has_condition(done, "Complete")
    assert condition(done, "Trained")["message"] == "resumed 1 time, the last time from step 5"
    assert uid(site.get("Job", "demo-train")) == uid(train)
    assert set(writes_of_jobs(served, site)) == {"create jobs"}


def test_training_in_a_queue_that_is_stopped_waits_until_it_is_opened(site: Site, served: Pool) -> None:
    train = in_training(site, backoffLimit=0)
    queue = site.cluster.get("ClusterQueue", site.namespace)
    site.patch(queue, spec={"stopPolicy": "HoldAndDrain"})

    told = wait_for_word(site, "does not admit")

    assert condition(told, "Trained") == {
        "status": "False",
        "reason": "QueueInadmissible",
        "message": f"the queue team does not admit: ClusterQueue {site.namespace} is inactive. Kueue took it back: The"
        " ClusterQueue is stopped. Correct queueName, or have the queue set up.",
    }
    assert served.rests(site)
    site.patch(queue, spec={"stopPolicy": "None"})
    resume(site)
    site.play("evaluate")
    assert has_condition(site.wait_for_job(), "Complete")
    assert uid(site.get("Job", "demo-train")) == uid(train)
    assert set(writes_of_jobs(served, site)) == {"create jobs"}


def test_a_queue_that_cannot_admit_is_told_until_it_can(site: Site, served: Pool) -> None:
    site.job(queueName="elsewhere")
    narrow = with_queue(served.lend(), **{"nvidia.com/gpu": "1"})
    narrow.job(queueName="team")

    told = wait_for_word(site, "does not admit", of="preflight")
    too_narrow = wait_for_word(narrow, "does not admit", of="preflight")

    assert condition(told, "Trained") == {
        "status": "False",
        "reason": "QueueInadmissible",
        "message": "the queue elsewhere does not admit: LocalQueue elsewhere doesn't exist. Correct queueName, or have"
        " the queue set up.",
    }
    word = kueue_says(narrow, "demo-preflight", "QuotaReserved")
    assert "unavailable in ClusterQueue" in word
    assert condition(too_narrow, "Trained") == {
        "status": "False",
        "reason": "QueueInadmissible",
        "message": f"the queue team does not admit: {word}. Correct queueName, or have the ClusterQueue cover what the"
        " step asks for, cpu and memory included.",
    }
    site.cluster.create(local_queue(site.namespace, "elsewhere", leads_to=site.namespace))
    site.patch(site.cluster.get("ClusterQueue", narrow.namespace), spec=cluster_queue("", quota=ALL_OF_IT)["spec"])
    for goes_on in (site, narrow):
        goes_on.play("preflight", "train", "evaluate")
        assert has_condition(goes_on.wait_for_job(), "Complete")


def test_workers_of_one_training_are_admitted_together_or_not_at_all(served: Pool) -> None:
    site = with_queue(served.lend(), **TWICE_OF_IT)
    holder = tenant(site)
    site.job(queueName="team", resources=ONE_GPU, parallelism={"workers": 2})
    site.play("preflight")

    told = wait_for_word(site, "quota")

    assert condition(told, "Trained")["reason"] == "Queued"
    assert "nvidia.com/gpu" in kueue_says(site, "demo-train", "QuotaReserved")
    assert site.cluster.objects("Pod", site.namespace, labels=of("demo", "train")) == []
    pods.finish(site.cluster, holder)
    both = pods.wait_for_pods(site.cluster, site.namespace, count=2, labels=of("demo", "train"), phase="Running")
    for pod in both:
        pods.succeed(site.cluster, pod)
    site.play("evaluate")
    assert has_condition(site.wait_for_job(), "Complete")
    assert set(writes_of_jobs(served, site)) == {"create jobs"}


def test_the_priority_of_a_job_decides_who_gives_way(site: Site) -> None:
    important = {"metadata": {"name": "important"}, "value": 1000, "globalDefault": False}
    site.cluster.apply({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", **important})
    train = in_training(site, backoffLimit=0)

    site.job("first", queueName="team", resources=ONE_GPU, priorityClassName="important", evaluation={"enabled": False})
    play_one(site, of("first", "preflight"))

    wait_for_word(site, "Kueue took it back")
    assert kueue_says(site, "demo-train", "Evicted").startswith("Preempted to accommodate a workload")
    play_one(site, of("first", "train"))
    assert has_condition(site.wait_for_job("first"), "Complete")
    play_one(site, of("demo", "train"))
    site.play("evaluate")
    assert has_condition(site.wait_for_job(), "Complete")
    assert uid(site.get("Job", "demo-train")) == uid(train)


def test_an_evaluation_alone_waits_in_its_queue_too(site: Site, served: Pool) -> None:
    holder = tenant(site)
    fields: Object = {"candidates": [{"name": "base", "model": MODEL}], "dataset": DATASET, "metrics": ["exact-match"]}
    site.create(resource("EvaluationJob", "compare", site.namespace, queueName="team", **fields))

    told = site.wait("EvaluationJob", "compare", where=lambda now: "quota" in stage_message(now, "evaluate"))

    word = kueue_says(site, "compare-evaluate", "QuotaReserved")
    assert stage_message(told, "evaluate") == f"waits in the queue team: {word}"
    pods.finish(site.cluster, holder)
    site.play("evaluate")
    site.wait("EvaluationJob", "compare", where=lambda now: has_condition(now, "Complete"))
    assert set(writes_of_jobs(served, site)) == {"create jobs"}


def with_queue(site: Site, *, leads_to: str = "", **quota: str) -> Site:
    """Set up the queue ``team``, and a ClusterQueue with the name of the namespace unless it leads to another."""
    if not leads_to:
        site.cluster.create(cluster_queue(site.namespace, quota=quota or ALL_OF_IT))
    site.cluster.create(local_queue(site.namespace, "team", leads_to=leads_to or site.namespace))
    return site


def tenant(site: Site, *, name: str = "tenant", priority: str = "") -> Object:
    """Take all that the queue of a test has, as a Job of somebody else does; return its running pod."""
    important = {f"{GROUP}/priority-class": priority} if priority else {}
    head = {"name": name, "namespace": site.namespace, "labels": {QUEUE_NAME: "team", **important}}
    template = {"metadata": {"labels": {"job": name}}, "spec": pods.restricted_spec(limits=ALL_OF_IT)}
    spec = {"suspend": True, "template": template}
    site.cluster.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": head, "spec": spec})
    return pods.wait_for_pod(site.cluster, site.namespace, labels=f"job={name}", phase="Running")


def in_training(site: Site, **spec: object) -> Object:
    """Bring a job as far as its training on the GPU, and return the Job of that."""
    site.job("demo", queueName="team", resources=ONE_GPU, **spec)
    site.play("preflight")
    site.pod("train")
    site.wait_for_job(where=is_running("train"))
    return site.get("Job", "demo-train")


def of(name: str, step: str) -> str:
    """Return the selector of the pods of one step of one job."""
    return f"finetuning.dev/name={name},finetuning.dev/step={step}"


def play_one(site: Site, labels: str) -> None:
    """Let the one pod with these labels succeed, once it runs."""
    pods.succeed(site.cluster, pods.wait_for_pod(site.cluster, site.namespace, labels=labels, phase="Running"))


def resume(site: Site) -> None:
    """Let a training that runs again end well, from what it had saved."""
    pod = site.pod("train")
    site.wait_for_job(where=is_running("train"))
    result = RESULTS["train"].model_copy(update={"resumed_from_step": 5, "resumptions": 1})
    pods.finish(site.cluster, pod, message=LastWords(reason=Reason.SUCCEEDED, result=result))


def wait_for_word(site: Site, word: str, *, of: str = "train") -> Object:
    """Return the job once the message of a stage has a word."""
    return site.wait_for_job(where=lambda now: word in stage_message(now, of))


def kueue_says(site: Site, name: str, kind: str) -> str:
    """Return the message of a condition of the Workload that Kueue made of a Job."""
    labels = f"{GROUP}/job-uid={uid(site.get('Job', name))}"
    [workload] = site.cluster.objects("Workload", site.namespace, labels=labels)
    assert condition(workload, kind), workload
    return str(condition(workload, kind)["message"])


def is_of_a_relocation(made: Object) -> bool:
    """Whether a Job is a step of a Relocation, which may serve many jobs and belongs to the queue of none."""
    return bool(made["metadata"]["labels"]["finetuning.dev/kind"] == "Relocation")


def writes_of_jobs(served: Pool, site: Site) -> list[str]:
    """Return what the operator wrote of Jobs in a namespace, but for removing those of relocations that need none."""
    seen = [each.asked for each in served.seen(site)]
    return [f"{each.verb} {each.target}" for each in seen if each.resource == "jobs" and "reloc" not in each.name]
