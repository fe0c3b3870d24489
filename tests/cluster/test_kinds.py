"""All kinds end to end on a real API server: evaluations, servers, and what jobs share; programs are played."""

import json
from collections.abc import Iterator

import pytest
from tests.support import pods
from tests.support.cluster import Object, has_condition
from tests.support.lifecycle import DATASET, MODEL, condition, is_running, resource, stage
from tests.support.objects import RESULTS
from tests.support.operator_process import Identity
from tests.support.private_plane import PrivatePlane
from tests.support.site import ADAPTER, Pool, Site, pool

from finetuning_api.metrics import GateResult, Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import EvaluateResult, LastWords

GATE = {"metrics": ["exact-match"], "gate": [{"metric": "exact-match", "minDelta": 0.5}]}
OF_SERVER = "finetuning.dev/kind=InferenceServer"
PLACES = "requiredDuringSchedulingIgnoredDuringExecution"


@pytest.fixture(scope="module")
def served(private_plane: PrivatePlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """An operator that serves a cluster of its own."""
    cluster = private_plane.cluster
    with pool(cluster, Identity.install(cluster), folder=tmp_path_factory.mktemp("kinds")) as lent:
        yield lent


@pytest.fixture
def site(served: Pool) -> Site:
    """A namespace whose pods run until their end is played."""
    return served.lend()


def evaluation(site: Site, *candidates: Object, **spec: object) -> Object:
    """Return an evaluation of candidates on the data of all jobs here."""
    fields: Object = {"candidates": list(candidates), "dataset": DATASET, "metrics": ["exact-match"]}
    return resource("EvaluationJob", "compare", site.namespace, **(fields | spec))


def run_config(site: Site, job: str) -> Object:
    """Return what the program of a Job is told."""
    annotations = site.get("Job", job)["spec"]["template"]["metadata"]["annotations"]
    config: Object = json.loads(annotations[pods.RUN_CONFIG])
    return config


def compared(site: Site) -> Object:
    """Let an evaluation end well, and return it."""
    site.play("evaluate")
    return site.wait("EvaluationJob", "compare", where=lambda now: has_condition(now, "Complete"))


class TestEvaluationJob:
    """An EvaluationJob alone."""

    def test_it_compares_the_results_of_two_finished_jobs(self, site: Site) -> None:
        for name in ("one", "two"):
            site.finished_job(name)
        site.create(evaluation(site, {"name": "base", "jobRef": "one"}, {"name": "tuned", "jobRef": "two"}))

        done = compared(site)

        assert [each["name"] for each in done["status"]["stages"]] == ["wait", "relocate", "evaluate"]
        assert done["status"]["evaluation"][0]["tuned"] == 0.9
        assert done["status"]["report"] == {"claimName": "compare-report", "path": ""}
        told = run_config(site, "compare-evaluate")["candidates"]
        assert [(each["name"], each["adapterPath"], each["adapterDigest"]) for each in told] == [
            (name, f"/volumes/{job}-adapter/adapter", ADAPTER.digest)
            for name, job in (("base", "one"), ("tuned", "two"))
        ]

    def test_plain_models_and_an_adapter_on_a_claim(self, site: Site) -> None:
        site.claim("mine")
        base, tuned = {"name": "base", "model": MODEL}, {"name": "tuned", "model": MODEL}
        adapter = {"adapter": {"claimName": "mine", "path": "best"}}
        other = {"name": "reference", "model": {"source": "hf://acme/large", "revision": "v1"}}
        site.create(evaluation(site, base, tuned | adapter, other))

        compared(site)

        told = run_config(site, "compare-evaluate")["candidates"]
        assert [each.get("adapterPath") for each in told] == [None, "/volumes/mine/best", None]
        mounted = {each["mountPath"] for each in mounts(site.get("Job", "compare-evaluate")) if each.get("readOnly")}
        assert {"/volumes/mine", *(f"/volumes/{name}" for name in site.names("Relocation"))} <= mounted

    def test_it_waits_for_a_job_that_is_not_there_and_then_for_its_end(self, site: Site) -> None:
        site.create(evaluation(site, {"name": "tuned", "jobRef": "late"}))
        site.wait("EvaluationJob", "compare", where=lambda now: waits(now, "late (not there yet)"))

        site.job("late", evaluation={"enabled": False})
        site.play("preflight")
        site.wait("EvaluationJob", "compare", where=lambda now: waits(now, "late (Training)"))
        site.play("train")

        assert has_condition(compared(site), "Complete")

    def test_it_fails_with_the_job_that_it_waits_for(self, site: Site) -> None:
        site.create(evaluation(site, {"name": "tuned", "jobRef": "late"}))
        site.job("late", backoffLimit=0)
        words = LastWords(reason=Reason.DATASET_EMPTY, message="there is not one row")
        pods.finish(site.cluster, site.pod("preflight"), exit_code=1, message=words.model_dump_json())

        failed = site.wait("EvaluationJob", "compare", where=lambda now: has_condition(now, "Failed"))

        told = condition(failed, "Failed")
        assert told["reason"] == "DependencyFailed"
        assert told["message"] == "wait: FineTuningJob late failed: preflight: there is not one row"
        assert site.job_names() == {"late-preflight"}

    def test_a_job_is_compared_with_an_earlier_one_that_it_waits_for(self, site: Site) -> None:
        rules = [{"metric": "exact-match", "nonInferior": 0.01, "against": "earlier"}]
        site.job("later", evaluation={"metrics": ["exact-match"], "gate": rules, "jobRefs": ["earlier"]})
        site.wait_for_job("later", where=lambda now: waits(now, "earlier (not there yet)"))
        site.job("earlier", evaluation={"enabled": False})
        site.play("preflight", "train")
        site.play("preflight", "train", "evaluate")
        done = site.wait_for_job("later")

        assert has_condition(done, "GatePassed")
        told = run_config(site, "later-evaluation-evaluate")["candidates"]
        assert [(each["name"], each.get("adapterPath")) for each in told] == [
            ("base", None),
            ("tuned", "/volumes/later-adapter/adapter"),
            ("earlier", "/volumes/earlier-adapter/adapter"),
        ]

    def test_the_file_of_a_metric_of_one_s_own_is_mounted_where_it_is_read(self, site: Site) -> None:
        custom = {
            "name": "tone",
            "source": "git+https://host/metrics",
            "revision": "v1",
            "file": "tone.py",
            "allowCode": True,
        }
        site.job("own", evaluation={"metrics": ["custom"], "custom": [custom]})
        site.play("preflight", "train")
        site.pod("evaluate")

        told = run_config(site, "own-evaluation-evaluate")["custom"][0]
        assert (told["file"], told["function"]) == ("tone.py", "score")
        readable = [
            {each["mountPath"] for each in mounts(site.get("Job", job)) if each.get("readOnly")}
            for job in ("own-preflight", "own-train", "own-evaluation-evaluate")
        ]
        assert [told["path"].removesuffix("/artifact") in paths for paths in readable] == [True, False, True]

    def test_the_folder_of_tasks_of_one_s_own_is_mounted_where_it_is_read(self, site: Site) -> None:
        task = {"name": "capitals", "source": "git+https://host/evals", "revision": "v1"}
        rules = [{"metric": "capitals.acc", "min": 0.1}]
        site.job("folder", evaluation={"metrics": ["tasks"], "tasks": [task], "gate": rules})
        site.play("preflight", "train")
        site.pod("evaluate")

        told = run_config(site, "folder-evaluation-evaluate")["tasks"][0]
        assert told["name"] == "capitals"
        readable = [
            {each["mountPath"] for each in mounts(site.get("Job", job)) if each.get("readOnly")}
            for job in ("folder-preflight", "folder-train", "folder-evaluation-evaluate")
        ]
        assert [told["path"].removesuffix("/artifact") in paths for paths in readable] == [True, False, True]

    def test_a_job_is_not_compared_with_a_result_that_is_gone(self, site: Site) -> None:
        site.finished_job("earlier")
        site.cluster.delete(site.get("PersistentVolumeClaim", "earlier-adapter"))
        site.wait_gone("PersistentVolumeClaim", "earlier-adapter")
        site.job("later", evaluation={"jobRefs": ["earlier"]})

        failed = site.wait_for_job("later")

        told = condition(failed, "Failed")
        assert told["reason"] == "DependencyFailed"
        assert told["message"] == "wait: the claim earlier-adapter with the result of FineTuningJob earlier is gone"
        assert site.job_names() == set()

    def test_it_predicts_from_prompts_alone_and_goes_on_after_its_pod_is_gone(self, site: Site) -> None:
        data = {"source": "s3://bucket/rows.jsonl", "revision": "7", "prompt": "{message}"}
        candidates = [{"name": "base", "model": MODEL}, {"name": "tuned", "jobRef": "one"}]
        site.finished_job("one")
        site.create(
            resource("EvaluationJob", "all", site.namespace, mode="predict", candidates=candidates, dataset=data)
        )
        first = site.pod("predict")
        pods.evict(site.cluster, first)
        again = site.pod("predict", other_than=(first["metadata"]["name"],))
        pods.succeed(site.cluster, again)

        done = site.wait("EvaluationJob", "all", where=lambda now: has_condition(now, "Complete"))

        assert done["status"]["predictions"] == {
            "claimName": "all-predictions",
            "path": "",
            "rows": 10,
            "tokens": 120,
            "digest": f"sha256:{'d' * 64}",
            "bytes": 2000,
        }
        assert [each["name"] for each in done["status"]["stages"]] == ["wait", "relocate", "predict"]
        config = run_config(site, "all-predict")
        assert (config["kind"], config["outputPath"]) == ("predict", "/volumes/all-predictions")
        assert first["spec"]["containers"][0]["image"] == again["spec"]["containers"][0]["image"]
        shown = site.cluster.kubectl("get", "evj", "all", "-n", site.namespace).stdout.splitlines()
        assert "PREDICTED" in shown[0]
        assert shown[1].split()[:2] == ["all", "Complete"]
        assert " 10 " in shown[1]


def waits(found: Object, job: str) -> bool:
    """Whether an evaluation says that it waits for a job."""
    return stage(found, "wait").get("message") == f"waits for FineTuningJob {job}"


def mounts(workload: Object) -> list[Object]:
    """Return what the program of a workload mounts."""
    found: list[Object] = workload["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    return found


VARIANTS: dict[str, Object] = {
    "builtin": {},
    "command": {"image": "example/server:1", "command": ["serve", "--port", "8000"]},
    "vllm": {"image": "example/vllm:1"},
    "nim": {"image": "example/nim:1"},
}


class TestInferenceServer:
    """An InferenceServer alone."""

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_variant_answers_behind_one_address(self, site: Site, variant: str) -> None:
        spec = {"model": MODEL, "variant": variant, "health": {"path": "/up", "periodSeconds": 7}} | VARIANTS[variant]
        site.create(resource("InferenceServer", "answers", site.namespace, **spec))

        ready = site.wait("InferenceServer", "answers", where=is_ready)

        status = ready["status"]
        assert (status["replicas"], status["readyReplicas"]) == (1, 1)
        assert status["url"] == f"http://answers.{site.namespace}.svc:8000"
        assert condition(ready, "Ready") == {"status": "True", "reason": "Serving", "message": "1 of 1 replicas answer"}
        container = site.get("Deployment", "answers")["spec"]["template"]["spec"]["containers"][0]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["path"] == "/up"
            assert container[probe]["periodSeconds"] == 7
        service = site.get("Service", "answers")["spec"]
        assert [(port["port"], port["targetPort"]) for port in service["ports"]] == [(8000, "http")]
        pod = pods.wait_for_pod(site.cluster, site.namespace, labels=OF_SERVER, phase="Running")
        assert service["selector"].items() <= pod["metadata"]["labels"].items()

    def test_it_is_scaled_by_kubectl(self, site: Site) -> None:
        site.create(resource("InferenceServer", "answers", site.namespace, model=MODEL))
        first = site.wait("InferenceServer", "answers", where=is_ready)

        scale(site, 3)
        more = site.wait("InferenceServer", "answers", where=lambda now: now["status"]["readyReplicas"] == 3)
        assert more["status"]["url"] == first["status"]["url"]
        scale(site, 0)

        none = site.wait("InferenceServer", "answers", where=lambda now: now["status"]["replicas"] == 0)
        assert condition(none, "Ready")["message"] == "spec.replicas is 0: nothing answers"
        assert site.get("Deployment", "answers")["spec"]["replicas"] == 0

    def test_it_is_ready_when_its_pod_is(self, served: Pool) -> None:
        site = served.lend("hold")
        site.create(resource("InferenceServer", "answers", site.namespace, model=MODEL))
        waiting = site.wait("InferenceServer", "answers", where=lambda now: now.get("status", {}).get("replicas") == 1)
        assert not is_ready(waiting)

        pods.run(site.cluster, pods.wait_for_pod(site.cluster, site.namespace, labels=OF_SERVER))

        site.wait("InferenceServer", "answers", where=is_ready)

    def test_it_waits_for_the_adapter_of_a_job(self, site: Site) -> None:
        adapters = [{"name": "mine", "jobRef": "late"}]
        site.create(resource("InferenceServer", "answers", site.namespace, model=MODEL, adapters=adapters))
        waiting = site.wait("InferenceServer", "answers", where=lambda now: bool(condition(now, "Ready")))
        assert condition(waiting, "Ready")["message"] == "waits for FineTuningJob late (not there yet)"
        assert site.names("Deployment") == set()

        site.finished_job("late")

        site.wait("InferenceServer", "answers", where=is_ready)
        paths = {each["mountPath"] for each in mounts(site.get("Deployment", "answers"))}
        assert "/volumes/late-adapter" in paths

    def test_a_deployment_of_that_name_that_is_not_ours_is_told(self, site: Site) -> None:
        pod = {"metadata": {"labels": {"app": "other"}}, "spec": pods.restricted_spec() | {"restartPolicy": "Always"}}
        theirs = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "answers", "namespace": site.namespace},
            "spec": {"selector": {"matchLabels": {"app": "other"}}, "template": pod},
        }
        site.cluster.create(theirs)
        site.create(resource("InferenceServer", "answers", site.namespace, model=MODEL))

        told = site.wait(
            "InferenceServer", "answers", where=lambda now: condition(now, "Ready").get("reason") == "NameConflict"
        )

        assert "Deployment answers exists and was not made by the operator" in condition(told, "Ready")["message"]
        site.cluster.delete(site.get("Deployment", "answers"))
        site.wait("InferenceServer", "answers", where=is_ready)


