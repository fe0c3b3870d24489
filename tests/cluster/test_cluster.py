"""The harness itself: what other tests of this folder rely on."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from hack.cluster import client
from hack.cluster.binaries import BuildError, require_binaries
from hack.cluster.plane import Running, is_alive, remove_data
from tests.support import pods
from tests.support.api_proxy import ApiProxy, Fault, Trouble, read_address
from tests.support.cluster import Cluster, Object, Refused, has_condition, temporary_namespace
from tests.support.objects import RESULTS
from tests.support.operator_process import ACCOUNT, OPERATOR_NAMESPACE, Identity
from tests.support.private_plane import PrivatePlane
from tests.support.processes import REPOSITORY, wait_until

from finetuning_api.runconfig import LastWords

WORDS = '{"reason": "Done", "message": "two\\nlines"}'


def job(namespace: str, *, name: str = "work", annotations: dict[str, str] | None = None, **spec: object) -> Object:
    template = {"metadata": {"annotations": annotations or {}, "labels": {"job": name}}, "spec": pods.restricted_spec()}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template, **spec}}


def claim(namespace: str, *, name: str = "data", storage_class: str | None = None) -> Object:
    spec: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    if storage_class:
        spec["storageClassName"] = storage_class
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def config_map(namespace: str, name: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}}


def terminated(pod: Object) -> Object:
    state: Object = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return {key: state.get(key) for key in ("exitCode", "reason", "message")}


def ended_pod(cluster: Cluster, namespace: str) -> Object | None:
    found = statuses(cluster, namespace)
    return found[0] if found and found[0]["status"]["phase"] == "Succeeded" else None


def is_deleted(target: Object) -> bool:
    return "deletionTimestamp" in target["metadata"]


def statuses(cluster: Cluster, namespace: str) -> list[Object]:
    return cluster.objects("Pod", namespace)


class TestApi:
    def test_anonymous_requests_are_refused(self, cluster: Cluster) -> None:
        stranger = ssl.create_default_context(cafile=cluster.ca)

        answer = httpx.get(f"{cluster.server}/api/v1/namespaces", verify=stranger)

        assert answer.status_code == HTTPStatus.UNAUTHORIZED

    def test_an_account_may_do_nothing_that_no_rule_names(self, cluster: Cluster, namespace: str) -> None:
        stranger = f"--as=system:serviceaccount:{namespace}:default"

        answer = cluster.kubectl("auth", "can-i", "list", "pods", "-n", namespace, stranger, check=False)

        assert answer.stdout.strip() == "no"

    def test_the_operator_may_make_jobs_but_never_see_secrets(
        self, cluster: Cluster, operator_identity: Identity, namespace: str, tmp_path: Path
    ) -> None:
        kubeconfig = operator_identity.write_kubeconfig(tmp_path / "kubeconfig")
        operator = Cluster.connect(kubeconfig, program=cluster.program)

        operator.create(job(namespace))

        assert operator.kubectl("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}").stdout == (
            f"system:serviceaccount:{OPERATOR_NAMESPACE}:{ACCOUNT}"
        )
        with pytest.raises(Refused, match="secrets is forbidden"):
            operator.objects("Secret", namespace)

    def test_our_kinds_are_served(self, cluster: Cluster, namespace: str) -> None:
        assert cluster.objects("FineTuningJob", namespace) == []

    def test_pod_security_refuses_a_root_pod(self, cluster: Cluster, namespace: str) -> None:
        spec = {"containers": [{"name": "main", "image": "example/image:1"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root", "namespace": namespace}, "spec": spec}

        with pytest.raises(Refused, match="violates PodSecurity"):
            cluster.create(pod)


class TestPods:
    def test_pods_of_a_job_succeed_by_themselves_with_the_words_that_they_are_given(
        self, cluster: Cluster, auto_namespace: str
    ) -> None:
        annotations = {"test.finetuning.dev/last-words": WORDS}
        cluster.apply(job(auto_namespace, annotations=annotations, parallelism=2, completions=2))

        cluster.wait_for_object("Job", "work", auto_namespace, where=lambda found: has_condition(found, "Complete"))

        assert [terminated(pod) for pod in statuses(cluster, auto_namespace)] == [
            {"exitCode": 0, "reason": "Completed", "message": WORDS}
        ] * 2

    # The program of a trial is that of any training.
    @pytest.mark.parametrize("kind", sorted(set(RESULTS) - {"trial"}))
    def test_a_step_that_succeeds_by_itself_says_what_its_program_would_say(
        self, cluster: Cluster, auto_namespace: str, kind: str
    ) -> None:
        cluster.apply(job(auto_namespace, annotations={pods.RUN_CONFIG: json.dumps({"kind": kind})}))

        pod = cluster.wait_for(lambda: ended_pod(cluster, auto_namespace), what="the pod ends")

        words = LastWords.model_validate_json(terminated(pod)["message"])
        assert words == pods.success_of(kind)

    def test_a_namespace_may_say_how_long_its_pods_take(self, cluster: Cluster) -> None:
        with temporary_namespace(cluster, "auto-1s") as name:
            cluster.apply(job(name))

            pod = cluster.wait_for(lambda: ended_pod(cluster, name), what="the pod ends")

        state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        assert state["startedAt"] < state["finishedAt"]

    def test_a_pod_runs_until_it_is_told_how_to_end(self, cluster: Cluster, namespace: str) -> None:
        cluster.apply(job(namespace, backoffLimit=0))
        pod = pods.wait_for_pod(cluster, namespace, labels="job=work", phase="Running")

        pods.finish(cluster, pod, exit_code=1, message={"reason": "InvalidData"})

        cluster.wait_for_object("Job", "work", namespace, where=lambda found: has_condition(found, "Failed"))
        assert terminated(cluster.refresh(pod)) == {
            "exitCode": 1,
            "reason": "Error",
            "message": '{"reason": "InvalidData"}',
        }

    def test_a_held_pod_waits_for_its_image_then_runs_then_is_killed_for_memory(
        self, cluster: Cluster, hold_namespace: str
    ) -> None:
        cluster.apply(job(hold_namespace, backoffLimit=0))
        pod = pods.wait_for_pod(cluster, hold_namespace, phase="Pending")

        waiting = pods.image_pull_error(cluster, pod)
        running = pods.run(cluster, pod)
        ended = pods.run_out_of_memory(cluster, pod)

        assert waiting["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
        assert running["status"]["phase"] == "Running"
        assert terminated(ended) == {"exitCode": 137, "reason": "OOMKilled", "message": None}

    def test_an_evicted_pod_is_not_counted_where_the_job_ignores_disruption(
        self, cluster: Cluster, namespace: str
    ) -> None:
        ignore = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        cluster.apply(job(namespace, backoffLimit=0, podFailurePolicy={"rules": [ignore]}))
        first = pods.wait_for_pod(cluster, namespace, phase="Running")

        pods.evict(cluster, first)
        second = pods.wait_for_pod(cluster, namespace, phase="Running", other_than=(first["metadata"]["name"],))
        pods.finish(cluster, second)

        cluster.wait_for_object("Job", "work", namespace, where=lambda found: has_condition(found, "Complete"))

    def test_a_pod_that_fits_nowhere_is_called_unschedulable_by_the_scheduler(
        self, cluster: Cluster, namespace: str
    ) -> None:
        spec = pods.restricted_spec(limits={"nvidia.com/gpu": "4000"})
        metadata = {"name": "greedy", "namespace": namespace}
        cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

        pod = cluster.wait_for_object(
            "Pod", "greedy", namespace, where=lambda found: has_condition(found, "PodScheduled", "False")
        )

        assert "Insufficient nvidia.com/gpu" in pod["status"]["conditions"][0]["message"]

    def test_a_deleted_pod_ends_as_a_program_does_that_saves_on_sigterm(self, cluster: Cluster, namespace: str) -> None:
        metadata = {"name": "kept", "namespace": namespace, "finalizers": ["test.finetuning.dev/keep"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pods.restricted_spec()}
        cluster.create(pod)
        pods.wait_for_pod(cluster, namespace, phase="Running")

        cluster.delete(pod)
        ended = cluster.wait_for_object(
            "Pod", "kept", namespace, where=lambda found: found["status"]["phase"] == "Failed"
        )

        assert terminated(ended) == {"exitCode": 143, "reason": "Error", "message": None}
        cluster.patch(pod, {"metadata": {"finalizers": []}})
        cluster.wait_gone("Pod", "kept", namespace)

    def test_pods_of_a_job_deleted_in_the_foreground_end_before_the_job_goes(
        self, cluster: Cluster, namespace: str
    ) -> None:
        [made] = cluster.apply(job(namespace))
        pods.wait_for_pod(cluster, namespace, phase="Running")

        cluster.delete(made, propagation="Foreground")

        cluster.wait_gone("Job", "work", namespace)
        assert statuses(cluster, namespace) == []

    def test_a_held_pod_of_a_deleted_job_takes_the_time_that_its_test_takes(
        self, cluster: Cluster, hold_namespace: str
    ) -> None:
        [made] = cluster.apply(job(hold_namespace))
        pod = pods.run(cluster, pods.wait_for_pod(cluster, hold_namespace))

        cluster.delete(made, propagation="Foreground")
        name = pod["metadata"]["name"]
        cluster.wait_for_object("Pod", name, hold_namespace, where=is_deleted)
        pods.finish(cluster, pod, exit_code=143)

        cluster.wait_gone("Job", "work", hold_namespace)


class TestVolumes:
    def test_a_claim_of_the_default_class_is_bound(self, cluster: Cluster, namespace: str) -> None:
        cluster.apply(claim(namespace))

        cluster.wait_for_object(
            "PersistentVolumeClaim", "data", namespace, where=lambda found: found["status"]["phase"] == "Bound"
        )

    def test_a_claim_that_waits_for_its_consumer_is_bound_with_the_first_pod(
        self, cluster: Cluster, namespace: str
    ) -> None:
        work = job(namespace)
        work["spec"]["template"]["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
        cluster.apply(claim(namespace, storage_class="wait-for-consumer"), work)

        pods.wait_for_pod(cluster, namespace, phase="Running")

        assert cluster.get("PersistentVolumeClaim", "data", namespace)["status"]["phase"] == "Bound"


class TestAddresses:
    @pytest.mark.parametrize(
        ("method", "path", "asked"),
        [
            ("GET", "/api/v1/namespaces/a/pods/p/log", ("get", "", "pods/log", "a", "p")),
            ("GET", "/api/v1/pods", ("list", "", "pods", "", "")),
            ("GET", "/api/v1/namespaces/a", ("get", "", "namespaces", "", "a")),
            ("PUT", "/api/v1/namespaces/a/finalize", ("update", "", "namespaces/finalize", "", "a")),
            ("DELETE", "/apis/batch/v1/namespaces/a/jobs", ("deletecollection", "batch", "jobs", "a", "")),
            ("DELETE", "/apis/batch/v1/namespaces/a/jobs/j", ("delete", "batch", "jobs", "a", "j")),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/replicasets/r/scale",
                ("patch", "apps", "replicasets/scale", "a", "r"),
            ),
            ("POST", "/api/v1/namespaces/a/serviceaccounts/s/token", ("create", "", "serviceaccounts/token", "a", "s")),
            ("GET", "/apis/batch/v1", ("get", "batch", "", "", "")),
            ("GET", "/version", ("get", "", "", "", "")),
        ],
    )
    def test_an_address_is_read_as_rbac_reads_it(self, method: str, path: str, asked: tuple[str, ...]) -> None:
        read = read_address(method, path)

        assert (read.verb, read.group, read.target, read.namespace, read.name) == asked


@pytest.fixture
def proxied(cluster: Cluster, proxy: ApiProxy, operator_identity: Identity, tmp_path: Path) -> Cluster:
    """The cluster as the operator sees it through the proxy; what it asked for at its start is forgotten."""
    kubeconfig = operator_identity.write_kubeconfig(tmp_path / "proxied", via=proxy)
    client = Cluster.connect(kubeconfig, program=cluster.program)
    client.path("Job")
    proxy.forget()
    return client


class TestProxy:
    def test_requests_are_recorded_in_the_words_of_rbac(
        self, proxied: Cluster, proxy: ApiProxy, namespace: str
    ) -> None:
        proxied.create(job(namespace))
        proxied.objects("Pod", namespace)
        proxied.get("Job", "work", namespace)
        with pytest.raises(Refused):
            proxied.request("PATCH", proxied.path("FineTuningJob", "none", namespace=namespace, subresource="status"))

        asked = [(seen.asked.verb, seen.asked.target, seen.asked.name, seen.status) for seen in proxy.seen()]
        assert asked == [
            ("create", "jobs", "", 201),
            ("list", "pods", "", 200),
            ("get", "jobs", "work", 200),
            ("patch", "finetuningjobs/status", "none", 415),
        ]
        assert [seen.asked.namespace for seen in proxy.writes(target="jobs")] == [namespace]
        assert json.loads(proxy.writes(target="jobs")[0].body)["kind"] == "Job"

    def test_the_second_write_is_refused_and_says_when_to_come_back(
        self, proxied: Cluster, proxy: ApiProxy, namespace: str
    ) -> None:
        busy = HTTPStatus.TOO_MANY_REQUESTS
        proxy.fail(Fault(Trouble.STATUS, target="jobs", skip=1, status=busy, retry_after=7))
        path = proxied.path("Job", namespace=namespace)

        answers = [
            proxied.http.post(path, content=json.dumps(job(namespace, name=name)), headers=JSON) for name in "abc"
        ]

        assert [answer.status_code for answer in answers] == [201, 429, 201]
        assert answers[1].headers["retry-after"] == "7"
        assert [made["metadata"]["name"] for made in proxied.objects("Job", namespace)] == ["a", "c"]

    @pytest.mark.parametrize(("trouble", "answered"), [(Trouble.CUT_BEFORE, 0), (Trouble.CUT_AFTER, 201)])
    def test_a_cut_connection_hides_whether_the_write_was_done(
        self, proxied: Cluster, proxy: ApiProxy, *, namespace: str, trouble: Trouble, answered: int
    ) -> None:
        proxy.fail(Fault(trouble))

        with pytest.raises(httpx.TransportError):
            proxied.create(job(namespace))

        assert (proxied.find("Job", "work", namespace) is not None) == (answered == 201)
        assert [(seen.status, seen.answered) for seen in proxy.writes()] == [(0, answered)]

    def test_a_cut_connection_of_a_refused_write_is_known_as_such(
        self, proxied: Cluster, proxy: ApiProxy, namespace: str
    ) -> None:
        proxied.create(job(namespace))
        proxy.fail(Fault(Trouble.CUT_AFTER))

        with pytest.raises(httpx.TransportError):
            proxied.create(job(namespace))

        assert [(seen.status, seen.answered) for seen in proxy.writes()] == [(201, 201), (0, 409)]

    def test_a_change_that_others_see_already_is_counted_also_before_its_answer(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        changed, answer = threading.Event(), threading.Event()

        class SlowToAnswer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                changed.set()
                answer.wait(30)
                self.send_response(HTTPStatus.CREATED)
                self.end_headers()

        with (
            ThreadPoolExecutor() as threads,
            ThreadingHTTPServer(("127.0.0.1", 0), SlowToAnswer) as server,
            ApiProxy(f"http://127.0.0.1:{server.server_port}", server_ca=cluster.ca, folder=tmp_path) as proxy,
        ):
            threads.submit(server.serve_forever)
            written = threads.submit(httpx.post, proxy.url + "/api/v1/namespaces/a/pods", verify=False)
            assert changed.wait(30)
            counted = threads.submit(proxy.writes)
            answer.set()

            assert [seen.answered for seen in counted.result(30)] == [201]
            assert written.result(30).status_code == 201
            server.shutdown()

    def test_an_unreachable_server_answers_nobody_until_it_is_healed(
        self, proxied: Cluster, proxy: ApiProxy, namespace: str
    ) -> None:
        proxy.be_unreachable()
        with pytest.raises(httpx.TransportError):
            proxied.objects("Job", namespace)

        proxy.heal()

        assert proxied.objects("Job", namespace) == []


JSON = {"content-type": "application/json"}


class Watcher:
    """A watch in a thread of its own, and the lines that it gets."""

    def __init__(self, cluster: Cluster, kind: str, namespace: str) -> None:
        self.names: list[str] = []
        self.ended: list[str] = []
        self._path = cluster.path(kind, namespace=namespace) + "?watch=true"
        self._cluster = cluster
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        try:
            with self._cluster.http.stream("GET", self._path, timeout=None) as answer:
                for line in answer.iter_lines():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        self.ended.append(event["object"]["reason"])
                    else:
                        self.names.append(event["object"]["metadata"]["name"])
        except httpx.TransportError:
            self.ended.append("cut")
        else:
            self.ended.append("end")


class TestWatches:
    @pytest.fixture
    def watcher(self, proxied: Cluster, proxy: ApiProxy, namespace: str) -> Watcher:
        watcher = Watcher(proxied, "Job", namespace)
        wait_until(lambda: proxy.open_watches("jobs") == 1, what="the watch is open")
        return watcher

    def test_events_come_through_at_once(self, cluster: Cluster, watcher: Watcher, namespace: str) -> None:
        cluster.create(job(namespace))

        wait_until(lambda: "work" in watcher.names, what="the event comes through")

    def test_a_silenced_watch_tells_nothing_more_and_stays_open(
        self, cluster: Cluster, proxied: Cluster, proxy: ApiProxy, *, watcher: Watcher, namespace: str
    ) -> None:
        assert proxy.silence_watches("jobs") == 1
        second = Watcher(proxied, "Job", namespace)
        wait_until(lambda: proxy.open_watches("jobs") == 2, what="the second watch is open")

        cluster.create(job(namespace))
        wait_until(lambda: "work" in second.names, what="the second watch hears of it")

        assert (watcher.names, watcher.ended) == ([], [])

    def test_a_dropped_watch_ends_without_a_word(self, proxy: ApiProxy, watcher: Watcher) -> None:
        assert proxy.drop_watches("jobs") == 1

        wait_until(lambda: watcher.ended == ["cut"], what="the watch is cut")

    def test_an_expired_watch_is_told_so(self, proxy: ApiProxy, watcher: Watcher) -> None:
        assert proxy.expire_watches("jobs") == 1

        wait_until(lambda: watcher.ended == ["Expired", "end"], what="the watch ends with 410")


class TestPrivatePlane:
    @pytest.mark.parametrize("component", ["kube-apiserver", "etcd"])
    def test_what_was_made_outlives_a_component_that_is_killed(
        self, private_plane: PrivatePlane, component: str
    ) -> None:
        private_plane.cluster.create(config_map("default", component))

        private_plane.restart(component)

        assert private_plane.cluster.get("ConfigMap", component, "default")["kind"] == "ConfigMap"

    def test_a_frozen_controller_manager_makes_no_pods_until_it_goes_on(self, private_plane: PrivatePlane) -> None:
        cluster = private_plane.cluster
        with private_plane.frozen("kube-controller-manager"):
            cluster.create(job("default"))
            # The scheduler still works: a pod of its own is placed while that of the Job is not even made.
            metadata = {"name": "alone", "namespace": "default"}
            cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pods.restricted_spec()})
            pods.wait_for_pod(cluster, "default", phase="Running")
            assert len(statuses(cluster, "default")) == 1

        wait_until(lambda: len(statuses(cluster, "default")) == 2, what="the Job has its pod")


def program_of(process: int) -> Path:
    """Return the program that a process was started by."""
    shown = subprocess.run(["ps", "-o", "command=", "-p", str(process)], capture_output=True, text=True, check=True)
    return Path(shown.stdout.split()[0])


class TestLife:
    def test_two_processes_share_a_control_plane_that_ends_with_the_last_however_that_ends(
        self, tmp_path: Path
    ) -> None:
        with client.use(tmp_path) as running, other_user(tmp_path) as other:
            assert other.stdout is not None
            assert other.stdout.readline().strip() == str(running.supervisor)
            other.kill()
            other.wait()

            assert Running.find(tmp_path) == running

        wait_until(lambda: not any(map(is_alive, [running.supervisor, *running.components.values()])), what="all ended")
        assert not (tmp_path / "etcd").is_symlink()

    def test_no_data_is_left_in_memory_when_the_folder_is_removed_first(self, tmp_path: Path) -> None:
        with client.use(tmp_path / "plane") as running:
            data = (tmp_path / "plane" / "etcd").resolve()
            assert data.is_dir()
            shutil.rmtree(tmp_path / "plane")

        wait_until(lambda: not is_alive(running.supervisor), what="all ended")
        assert not data.exists()

    def test_components_do_not_outlive_a_supervisor_that_is_killed(self, tmp_path: Path) -> None:
        with client.use(tmp_path) as running:
            os.kill(running.supervisor, signal.SIGKILL)

            wait_until(lambda: not any(map(is_alive, running.components.values())), what="all ended")
            assert Running.find(tmp_path) is None
        remove_data(tmp_path)

    def test_programs_that_the_environment_names_are_the_ones_that_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assets = tmp_path / "assets"
        assets.mkdir()
        own = {"etcd", "kube-apiserver", "kubectl"}  # What `setup-envtest` brings.
        for name in own:
            (assets / name).symlink_to(require_binaries()[name])
        monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))

        with client.use(tmp_path / "plane") as running:
            folders = {name: program_of(process).parent for name, process in running.components.items()}

        assert Path(running.kubectl).parent == assets
        assert {name for name, folder in folders.items() if folder == assets} == own & folders.keys()
        assert {"etcd", "kube-apiserver", "kube-scheduler"} <= folders.keys()

    def test_missing_programs_are_named_with_the_command_that_builds_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
        for name in ("etcd", "kube-apiserver", "kubectl"):
            (tmp_path / name).touch()

        with pytest.raises(
            BuildError, match=r"not built yet: kube-controller-manager, kube-scheduler, kwok, helm.* `make"
        ):
            require_binaries()


@contextmanager
def other_user(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that uses the control plane of a folder and says who holds it."""
    program = f"""
from pathlib import Path
from hack.cluster import client
with client.use(Path({str(folder)!r})) as running:
    print(running.supervisor, flush=True)
    input()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()
