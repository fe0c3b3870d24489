"""Objects that go away, come back, are changed by others, or are not what they should be.

The operator is a process of its own; one serves all tests of this file that do not restart it, and a proxy counts what
it writes.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from tests.support import pods
from tests.support.cluster import Cluster, Object, Refused, has_condition
from tests.support.lifecycle import condition, is_running, resource, stage
from tests.support.operator_process import ACCOUNT, BINDING, OPERATOR_NAMESPACE, Identity, OperatorProcess, free_port
from tests.support.player import MANAGED, STEP_LABEL, play, scripted
from tests.support.private_plane import PrivatePlane
from tests.support.processes import wait_until
from tests.support.progress import report
from tests.support.site import ENV, Pool, Site, pool, uid
from tests.support.whole_job import made

RunOperator = Callable[..., OperatorProcess]
POLICIES = {"finetuning-isolated", "finetuning-open", "finetuning-serving"}
LABEL = "l" * 63
MEGABYTE = "x" * 1_000_000
SUSPENDED = "spec.suspend is true; set it to false to go on"


@pytest.fixture(scope="module")
def served(private_plane: PrivatePlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """An operator that serves a cluster of its own."""
    cluster, port = private_plane.cluster, str(free_port())
    reports = {"PROGRESS_URL": f"https://localhost:{port}", "PROGRESS_PORT": port}
    with pool(cluster, Identity.install(cluster), folder=tmp_path_factory.mktemp("objects"), **reports) as lent:
        yield lent


@pytest.fixture
def site(served: Pool) -> Site:
    """A namespace whose pods run until their end is played."""
    return served.lend()


@pytest.fixture
def start(run_operator: RunOperator, namespace: str) -> Callable[..., OperatorProcess]:
    """``start(NAME=value)`` runs an operator of the test's own for the namespace of the test."""

    def run(**options: str) -> OperatorProcess:
        env = ENV | {"FINETUNING_NAMESPACES": namespace}
        operator = run_operator(env=env | {f"FINETUNING_{name}": text for name, text in options.items()})
        operator.wait_ready()
        return operator

    return run


def training(site: Site, name: str = "demo", **spec: object) -> Object:
    """Bring a job as far as its training, and return it."""
    site.job(name, **spec)
    site.play("preflight")
    site.pod("train")
    return site.wait_for_job(name, where=is_running("train"))