def is_ready(server: Object) -> bool:
    """Whether a server says that it answers."""
    return has_condition(server, "Ready")


def scale(site: Site, replicas: int) -> None:
    """Scale the server of a namespace as a user does."""
    site.cluster.kubectl("scale", "infs", "answers", f"--replicas={replicas}", "-n", site.namespace)


class TestServingOfAJob:
    """A FineTuningJob that serves its result."""

    def test_what_passed_the_gate_is_served_and_scaled_by_the_job(self, site: Site) -> None:
        made = site.job(serving={"replicas": 1}, evaluation=GATE)
        site.play("preflight", "train", "evaluate")
        done = site.wait_for_job()
        assert has_condition(done, "Serving")
        assert has_condition(done, "GatePassed")
        assert done["status"]["serving"]["url"] == f"http://demo.{site.namespace}.svc:8000"
        assert "/volumes/demo-adapter" in {each["mountPath"] for each in mounts(site.get("Deployment"))}

        site.patch(made, spec={"serving": {"replicas": 2}})

        site.wait("InferenceServer", where=lambda now: now["status"]["readyReplicas"] == 2)
        assert site.get("Deployment")["spec"]["replicas"] == 2

    def test_what_failed_the_gate_is_not_served(self, site: Site) -> None:
        site.job(serving={}, evaluation=GATE)
        site.play("preflight", "train")
        rules = (GateResult(metric=Metric.EXACT_MATCH, verdict=Verdict.FAIL, message="0.1 < 0.5"),)
        good = RESULTS["evaluate"]
        assert isinstance(good, EvaluateResult)
        result = EvaluateResult(rows=good.rows, gates=rules, verdict=Verdict.FAIL)
        words = LastWords(reason=Reason.SUCCEEDED, result=result).model_dump_json(by_alias=True, exclude_none=True)
        pods.finish(site.cluster, site.pod("evaluate"), message=words)

        done = site.wait_for_job()

        assert has_condition(done, "Complete")
        assert condition(done, "GatePassed")["reason"] == "GateFailed"
        assert stage(done, "serve") | {"startTime": None} == {
            "name": "serve",
            "state": "Skipped",
            "percent": 0,
            "attempts": 0,
            "message": "the gate did not pass and serving.afterGate is true",
            "startTime": None,
        }
        assert site.names("InferenceServer") | site.names("Deployment") == set()

    def test_a_server_of_that_name_that_is_not_its_own_is_told(self, site: Site) -> None:
        site.create(resource("InferenceServer", "demo", site.namespace, model=MODEL))
        site.job(serving={})
        site.play("preflight", "train", "evaluate")

        told = site.wait_for_job(where=lambda now: "InferenceServer demo" in stage(now, "serve").get("message", ""))

        assert condition(told, "Serving")["reason"] == "NameConflict"
        assert "was not made by the operator" in stage(told, "serve")["message"]