class TestGone:
    """What is deleted, by whomever."""

    def test_what_is_deleted_while_the_operator_is_away(
        self, cluster: Cluster, namespace: str, start: Callable[..., OperatorProcess]
    ) -> None:
        site = Site(cluster, namespace)
        first = start()
        gone = site.job("gone")
        site.play("preflight")
        site.pod("train")
        site.finished_job("over")
        kept = site.job("kept")
        pods.succeed(cluster, pods.wait_for_pod(cluster, namespace, labels="finetuning.dev/step=preflight"))
        lost = site.wait("Job", "kept-train")
        fetched = cluster.create(resource("Relocation", "fetched", namespace, source="hf://acme/other", revision="v1"))
        site.wait("Job", "fetched-measure")
        first.kill()
        for each in (gone, lost, fetched):
            cluster.delete(each)
        site.wait_gone("Job", "kept-train")
        site.wait_gone("Job", "gone-train")

        again = start()

        assert uid(site.wait("Job", "kept-train")) != uid(lost)
        site.wait_gone("Job", "fetched-measure")
        site.play("train", "evaluate")
        assert has_condition(site.wait_for_job("kept"), "Complete")
        assert uid(site.get("FineTuningJob", "kept")) == uid(kept)
        assert site.job_names() == {"kept-preflight", "kept-train", "kept-evaluation-evaluate"}
        assert again.exit_code is None

    def test_a_train_job_that_is_deleted_by_hand_is_started_again(self, site: Site) -> None:
        training(site)
        before = site.get("Job", "demo-train")
        pod = site.pod("train")

        site.cluster.delete(before, propagation="Foreground")
        site.wait_for_uid("Job", "demo-train", other_than=before)
        site.pod("train", other_than=(pod["metadata"]["name"],))
        site.play("train", "evaluate")

        done = site.wait_for_job()
        assert has_condition(done, "Complete")
        assert (stage(done, "train")["state"], stage(done, "train")["attempts"]) == ("Succeeded", 2)
        assert stage(done, "preflight")["attempts"] == 1

    def test_a_claim_that_is_deleted_before_training_is_made_again(self, site: Site) -> None:
        site.job()
        pod = site.pod("preflight")
        claim = site.get("PersistentVolumeClaim", "demo-adapter")

        site.cluster.delete(claim)
        pods.succeed(site.cluster, pod)
        site.wait_for_uid("PersistentVolumeClaim", "demo-adapter", other_than=claim)
        site.play("train", "evaluate")

        assert has_condition(site.wait_for_job(), "Complete")

    def test_a_claim_that_is_deleted_while_training_mounts_it_is_told_at_once(self, site: Site) -> None:
        training(site)
        site.cluster.delete(site.get("PersistentVolumeClaim", "demo-adapter"))

        told = site.wait_for_job(where=lambda now: "message" in stage(now, "train"))
        assert (stage(told, "train")["state"], told["status"]["reason"]) == ("Running", "VolumeUnavailable")
        assert stage(told, "train")["message"].startswith("somebody deleted claim demo-adapter: it goes")

    def test_what_was_brought_onto_a_claim_that_is_gone_is_brought_again(self, site: Site) -> None:
        with play(site.cluster, namespace=site.namespace) as player:
            first = site.cluster.create(site.job_manifest())
            assert has_condition(site.wait_for_job(), "Complete")
            site.cluster.delete(first)
            site.wait_gone("PersistentVolumeClaim", "demo-adapter")
            [kept, lost] = [site.get("Relocation", name) for name in sorted(site.names("Relocation"))]

            site.cluster.delete(site.get("PersistentVolumeClaim", lost["metadata"]["name"]))
            site.wait_gone("PersistentVolumeClaim", lost["metadata"]["name"])
            site.cluster.create(site.job_manifest())

            assert has_condition(site.wait_for_job(), "Complete")
        assert site.get("Relocation", kept["metadata"]["name"]) == kept
        assert uid(site.get("Relocation", lost["metadata"]["name"])) != uid(lost)
        assert [step for step, _ in player.played].count("relocate") == 3

    def test_a_claim_that_a_user_lost_is_told(self, site: Site) -> None:
        site.create(site.job_manifest(suspend=True))
        lost = min(site.names("Relocation"))

        site.cluster.delete(site.get("PersistentVolumeClaim", lost))
        site.patch(site.get("FineTuningJob"), spec={"suspend": False})
        told = site.wait("Relocation", lost, where=lambda now: has_condition(now, "Failed"))

        message = f"claim {lost} is gone, and what was brought with it; delete this Relocation and create it again"
        assert condition(told, "Failed") == {"status": "True", "reason": "VolumeUnavailable", "message": message}
        assert condition(site.wait_for_job(), "Failed")["reason"] == "VolumeUnavailable"

    def test_a_server_is_made_again_piece_by_piece(self, site: Site, served: Pool) -> None:
        server(site)
        for kind in ("Deployment", "Service"):
            before = site.get(kind, "answers")
            site.cluster.delete(before)
            site.wait_for_uid(kind, "answers", other_than=before)

        site.wait("InferenceServer", "answers", where=lambda found: has_condition(found, "Ready"))
        assert served.rests(site)

    def test_network_policies_come_back_also_when_they_are_opened(self, site: Site, served: Pool) -> None:
        training(site)
        assert site.names("NetworkPolicy") == POLICIES
        isolated = site.get("NetworkPolicy", "finetuning-isolated")

        site.cluster.delete(site.get("NetworkPolicy", "finetuning-open"))
        site.patch(isolated, spec={"egress": [{}], "ingress": [{}]})

        site.wait("NetworkPolicy", "finetuning-isolated", where=lambda found: found["spec"] == isolated["spec"])
        site.wait("NetworkPolicy", "finetuning-open")
        assert served.rests(site)


def server(site: Site, **spec: object) -> Object:
    """Create a server and return it once it answers."""
    site.create(
        resource("InferenceServer", "answers", site.namespace, **({"model": {"source": "hf://acme/tiny"}} | spec))
    )
    return site.wait("InferenceServer", "answers", where=lambda found: has_condition(found, "Ready"))


MANAGED_LABEL = MANAGED.partition("=")[0]


class TestEditedByHand:
    """Children that somebody changed."""

    def test_a_deployment_is_mended_once(self, site: Site, served: Pool) -> None:
        server(site)
        found = site.get("Deployment", "answers")
        program = found["spec"]["template"]["spec"]["containers"][0]

        site.patch(found, spec={"replicas": 3})
        site.wait("Deployment", "answers", where=lambda now: now["spec"]["replicas"] == 1)
        site.patch(found, spec={"template": {"spec": {"containers": [program | {"image": "example/else:1"}]}}})

        def is_mended(now: Object) -> bool:
            image = now["spec"]["template"]["spec"]["containers"][0]["image"]
            return bool(image == program["image"])

        site.wait("Deployment", "answers", where=is_mended)
        done = [seen for seen in served.seen(site) if seen.asked.target == "deployments" and seen.status < 300]
        assert [seen.asked.verb for seen in done] == ["create", "patch", "patch"]
        site.wait("InferenceServer", "answers", where=lambda now: has_condition(now, "Ready"))
        assert served.rests(site)

    @pytest.mark.parametrize(
        "ports",
        [
            [{"name": "http", "port": 9000, "targetPort": "http", "protocol": "TCP"}],
            [{"name": "other", "port": 8000, "targetPort": 9000, "protocol": "TCP"}],
        ],
        ids=["number", "name"],
    )
    def test_a_service_gets_its_port_back(self, site: Site, served: Pool, ports: list[Object]) -> None:
        server(site)
        before = site.get("Service", "answers")

        site.patch(before, spec={"ports": ports})

        site.wait("Service", "answers", where=lambda now: now["spec"]["ports"] == before["spec"]["ports"])
        assert uid(site.get("Service", "answers")) == uid(before)
        assert served.rests(site)

    def test_what_somebody_adds_is_taken_out_again(self, site: Site, served: Pool) -> None:
        server(site)
        service, deployment = site.get("Service", "answers"), site.get("Deployment", "answers")
        ports = [*service["spec"]["ports"], {"name": "metrics", "port": 9090, "protocol": "TCP"}]
        sidecar = pods.restricted_spec()["containers"][0] | {"name": "sidecar"}
        containers = [*deployment["spec"]["template"]["spec"]["containers"], sidecar]

        site.patch(service, spec={"ports": ports})
        site.patch(deployment, spec={"template": {"spec": {"containers": containers}}})

        site.wait("Service", "answers", where=lambda now: now["spec"] == service["spec"])
        site.wait("Deployment", "answers", where=lambda now: now["spec"] == deployment["spec"])
        assert served.rests(site)

    def test_a_variable_that_is_no_longer_wanted_is_gone(self, site: Site) -> None:
        made = server(site, env=[{"name": "ONE", "value": "1"}, {"name": "TWO", "value": "2"}])

        site.patch(made, spec={"env": [{"name": "TWO", "value": "3"}]})

        def variables(now: Object) -> Object:
            container = now["spec"]["template"]["spec"]["containers"][0]
            return {each["name"]: each.get("value") for each in container["env"]}

        found = site.wait("Deployment", "answers", where=lambda now: variables(now).get("TWO") == "3")
        assert "ONE" not in variables(found)

    @pytest.mark.parametrize(
        "labels",
        [{MANAGED_LABEL: None}, {STEP_LABEL: None}, {STEP_LABEL: "evaluate"}],
        ids=["managed", "step", "another"],
    )
    def test_a_job_that_lost_its_labels_gets_them_back_and_runs_on(
        self, site: Site, served: Pool, labels: Object
    ) -> None:
        training(site)
        before = site.get("Job", "demo-train")

        site.patch(before, metadata={"labels": labels})

        after = site.wait("Job", "demo-train", where=lambda now: labels_of(now) == labels_of(before))
        assert uid(after) == uid(before)
        site.play("train", "evaluate")
        done = site.wait_for_job()
        assert has_condition(done, "Complete")
        assert stage(done, "train")["attempts"] == 1
        assert made_twice(served, site) == []
        assert served.rests(site)

    @pytest.mark.parametrize("pods_of_job", [0, 3])
    def test_a_job_whose_pods_were_counted_anew_while_the_operator_was_away_has_its_own_again(
        self, cluster: Cluster, namespace: str, start: Callable[..., OperatorProcess], pods_of_job: int
    ) -> None:
        site = Site(cluster, namespace)
        first = start()
        site.job(parallelism={"workers": 2})
        site.play("preflight")
        before = workers(site, 2)
        job = site.get("Job", "demo-train")
        first.kill()
        site.patch(job, spec={"parallelism": pods_of_job, "completions": pods_of_job or 2})
        if pods_of_job:
            workers(site, pods_of_job)
        else:
            for pod in before:
                site.wait_gone("Pod", pod["metadata"]["name"])

        start()

        site.wait(
            "Job", "demo-train", where=lambda now: (now["spec"]["parallelism"], now["spec"]["completions"]) == (2, 2)
        )
        for pod in workers(site, 2):
            pods.succeed(cluster, pod)
        site.play("evaluate")
        assert has_condition(site.wait_for_job(), "Complete")
        assert uid(site.get("Job", "demo-train")) == uid(job)

    @pytest.mark.parametrize("kind", ["Deployment", "Service"])
    def test_what_makes_a_server_gets_its_labels_back(self, site: Site, served: Pool, kind: str) -> None:
        server(site)
        before = site.get(kind, "answers")

        site.patch(before, metadata={"labels": None})

        site.wait(kind, "answers", where=lambda now: labels_of(now) == labels_of(before))
        assert uid(site.get(kind, "answers")) == uid(before)
        assert served.rests(site)

    def test_an_evaluation_is_its_jobs_own(self, site: Site, served: Pool) -> None:
        training(site)
        site.play("train")
        site.pod("evaluate")
        before = site.get("EvaluationJob", "demo-evaluation")

        site.patch(before, spec={"suspend": True, "ttlSecondsAfterFinished": 0}, metadata={"labels": None})

        site.wait("EvaluationJob", "demo-evaluation", where=lambda now: now["spec"] == before["spec"])
        with play(site.cluster, namespace=site.namespace):
            done = site.wait_for_job()
        assert has_condition(done, "Complete")
        assert stage(done, "evaluate")["state"] == "Succeeded"
        assert done["status"]["evaluation"]
        assert uid(site.get("EvaluationJob", "demo-evaluation")) == uid(before)
        assert served.rests(site)

    def test_a_relocation_brings_what_it_is_named_after_once(self, site: Site, served: Pool) -> None:
        with play(site.cluster, scripted({"relocate": None}), namespace=site.namespace):
            site.cluster.create(site.job_manifest())
            name = min(site.cluster.wait_for(lambda: site.names("Relocation") or None, what="something is relocated"))
            found = site.wait("Relocation", name, where=is_running("relocate"))
        job = site.get("Job", f"{name}-relocate")

        with pytest.raises(Refused, match="source is fixed at creation"):
            site.patch(found, spec={"source": "hf://acme/another"})
        site.patch(found, metadata={"labels": None})
        site.patch_status(found, phase="Failed", conditions=[], stages=[], startTime=None)

        with play(site.cluster, namespace=site.namespace):
            assert has_condition(site.wait_for_job(), "Complete")
        assert uid(site.get("Relocation", name)) == uid(found)
        assert uid(site.get("Job", f"{name}-relocate")) == uid(job)
        assert made_twice(served, site) == []
        assert served.rests(site)

    def test_a_relocation_whose_status_is_emptied_brings_nothing_again(self, site: Site) -> None:
        with play(site.cluster, scripted({"train": None}), namespace=site.namespace):
            site.cluster.create(site.job_manifest())
            site.wait_for_job(where=is_running("train"))
        first = min(site.names("Relocation"))
        before = site.get("Relocation", first)

        site.patch_status(before, phase="Pending", conditions=[], stages=[], artifact=None, completionTime=None)

        site.wait("Relocation", first, where=lambda now: has_condition(now, "Ready"))
        with play(site.cluster, namespace=site.namespace) as player:
            assert has_condition(site.wait_for_job(), "Complete")
        assert site.get("Relocation", first)["status"]["artifact"] == before["status"]["artifact"]
        assert {step for step, _ in player.played} == {"train", "evaluate"}

    def test_a_server_of_a_job_is_left_to_who_scales_it(self, site: Site, served: Pool) -> None:
        with play(site.cluster, namespace=site.namespace):
            site.job(serving={})
            done = site.wait_for_job(where=lambda now: has_condition(now, "Serving"))
        before = site.get("Deployment")

        site.patch(site.get("InferenceServer"), spec={"replicas": 2}, metadata={"labels": None})

        site.wait("Deployment", where=lambda now: now["spec"]["replicas"] == 2)
        site.wait("InferenceServer", where=lambda now: has_condition(now, "Ready") and now["status"]["replicas"] == 2)
        assert served.rests(site)
        assert uid(site.get("Deployment")) == uid(before)
        told = site.get("FineTuningJob")["status"]
        assert (told["phase"], told["stages"]) == (done["status"]["phase"], done["status"]["stages"])
        assert has_condition({"status": told}, "Serving")
        assert made_twice(served, site) == []