class TestRelocation:
    """What several objects share."""

    def test_an_artifact_is_collected_when_nothing_uses_it(self, site: Site, served: Pool) -> None:
        manifest = site.job_manifest()
        site.bring(manifest)
        shared = sorted(site.names("Relocation"))
        site.job("one")
        site.create(site.job_manifest("two", suspend=True))
        site.wait_for_job("one", where=is_running("preflight"))

        for name in shared:
            site.patch(site.get("Relocation", name), spec={"ttlSecondsAfterUnused": 0})
        site.play("preflight", "train", "evaluate")
        site.wait_for_job("one")
        assert set(shared) <= site.names("Relocation")
        site.cluster.delete(site.get("FineTuningJob", "two"))

        for name in shared:
            site.wait_gone("Relocation", name)
        assert served.operator.exit_code is None


class TestMeetingOnOneNode:
    """Volumes that one node at a time can mount."""

    def test_jobs_that_share_a_model_meet_and_others_are_not_tied(self, site: Site) -> None:
        data = DATASET | {"source": "s3://bucket/other.jsonl"}
        site.job("one")
        site.create(site.job_manifest("two", dataset=data))
        site.create(site.job_manifest("else", dataset=data | {"revision": "8"}, model=MODEL | {"revision": "v2"}))

        together = [place_of(site, name) for name in ("one", "two")]
        apart = place_of(site, "else")

        assert together[0][0] == together[1][0]
        assert together[0][1] == together[1][1] != apart[1]

    def test_claims_that_are_held_on_different_nodes_are_told(self, site: Site) -> None:
        manifest = site.job_manifest()
        site.bring(manifest)
        held = sorted(site.names("Relocation"))
        for node, claim in zip(("node-a", "node-b"), held, strict=True):
            site.cluster.create(holder(site, claim, node))
        for name in ("node-a", "node-b"):
            site.wait("Pod", name, where=lambda now: now["status"]["phase"] == "Running")

        site.cluster.create(manifest)
        told = site.wait_for_job(where=lambda now: "mounted together" in stage(now, "preflight").get("message", ""))

        assert condition(told, "Trained")["reason"] == "VolumeConflict"
        for node, claim in zip(("node-a", "node-b"), held, strict=True):
            assert f"claim {claim} is held on {node}" in stage(told, "preflight")["message"]
        site.cluster.delete(site.get("Pod", "node-b"))
        assert site.pod("preflight")["spec"]["nodeName"] == "node-a"


def place_of(site: Site, job: str) -> tuple[str, object]:
    """Return the node on which a job is checked, and the claim that decided it."""
    labels = f"finetuning.dev/name={job}"
    pod = pods.wait_for_pod(site.cluster, site.namespace, labels=labels, phase="Running")
    term = pod["spec"]["affinity"]["podAffinity"][PLACES][0]
    return pod["spec"]["nodeName"], term["labelSelector"]["matchExpressions"]


def holder(site: Site, claim: str, node: str) -> Object:
    """Return a pod of ours that holds a claim on a node."""
    spec = pods.restricted_spec()
    spec["containers"][0]["volumeMounts"] = [{"name": "held", "mountPath": "/held"}]
    volumes = [{"name": "held", "persistentVolumeClaim": {"claimName": claim}}]
    labels = {"app.kubernetes.io/managed-by": "finetuning-operator", f"claim.finetuning.dev/{claim}": ""}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": node, "namespace": site.namespace, "labels": labels},
        "spec": spec | {"volumes": volumes, "nodeSelector": {"kubernetes.io/hostname": node}},
    }