def labels_of(target: Object) -> Object:
    """Return the labels of an object."""
    found: Object = target["metadata"].get("labels", {})
    return found


def workers(site: Site, count: int) -> list[Object]:
    """Return the pods of a training once so many run."""
    labels = f"{STEP_LABEL}=train"
    return pods.wait_for_pods(site.cluster, site.namespace, count=count, labels=labels, phase="Running")


def made_twice(served: Pool, site: Site) -> list[tuple[str, str]]:
    """Return what was created more than once in a namespace, by its plural and name."""
    return [what for what, times in made(served.proxy, site.namespace).items() if times > 1]


class TestSameName:
    """An object that has the name of an earlier one."""

    def test_a_job_that_is_made_again_at_once_takes_nothing_over(self, site: Site) -> None:
        first = training(site)
        old = [site.get("Job", "demo-preflight"), site.get("Job", "demo-train")]
        claim = site.get("PersistentVolumeClaim", "demo-adapter")

        site.cluster.delete(first)
        second = site.cluster.create(site.job_manifest())
        preflight = site.wait_for_uid("Job", "demo-preflight", other_than=old[0])
        assert preflight["metadata"]["ownerReferences"][0]["uid"] == uid(second)
        site.wait_gone("Job", "demo-train")
        assert stage(site.get("FineTuningJob"), "preflight").get("state") != "Succeeded"
        site.play("preflight", "train", "evaluate")

        done = site.wait_for_job()
        assert has_condition(done, "Complete")
        assert uid(site.get("Job", "demo-train")) != uid(old[1])
        assert uid(site.get("PersistentVolumeClaim", "demo-adapter")) != uid(claim)

    def test_a_kept_adapter_of_an_earlier_job_is_not_used_in_silence(self, site: Site) -> None:
        first = training(site, storage={"retention": "Retain"})
        site.cluster.delete(first)
        site.wait_gone("Job", "demo-train")
        claim = site.get("PersistentVolumeClaim", "demo-adapter")

        site.cluster.create(site.job_manifest())
        told = site.wait_for_job(where=lambda now: "demo-adapter" in stage(now, "preflight").get("message", ""))

        assert stage(told, "preflight")["message"] == (
            "PersistentVolumeClaim demo-adapter exists and was kept from an earlier FineTuningJob demo. Delete it"
            f" (kubectl delete persistentvolumeclaims demo-adapter -n {site.namespace}) or choose another name for this"
            " object."
        )
        assert site.job_names() == set()
        site.cluster.delete(claim)
        site.play("preflight")
        site.pod("train")


class TestNamespaces:
    """Namespaces come and go."""

    def test_one_that_is_deleted_under_a_job_is_left_in_peace(self, site: Site, served: Pool) -> None:
        other = served.lend()
        training(site)
        training(other)

        site.cluster.delete({"kind": "Namespace", "metadata": {"name": site.namespace}})
        site.cluster.wait_gone("Namespace", site.namespace)
        other.play("train", "evaluate")

        assert has_condition(other.wait_for_job(), "Complete")
        refused = [seen for seen in served.seen(site) if seen.status >= 400]
        assert len(refused) < 10
        assert served.operator.exit_code is None


class TestQuota:
    """Namespaces that are full."""

    @pytest.mark.parametrize(
        ("hard", "message"),
        [
            (
                {"count/jobs.batch": "0"},
                "asked for count/jobs.batch=1, used count/jobs.batch=0, limit count/jobs.batch=0",
            ),
            (
                {"persistentvolumeclaims": "2"},
                "asked for persistentvolumeclaims=1, used persistentvolumeclaims=2, limit persistentvolumeclaims=2",
            ),
            ({"limits.cpu": "3"}, "asked for limits.cpu=4, used limits.cpu=0, limit limits.cpu=3"),
        ],
        ids=["jobs", "claims", "cpu"],
    )
    def test_it_is_told_with_its_numbers_and_work_goes_on_when_it_grows(
        self, site: Site, hard: Object, message: str
    ) -> None:
        site.bring(site.job_manifest())
        quota = site.cluster.create(
            {
                "apiVersion": "v1",
                "kind": "ResourceQuota",
                "metadata": {"name": "small", "namespace": site.namespace},
                "spec": {"hard": hard},
            }
        )
        site.wait("ResourceQuota", "small", where=lambda found: "hard" in found.get("status", {}))
        site.job(resources={"limits": {"cpu": "4"}})

        told = site.wait_for_job(where=lambda now: "quota" in stage(now, "preflight").get("message", ""))
        assert message in stage(told, "preflight")["message"]
        assert condition(told, "Trained")["reason"] == "QuotaExceeded"
        site.patch(quota, spec={"hard": dict.fromkeys(hard, "100")})
        site.play("preflight")
        site.pod("train")


class TestStatusOfAStranger:
    """The status is ours, but anybody with the right may write it."""

    def test_what_is_taken_out_of_it_is_found_again_and_nothing_starts_twice(self, site: Site) -> None:
        running = training(site)
        job = site.get("Job", "demo-train")

        site.patch_status(running, phase="Failed", conditions=[], stages=[], startTime=None)

        def is_told(now: Object) -> bool:
            return is_running("train")(now) and now["status"]["phase"] == "Training" and has_condition(now, "Relocated")

        site.wait_for_job(where=is_told)
        assert uid(site.get("Job", "demo-train")) == uid(job)
        site.play("train", "evaluate")
        assert has_condition(site.wait_for_job(), "Complete")

    def test_an_end_that_was_written_by_hand_is_an_end(self, site: Site, served: Pool) -> None:
        running = training(site)
        told = [
            {
                "type": "Complete",
                "status": "True",
                "reason": "Succeeded",
                "message": "by hand",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ]

        site.patch_status(running, conditions=told)

        site.wait_gone("Job", "demo-train")
        assert served.rests(site)
        assert condition(site.get("FineTuningJob"), "Complete")["message"] == "by hand"
        assert site.job_names() == {"demo-preflight"}


class TestEndIsFinal:
    """Whatever happens to what a finished job leaves."""

    @pytest.mark.parametrize("end", ["Complete", "Failed"])
    def test_it_never_runs_again(
        self, cluster: Cluster, namespace: str, start: Callable[..., OperatorProcess], end: str
    ) -> None:
        site = Site(cluster, namespace)
        first = start(RESYNC_SECONDS="1")
        site.job()
        site.play("preflight")
        if end == "Complete":
            site.play("train", "evaluate")
        else:
            pods.finish(cluster, site.pod("train"), exit_code=1)
        done = site.wait_for_job()
        assert has_condition(done, end)
        for kind in ("Job", "EvaluationJob", "PersistentVolumeClaim", "Relocation"):
            for each in cluster.objects(kind, namespace):
                cluster.delete(each)
        site.wait_gone("Job", "demo-train")
        site.wait_gone("PersistentVolumeClaim", "demo-adapter")
        assert first.stop() == 0

        again = start(RESYNC_SECONDS="1")
        lists = again.metric("finetuning_api_requests_total", verb="list")
        wait_until(
            lambda: again.metric("finetuning_api_requests_total", verb="list") > lists + 20, what="everything is listed"
        )

        assert site.get("FineTuningJob") == done
        assert site.job_names() == site.names("Relocation") == site.names("PersistentVolumeClaim") == set()


class TestStopping:
    """Suspension, deadlines and the time after the end."""

    def test_a_job_that_is_suspended_from_the_start_makes_nothing(self, site: Site, served: Pool) -> None:
        made = site.job(suspend=True)
        told = site.wait_for_job(where=lambda now: has_condition(now, "Suspended"))
        assert (told["status"]["phase"], condition(told, "Suspended")["message"]) == ("Suspended", SUSPENDED)
        assert served.rests(site)
        assert site.job_names() | site.names("PersistentVolumeClaim") <= set(site.names("Relocation"))

        site.patch(made, spec={"suspend": False})
        site.play("preflight", "train", "evaluate")
        done = site.wait_for_job()
        assert has_condition(done, "Complete")
        assert condition(done, "Suspended")["status"] == "False"

    def test_training_is_stopped_and_goes_on(self, site: Site) -> None:
        running = training(site)
        first = site.get("Job", "demo-train")
        pod = site.pod("train")

        site.patch(running, spec={"suspend": True})
        site.wait_gone("Job", "demo-train")
        told = site.wait_for_job(where=lambda now: has_condition(now, "Suspended"))
        assert (stage(told, "train")["state"], stage(told, "train")["message"]) == ("Pending", "suspended")
        assert site.find("Pod", pod["metadata"]["name"]) is None

        site.patch(running, spec={"suspend": False})
        site.wait_for_uid("Job", "demo-train", other_than=first)
        site.play("train", "evaluate")
        done = site.wait_for_job()
        assert has_condition(done, "Complete")
        assert [stage(done, name)["attempts"] for name in ("preflight", "train", "evaluate")] == [1, 2, 1]

    def test_a_job_that_is_active_for_too_long_is_stopped(self, site: Site) -> None:
        training(site, activeDeadlineSeconds=5)
        failed = site.wait_for_job()
        assert condition(failed, "Failed") == {
            "status": "True",
            "reason": "DeadlineExceeded",
            "message": "the job was active for 5 seconds (activeDeadlineSeconds)",
        }
        site.wait_gone("Job", "demo-train")

    def test_a_pod_that_fits_nowhere_ends_the_job_at_its_deadline_with_the_cause(self, site: Site) -> None:
        site.job(resources={"limits": {"nvidia.com/gpu": 4000}}, pendingDeadlineSeconds=3)
        site.play("preflight")
        failed = site.wait_for_job()
        told = condition(failed, "Failed")
        assert told["reason"] == "DeadlineExceeded"
        assert told["message"].startswith("train: waited 3 s: Unschedulable: no node has enough nvidia.com/gpu left")
        site.wait_gone("Job", "demo-train")

    def test_a_pod_that_is_taken_away_costs_no_retry(self, site: Site) -> None:
        training(site, backoffLimit=0)
        pod = site.pod("train")
        pods.evict(site.cluster, pod)
        site.pod("train", other_than=(pod["metadata"]["name"],))
        site.play("train", "evaluate")
        done = site.wait_for_job()
        assert has_condition(done, "Complete")
        assert stage(done, "train")["attempts"] == 2

    def test_a_finished_job_goes_when_its_time_is_over_with_what_it_owns(self, site: Site) -> None:
        site.job(ttlSecondsAfterFinished=1)
        site.play("preflight", "train", "evaluate")
        site.wait_gone("FineTuningJob", "demo")
        for kind, name in (("Job", "demo-train"), ("PersistentVolumeClaim", "demo-adapter")):
            site.wait_gone(kind, name)
        site.wait_gone("EvaluationJob", "demo-evaluation")
        assert len(site.names("Relocation")) == 2


class TestRetention:
    """What becomes of an adapter when its job is deleted."""

    def test_deleted_kept_and_thrown_away(
        self, cluster: Cluster, namespace: str, start: Callable[..., OperatorProcess]
    ) -> None:
        site = Site(cluster, namespace)
        start(RESYNC_SECONDS="1", TRASH_TTL_SECONDS="2")
        for policy in ("Delete", "Retain", "Trash"):
            site.job(policy.lower(), storage={"retention": policy})
        claims = {f"{name}-adapter" for name in ("delete", "retain", "trash")}
        cluster.wait_for(lambda: claims <= site.names("PersistentVolumeClaim"), what="all claims are there")

        for name in ("delete", "retain", "trash"):
            cluster.delete(site.get("FineTuningJob", name))

        site.wait_gone("PersistentVolumeClaim", "delete-adapter")
        marked = site.wait("PersistentVolumeClaim", "trash-adapter", where=is_marked)
        assert marked["metadata"]["labels"]["finetuning.dev/retention"] == "Trash"
        site.wait_gone("PersistentVolumeClaim", "trash-adapter")
        assert "retain-adapter" in site.names("PersistentVolumeClaim")


def is_marked(claim: Object) -> bool:
    """Return whether a claim is about to be thrown away."""
    return "finetuning.dev/trashed-at" in claim["metadata"]["annotations"]


@dataclass(frozen=True, slots=True)
class Right:
    """Something that the operator may do."""

    group: str
    target: str
    """Plural name of the kind, with its subresource."""
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.target}"

    def is_in(self, rule: Object, verb: str) -> bool:
        """Whether a rule gives it by a verb."""
        return verb == self.verb and self.group in rule["apiGroups"] and self.target in rule["resources"]


RIGHTS = (
    Right("batch", "jobs", "create"),
    Right("batch", "jobs", "watch"),
    Right("finetuning.dev", "evaluationjobs", "create"),
    Right("finetuning.dev", "finetuningjobs/status", "patch"),
    Right("finetuning.dev", "finetuningjobs", "watch"),
    Right("", "pods", "list"),
    Right("", "events", "create"),
)


class TestRights:
    """Somebody takes the operator's rights away, and gives them back."""

    def test_it_says_so_and_goes_on(self, site: Site, served: Pool) -> None:
        training(site)

        with without_rights(site.cluster):
            served.proxy.drop_watches()
            site.play("train")
            wait_until(lambda: "is forbidden" in served.operator.logs, what="the operator says what it may not do")

        site.play("evaluate")
        assert has_condition(site.wait_for_job(), "Complete")
        assert served.operator.exit_code is None

    @pytest.mark.parametrize("missing", RIGHTS, ids=str)
    def test_one_that_is_missing_is_named_and_the_job_goes_on_when_it_is_back(
        self, site: Site, served: Pool, missing: Right
    ) -> None:
        site.job()
        site.pod("preflight")
        before = len(served.operator.logs)
        with without_right(site.cluster, missing):
            # The error 410, for what is listed and watched to be asked for anew.
            served.proxy.expire_watches(missing.target)
            pods.succeed(site.cluster, site.pod("preflight"))
            with play(site.cluster, namespace=site.namespace):
                told = f"it is told that the operator may not {missing}"
                wait_until(lambda: is_told(served.operator.logs[before:], site, missing), what=told)
        with play(site.cluster, namespace=site.namespace):
            done = site.wait_for_job()

        assert has_condition(done, "Complete")
        assert stage(done, "train")["attempts"] == 1
        assert site.job_names() == {"demo-preflight", "demo-train", "demo-evaluation-evaluate"}
        assert made_twice(served, site) == []
        assert served.operator.exit_code is None


def is_told(logs: str, site: Site, missing: Right) -> bool:
    """Whether a missing right is named, in the log or in the status of the job."""
    words = rf"cannot {missing.verb} resource \"{missing.target}\""
    return words in logs or words in json.dumps(site.get("FineTuningJob").get("status", {}))


@contextmanager
def without_right(cluster: Cluster, missing: Right) -> Iterator[None]:
    """Take one right from the operator for a while."""
    role = cluster.get("ClusterRole", BINDING)
    rules = [
        rule | {"verbs": [verb for verb in rule["verbs"] if not missing.is_in(rule, verb)]} for rule in role["rules"]
    ]
    cluster.patch(role, {"rules": [rule for rule in rules if rule["verbs"]]})
    try:
        wait_until(lambda: not may(cluster, missing), what="the operator's right is gone")
        yield
    finally:
        cluster.patch(role, {"rules": role["rules"]})
        wait_until(lambda: may(cluster, missing), what="the operator has its right again")


@contextmanager
def without_rights(cluster: Cluster) -> Iterator[None]:
    """Take all rights from the operator for a while; it takes a moment until the API server knows."""
    cluster.delete(cluster.get("ClusterRoleBinding", BINDING))
    try:
        wait_until(lambda: not may_list(cluster), what="the operator's rights are gone")
        yield
    finally:
        Identity.install(cluster)
        wait_until(lambda: may_list(cluster), what="the operator has its rights again")


def may_list(cluster: Cluster) -> bool:
    """Whether the operator's account may list jobs."""
    return may(cluster, Right("finetuning.dev", "finetuningjobs", "list"))


def may(cluster: Cluster, right: Right) -> bool:
    """Whether the operator's account has a right."""
    resource_, _, subresource = right.target.partition("/")
    asked = {"group": right.group, "resource": resource_, "subresource": subresource, "verb": right.verb}
    user = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{ACCOUNT}"
    review = {"metadata": {}, "kind": "SubjectAccessReview", "spec": {"user": user, "resourceAttributes": asked}}
    answer = cluster.create({"apiVersion": "authorization.k8s.io/v1", **review})
    return bool(answer["status"]["allowed"])


class TestNewerDefinitions:
    """Definitions of a newer release than the operator's: fields and values that it does not know."""

    def test_unknown_fields_do_no_harm_and_those_of_the_status_are_kept(self, site: Site, served: Pool) -> None:
        with_newer_fields(site, served)
        running = training(site, novelty="spec")
        site.patch_status(running, novelty="status")

        site.play("train", "evaluate")

        done = site.wait_for_job()
        assert has_condition(done, "Complete")
        assert (done["spec"]["novelty"], done["status"]["novelty"]) == ("spec", "status")

    def test_an_object_that_it_cannot_read_is_refused_and_hinders_nobody(self, site: Site, served: Pool) -> None:
        with_newer_fields(site, served)
        manifest = site.job_manifest("strange")
        site.bring(manifest)
        manifest["spec"]["method"] = {"type": "newest"}
        site.cluster.create(manifest)

        told = condition(site.wait_for_job("strange", where=lambda now: bool(condition(now, "Accepted"))), "Accepted")

        assert (told["status"], told["reason"]) == ("False", "InvalidSpec")
        assert told["message"].startswith("spec.method.type: ")
        assert told["message"].endswith("; this version of the operator cannot read the object")
        assert served.rests(site)
        training(site)
        assert site.job_names() == {"demo-preflight", "demo-train"}


def with_newer_fields(site: Site, served: Pool) -> None:
    """Let the API server know of jobs what a newer release might have."""
    definition = site.cluster.get("CustomResourceDefinition", "finetuningjobs.finetuning.dev")
    version = definition["spec"]["versions"][0]
    fields = version["schema"]["openAPIV3Schema"]["properties"]
    for part in ("spec", "status"):
        fields[part]["properties"]["novelty"] = {"type": "string"}
    values = fields["spec"]["properties"]["method"]["properties"]["type"]["enum"]
    values += [] if "newest" in values else ["newest"]
    site.patch(definition, spec={"versions": [version]})

    def is_served() -> bool:
        probe = site.job_manifest("probe", novelty="here", method={"type": "newest"})
        path = site.cluster.path("FineTuningJob", namespace=site.namespace) + "?dryRun=All"
        try:
            made = site.cluster.request("POST", path, body=probe, content_type="application/json")
        except Refused:
            return False
        return "novelty" in made["spec"]

    wait_until(is_served, what="the newer fields are served")
    # Streams that are open go on without the new fields; an API server ends them after a while.
    served.proxy.drop_watches("finetuningjobs")


class TestHostileInput:
    """Names, labels and texts of the greatest length."""

    def test_names_and_labels_of_the_greatest_length_make_a_whole_job(self, site: Site) -> None:
        name = "n" * 52
        labels = {f"example.com/{LABEL}": LABEL}
        site.job(name, serving={}, pod={"labels": labels})
        site.play("preflight", "train", "evaluate")
        done = site.wait_for_job(name)
        assert has_condition(done, "Complete")
        assert done["status"]["serving"]["url"] == f"http://{name}.{site.namespace}.svc:8000"
        assert all(len(child) <= 63 for child in site.job_names() | site.names("PersistentVolumeClaim"))

    # A kubelet cuts last words off at 4,096 bytes. An API server does not: it takes what its etcd can hold, 1.5 MiB.
    @pytest.mark.parametrize(
        "text",
        [MEGABYTE, json.dumps({"message": MEGABYTE}), "\x00\x1b[2J\ufffd" * 1000, "[1,", '{"reason": []}'],
        ids=["megabyte", "megabyte-of-json", "binary", "cut-off", "types"],
    )
    def test_whatever_a_pod_says_its_job_ends_with_bounded_words(self, site: Site, text: str) -> None:
        training(site, backoffLimit=0)
        pods.finish(site.cluster, site.pod("train"), exit_code=203, message=text)
        failed = site.wait_for_job()
        told = condition(failed, "Failed")
        assert told["reason"] == "Internal"
        assert len(told["message"]) < 4096
        assert told["message"].replace("\n", " ").isprintable()
        assert len(json.dumps(failed["status"])) < 16_384

    def test_a_report_of_a_megabyte_is_refused_and_the_next_one_taken(self, site: Site) -> None:
        training(site)
        pod = site.pod("train")
        named, valued = ({"name": MEGABYTE, "value": "1"}, {"name": "loss", "value": MEGABYTE})

        for body in (report(progressPercentage=10, metrics=[named]), report(metrics=[valued]), MEGABYTE):
            refused = pods.report(site.cluster, pod, json.dumps(body).encode())
            assert (refused.status_code, refused.json()) == (413, {"message": "a report has at most 65536 bytes"})

        assert "progress" not in site.get("FineTuningJob")["status"]
        large = [{"name": MEGABYTE[:30_000], "value": "1"}, {"name": "grad_norm", "value": MEGABYTE[:30_000]}]
        body = report(progressPercentage=40, metrics=[*large, {"name": "loss", "value": "0.5"}])
        assert pods.report(site.cluster, pod, json.dumps(body).encode()).status_code == 202
        told = site.wait_for_job(where=lambda now: "progress" in now["status"])["status"]
        assert (told["progress"]["percent"], told["progress"]["loss"]) == (40, 0.5)
        assert len(json.dumps(told)) < 16_384
