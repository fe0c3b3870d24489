"""How quick and how frugal the operator is, on a real API server: ``python -m bench.operator.bench_operator PART ...``.

| Part | What it does |
|---|---|
| latency | one job at a time on an idle cluster: creation to first child, completion of a child to the next stage |
| burst | many jobs at once, their relocations done: until all first children exist |
| writes | the API writes of one job, from its creation to a running trainer and to its end, counted by a proxy |
| stored | many stored jobs of which some are active: start to synced, memory, writes in a steady minute |
| growth | CPU seconds and requests a job, as the number of jobs at once grows |
| progress | many training jobs that report to the operator with real tokens: answers, status writes, CPU |

Everything runs on this machine: etcd, API server, controllers, fake nodes, the operator and this program share
its cores.
"""

import _thread
import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from bench.progress.reporters import MEASURING, Job, Load, Tally
from hack.cluster import client
from hack.cluster.binaries import require_binaries
from prometheus_client.parser import text_string_to_metric_families
from tests.support import pods
from tests.support.api_proxy import ApiProxy
from tests.support.cluster import Cluster, Object, has_condition, install_definitions, new_namespace
from tests.support.operator_process import Identity, OperatorProcess, free_port, running_operator
from tests.support.processes import REPOSITORY

from finetuning_api.runconfig import PROGRESS_URL_ENV
from finetuning_operator.cluster.options import Options
from finetuning_operator.cluster.statuses import PROGRESS_SHARE

_CREATORS = 16
_GROUP = "finetuning.dev/v1alpha1"
_WRITE_VERBS = ("create", "apply", "patch", "update", "delete")
_NAMES_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Following must cost as little as it can of the cores that are measured."""
_STEADY_SECONDS = 60.0
_QUIET_SECONDS = 3.0
_LOOK_SECONDS = 0.5
_PATIENCE = 60
"""Looks."""
_SECONDS = 900.0
_LONG_LEASE = "120"
_SHOWN = 4000
"""Characters of a log."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A control plane of our own, and what is measured on it."""

    cluster: Cluster
    identity: Identity
    folder: Path
    components: frozenset[int]
    """Processes of the control plane and the fake nodes."""

    @contextmanager
    def operator(
        self, namespace: str, *, via: ApiProxy | None = None, options: Mapping[str, str] | None = None
    ) -> Iterator[OperatorProcess]:
        """Run the operator for one namespace; ``options`` are added to its environment."""
        environment = {"FINETUNING_NAMESPACES": namespace, **(options or {})}
        with running_operator(self.identity, folder=self.folder, env=environment, via=via) as operator:
            operator.wait_ready(seconds=_SECONDS)
            with _stopped_with(operator):
                yield operator

    def namespace(self, prefix: str) -> str:
        """Return a new namespace; pods of ``auto-*`` succeed by themselves, those of ``run-*`` run on."""
        return new_namespace(self.cluster, prefix)


@contextmanager
def _stopped_with(operator: OperatorProcess) -> Iterator[None]:
    """Stop this program when the operator ends while the block runs: nothing that is waited for will come."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1):
            if operator.exit_code is not None:
                sys.stderr.write(f"the operator ended with {operator.exit_code}:\n{operator.logs[-_SHOWN:]}\n")
                _thread.interrupt_main()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@dataclass(frozen=True, slots=True)
class Reading:
    """What an operator has spent since its start; requests for its Lease are left out."""

    writes: float
    requests: float
    cpu: float
    """In seconds."""
    looks: float
    """How often an object was looked at."""
    waiting: float
    """Objects that wait for a worker."""

    @classmethod
    def of(cls, operator: OperatorProcess) -> "Reading":
        """Read all at once: each look at the metrics costs the operator some milliseconds."""
        families = text_string_to_metric_families(_metrics(operator))
        samples = {family.name: family.samples for family in families}
        calls = [each for each in samples["finetuning_api_requests"] if each.name.endswith("_total")]
        told = [each for each in calls if each.labels["resource"] != "leases"]
        return cls(
            writes=sum(each.value for each in told if each.labels["verb"] in _WRITE_VERBS),
            requests=sum(each.value for each in told),
            cpu=samples["process_cpu_seconds"][0].value,
            looks=sum(each.value for each in samples["finetuning_reconcile_seconds"] if each.name.endswith("_count")),
            waiting=samples["finetuning_queue_depth"][0].value,
        )

    def since(self, before: "Reading", jobs: int) -> str:
        """Say what each of some jobs has cost."""
        spent, asked = (self.cpu - before.cpu) / jobs * 1000, (self.requests - before.requests) / jobs
        written, looks = (self.writes - before.writes) / jobs, (self.looks - before.looks) / jobs
        return f"{spent:.1f} ms CPU, {looks:.1f} looks, {asked:.2f} requests, {written:.2f} writes a job"


def _metrics(operator: OperatorProcess) -> str:
    """Return the metrics; an operator that has much to do may answer late."""
    for _ in range(_PATIENCE):
        if told := operator.answer("/metrics"):
            return told
        threading.Event().wait(_LOOK_SECONDS)
    message = f"the operator does not tell its metrics:\n{operator.logs[-_SHOWN:]}"
    raise TimeoutError(message)


@dataclass(slots=True)
class Follower:
    """Notes when objects of a kind were first seen in a namespace."""

    cluster: Cluster
    namespace: str
    kind: str = "Job"
    seen: dict[str, float] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def run(self) -> None:
        """Follow until the connection ends."""
        path = self.cluster.path(self.kind, namespace=self.namespace)
        try:
            timeout = httpx.Timeout(30, read=None)
            headers = {"accept": _NAMES_ONLY}
            with self.cluster.http.stream("GET", f"{path}?watch=true", headers=headers, timeout=timeout) as answer:
                for line in answer.iter_lines():
                    self._note(json.loads(line)["object"], time.perf_counter())
        except httpx.HTTPError:
            return

    def wait(self, condition: Callable[[], bool], *, what: str, seconds: float = _SECONDS) -> None:
        """Return when a condition of what was seen is met."""
        with self.changed:
            if not self.changed.wait_for(condition, timeout=seconds):
                message = f"not within {seconds:g} s: {what}"
                raise TimeoutError(message)

    def wait_for(self, name: str) -> float:
        """Return when an object was first seen."""
        self.wait(lambda: name in self.seen, what=f"{self.kind} {name}")
        return self.seen[name]

    def wait_for_all(self, names: Iterable[str]) -> float:
        """Return when the last of some objects was first seen."""
        wanted = frozenset(names)
        self.wait(lambda: wanted <= self.seen.keys(), what=f"{len(wanted)} objects of kind {self.kind}")
        return max(self.seen[name] for name in wanted)

    def _note(self, target: Object, now: float) -> None:
        name = target.get("metadata", {}).get("name", "")
        with self.changed:
            self.seen.setdefault(name, now)
            self.changed.notify_all()


def _follow(bench: Bench, namespace: str, kind: str = "Job") -> Follower:
    follower = Follower(bench.cluster, namespace, kind)
    threading.Thread(target=follower.run, daemon=True).start()
    return follower


def _manifest(name: str, namespace: str) -> Object:
    """Return a job that shares model and data with all others."""
    dataset = {"source": "s3://bucket/rows.jsonl", "revision": "7", "prompt": "{message}", "completion": "{triage}"}
    spec = {
        "model": {"source": "hf://acme/tiny", "revision": "v1"},
        "dataset": dataset,
        "evaluation": {"metrics": ["exact-match"], "gate": [{"metric": "exact-match", "min": 0.1}]},
    }
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": _GROUP, "kind": "FineTuningJob", "metadata": metadata, "spec": spec}


def _relocate_once(bench: Bench, namespace: str) -> None:
    """Let one job bring what all others share, and stop there."""
    job = bench.cluster.create(_manifest("first", namespace))

    def look() -> bool:
        for step in ("measure", "relocate"):
            for pod in bench.cluster.objects("Pod", namespace, labels=f"finetuning.dev/step={step}"):
                if pod["status"].get("phase") == "Running":
                    pods.succeed(bench.cluster, pod)
        return has_condition(bench.cluster.refresh(job), "Relocated")

    bench.cluster.wait_for(look, what="the shared relocations are done", seconds=_SECONDS)


def _create(bench: Bench, manifests: Sequence[Object]) -> float:
    """Create objects by several clients at once; return the seconds that it took."""
    started = time.perf_counter()
    with ThreadPoolExecutor(_CREATORS) as executor:
        list(executor.map(bench.cluster.create, manifests))
    return time.perf_counter() - started


def latency(bench: Bench, *, jobs: int) -> None:
    """Measure creation to first child, and the end of a child's pod to the next stage, one job at a time.

    A child's end is when the API server has answered that its pod has succeeded: the operator believes the pod's own
    result, and does not wait for the Job controller, which counts pods once a second.
    """
    namespace = bench.namespace("run")
    first, first_job, following = [], [], []
    with bench.operator(namespace):
        _relocate_once(bench, namespace)
        follower, claims = _follow(bench, namespace), _follow(bench, namespace, "PersistentVolumeClaim")
        for index in range(jobs):
            name = f"job-{index}"
            started = time.perf_counter()
            bench.cluster.create(_manifest(name, namespace))
            first.append(claims.wait_for(f"{name}-adapter") - started)
            first_job.append(follower.wait_for(f"{name}-preflight") - started)
            labels = f"finetuning.dev/name={name},finetuning.dev/step=preflight"
            pods.succeed(bench.cluster, pods.wait_for_pod(bench.cluster, namespace, labels=labels, phase="Running"))
            ended = time.perf_counter()
            following.append(max(0.0, follower.wait_for(f"{name}-train") - ended))
    _say(f"latency, {jobs} jobs one after the other on an idle cluster")
    _say(f"  creation to first child (claim)  {_percentiles(first)}")
    _say(f"  creation to first Job            {_percentiles(first_job)}")
    _say(f"  end of a child to next stage     {_percentiles(following)}")


def burst(bench: Bench, *, jobs: int) -> None:
    """Measure until the first children of many jobs exist that are created at once."""
    namespace = bench.namespace("run")
    with bench.operator(namespace) as operator:
        _relocate_once(bench, namespace)
        follower = _follow(bench, namespace)
        before = Reading.of(operator)
        names = [f"job-{index}" for index in range(jobs)]
        started = time.perf_counter()
        created = _create(bench, [_manifest(name, namespace) for name in names])
        last = follower.wait_for_all(f"{name}-preflight" for name in names) - started
        _say(f"burst of {jobs} jobs")
        _say(f"  all jobs created after           {created:.1f} s")
        _say(f"  all first children exist after   {last:.1f} s ({jobs / last:.0f} jobs/s)")
        _say(f"  cost until all is told           {_settle(operator).since(before, jobs)}")


def writes(bench: Bench) -> None:
    """Count the writes of one job."""
    namespace = bench.namespace("run")
    folder = bench.folder / "proxy"
    folder.mkdir()
    with (
        ApiProxy(bench.cluster.server, server_ca=bench.cluster.ca, folder=folder) as proxy,
        bench.operator(namespace, via=proxy) as operator,
    ):
        _relocate_once(bench, namespace)
        _settle(operator)
        proxy.forget()
        job = bench.cluster.create(_manifest("counted", namespace))
        _play(bench, job, ("preflight",), until="train")
        told = [("creation to a running trainer", _by_target(proxy))]
        _play(bench, job, ("train",), until="evaluate")
        _play(bench, job, ("evaluate",), until="")
        _settle(operator)
        told.append(("creation to the end, evaluation included", _by_target(proxy)))
    _say("writes of one job whose relocations are done")
    for what, targets in told:
        listed = ", ".join(f"{target} {count}" for target, count in sorted(targets.items()))
        _say(f"  {what}: {sum(targets.values())} ({listed})")


def _play(bench: Bench, job: Object, steps: Sequence[str], *, until: str) -> None:
    """Let steps of a job succeed; return when the status tells that the stage ``until`` runs, or that all is done."""
    namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
    for step in steps:
        owner = f"{name}-evaluation" if step == "evaluate" else name
        labels = f"finetuning.dev/name={owner},finetuning.dev/step={step}"
        pods.succeed(bench.cluster, pods.wait_for_pod(bench.cluster, namespace, labels=labels, phase="Running"))

    def is_there(found: Object) -> bool:
        stages = {each["name"]: each["state"] for each in found.get("status", {}).get("stages", [])}
        return stages.get(until) == "Running" if until else has_condition(found, "Complete")

    bench.cluster.wait_for_object("FineTuningJob", name, namespace, where=is_there)


def stored(bench: Bench, *, jobs: int, active: int) -> None:
    """Start with many stored jobs; measure the start, memory, and a steady minute."""
    namespace = bench.namespace("run")
    with bench.operator(namespace) as operator:
        _relocate_once(bench, namespace)
        _create(bench, [_manifest(f"active-{index}", namespace) for index in range(active)])
        _wait_for_steps(bench, namespace, "preflight", active + 1)
        _settle(operator)
    ended = bench.cluster.get("FineTuningJob", "first", namespace)
    _store_ended(bench, namespace, jobs - active, like=ended)
    folder = bench.folder / "stored-proxy"
    folder.mkdir()
    with ApiProxy(bench.cluster.server, server_ca=bench.cluster.ca, folder=folder) as proxy:
        started = time.perf_counter()
        with bench.operator(namespace, via=proxy) as operator:
            _settle(operator)
            seconds = time.perf_counter() - started
            _say(f"{jobs} stored jobs, {active} of them active")
            _say(f"  start to synced                  {seconds:.1f} s, CPU {Reading.of(operator).cpu:.1f} s")
            _say(f"  writes until synced              {sum(_by_target(proxy).values())}, and those of the Lease")
            proxy.forget()
            cpu = Reading.of(operator).cpu
            threading.Event().wait(_STEADY_SECONDS)
            busy = (Reading.of(operator).cpu - cpu) / _STEADY_SECONDS
            told = sum(_by_target(proxy).values())
            lease = len(proxy.writes()) - told
            _say(f"  writes in a steady minute        {told}, and {lease} to renew the Lease")
            _say(f"  memory (resident)                {_resident_mib(operator):.0f} MiB; CPU {busy:.1%} of a core")


def _store_ended(bench: Bench, namespace: str, count: int, *, like: Object) -> None:
    """Store jobs that have ended, with a status of the usual size."""
    moment = "2026-01-01T00:00:00Z"
    complete = {"type": "Complete", "status": "True", "reason": "Succeeded", "lastTransitionTime": moment}
    conditions = [each for each in like["status"]["conditions"] if each["type"] != "Complete"]
    status = like["status"] | {"phase": "Complete", "completionTime": moment, "conditions": [*conditions, complete]}

    def store(index: int) -> None:
        job = bench.cluster.create(_manifest(f"ended-{index}", namespace))
        bench.cluster.patch(job, {"status": status}, subresource="status")

    with ThreadPoolExecutor(_CREATORS) as executor:
        list(executor.map(store, range(count)))


def growth(bench: Bench, *, sizes: Sequence[int], resync: float) -> None:
    """Measure what a job costs when more of them come at once.

    ``resync`` is how often everything is listed and looked at, in seconds: that grows with time, not with work, and a
    greater number of jobs takes longer.
    """
    _say("cost of a job as their number grows (creation to first child and told)")
    # On two cores an API server with so much to do leaves the renewal of a Lease unanswered for ten seconds.
    options = {"FINETUNING_LEASE_SECONDS": _LONG_LEASE, "FINETUNING_RESYNC_SECONDS": str(resync)}
    for jobs in sizes:
        namespace = bench.namespace("run")
        with bench.operator(namespace, options=options) as operator:
            _relocate_once(bench, namespace)
            follower, before = _follow(bench, namespace), _settle(operator)
            started = time.perf_counter()
            names = [f"job-{index}" for index in range(jobs)]
            _create(bench, [_manifest(name, namespace) for name in names])
            last = follower.wait_for_all(f"{name}-preflight" for name in names) - started
            spent = _settle(operator).since(before, jobs)
            seconds = time.perf_counter() - started
            _say(f"  {jobs:5} jobs: {spent}; all first children after {last:.0f} s, all told after {seconds:.0f} s")


def progress(bench: Bench, *, jobs: int, interval: float, seconds: float, apart: bool) -> None:
    """Let training jobs report to the operator, each with the token of its pod, and measure after the first reports.

    ``apart`` gives the control plane one core, and operator and jobs the others: in a cluster it has nodes of its own.
    """
    namespace, port = bench.namespace("run"), free_port()
    options = {"FINETUNING_PROGRESS_URL": f"https://localhost:{port}", "FINETUNING_PROGRESS_PORT": str(port)}
    with bench.operator(namespace, options=options) as operator:
        _relocate_once(bench, namespace)
        trainers = _train(bench, namespace, [f"job-{index}" for index in range(jobs)])
        ca, told = bench.folder / "progress-ca.pem", bench.folder / "progress.json"
        ca.write_text(trainers[0]["metadata"]["annotations"]["finetuning.dev/progress-ca"])
        with ThreadPoolExecutor(_CREATORS) as executor:
            reporting = tuple(executor.map(partial(_reporter, bench), trainers))
        Load(port, str(ca), interval, seconds, keep_alive=True, jobs=reporting).write(told)
        if apart:
            _set_apart(bench.components, {operator.process.pid, os.getpid()})
        seen, before, after = _report(operator, told)
    reports, spent = len(seen.milliseconds), after.cpu - before.cpu
    written, allowed = (after.writes - before.writes) / seen.seconds, Options().api_qps * PROGRESS_SHARE
    _say(f"{jobs} training jobs, each reporting every {interval:g} s, for {seen.seconds:.0f} s")
    _say(f"  reports                          {reports / seen.seconds:.0f}/s, refused or lost {seen.failures}")
    _say(f"  answer, as a job sees it         p50 {seen.part(0.5):.1f} ms, p99 {seen.part(0.99):.1f} ms")
    _say(f"  status writes                    {written:.1f}/s, {allowed:g}/s are allowed")
    cpu = f"{spent / seen.seconds:.0%} of a core, {spent / reports * 1000:.1f} ms a report"
    _say(f"  operator CPU                     {cpu}")


def _set_apart(some: Iterable[int], others: Iterable[int]) -> None:
    """Keep some processes on the first core and others off it; what they start stays where they are."""
    first, *rest = sorted(os.sched_getaffinity(0))
    for processes, cores in ((some, {first}), (others, set(rest))):
        for process in processes:
            for thread in Path(f"/proc/{process}/task").iterdir():
                os.sched_setaffinity(int(thread.name), cores)


def _report(operator: OperatorProcess, load: Path) -> tuple[Tally, Reading, Reading]:
    """Let jobs report; return what they saw, and what the operator had spent when it began to count and at the end."""
    command = [sys.executable, "-m", "bench.progress.reporters", str(load)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout or ())
        if next(lines, "").strip() != MEASURING:
            message = "the jobs ended before all were taken"
            raise RuntimeError(message)
        before = Reading.of(operator)
        seen = Tally(**json.loads(next(lines)))
        return seen, before, Reading.of(operator)


def _train(bench: Bench, namespace: str, names: Sequence[str]) -> list[Object]:
    """Create jobs and bring them into training; return the pods that train, one of each."""
    follower = _follow(bench, namespace)
    _create(bench, [_manifest(name, namespace) for name in names])
    follower.wait_for_all(f"{name}-preflight" for name in names)
    with ThreadPoolExecutor(_CREATORS) as executor:
        list(executor.map(partial(pods.succeed, bench.cluster), _running(bench, namespace, "preflight", len(names))))
    follower.wait_for_all(f"{name}-train" for name in names)
    return _running(bench, namespace, "train", len(names))


def _running(bench: Bench, namespace: str, step: str, count: int) -> list[Object]:
    """Return the pods of a step once so many run; the job that brought what all share has one of preflight, too."""
    labels = f"finetuning.dev/step={step}"

    def look() -> list[Object] | None:
        found = bench.cluster.objects("Pod", namespace, labels=labels)
        ours = [pod for pod in found if pod["metadata"]["labels"]["finetuning.dev/name"] != "first"]
        run = [pod for pod in ours if pod["status"].get("phase") == "Running"]
        threading.Event().wait(0.0 if len(run) == count else _LOOK_SECONDS)
        return run if len(run) == count else None

    return bench.cluster.wait_for(look, what=f"{count} pods of {step} run", seconds=_SECONDS)


def _reporter(bench: Bench, pod: Object) -> Job:
    """Return where the program of a pod reports, with what the kubelet would give it as a token."""
    head, spec = pod["metadata"], pod["spec"]
    environment = {each["name"]: each.get("value", "") for each in spec["containers"][0]["env"]}
    sources = (source for volume in spec["volumes"] for source in volume.get("projected", {}).get("sources", ()))
    audience = next(source["serviceAccountToken"]["audience"] for source in sources if "serviceAccountToken" in source)
    bound = {"apiVersion": "v1", "kind": "Pod", "name": head["name"], "uid": head["uid"]}
    asked = {"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": bound}
    path = bench.cluster.path("ServiceAccount", "default", namespace=head["namespace"], subresource="token")
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": asked}
    made = bench.cluster.request("POST", path, body=body, content_type="application/json")
    return Job(urlsplit(environment[PROGRESS_URL_ENV]).path, made["status"]["token"])


def _wait_for_steps(bench: Bench, namespace: str, step: str, count: int) -> None:
    labels = f"finetuning.dev/step={step}"
    bench.cluster.wait_for(
        lambda: len(bench.cluster.objects("Job", namespace, labels=labels)) >= count,
        what=f"{count} Jobs of {step}",
        seconds=_SECONDS,
    )


def _settle(operator: OperatorProcess) -> Reading:
    """Return what was spent when the operator has had nothing to do, and has written nothing, for a while."""
    quiet_since, before = time.monotonic(), Reading.of(operator)
    while time.monotonic() - quiet_since < _QUIET_SECONDS:
        threading.Event().wait(_LOOK_SECONDS)
        now = Reading.of(operator)
        if now.writes != before.writes or now.waiting:
            quiet_since, before = time.monotonic(), now
    return before


def _by_target(proxy: ApiProxy) -> Mapping[str, int]:
    """Return how often each kind of object was written, the Lease left out."""
    counted: dict[str, int] = {}
    for each in proxy.writes():
        if each.asked.resource != "leases":
            counted[each.asked.target] = counted.get(each.asked.target, 0) + 1
    return counted


def _resident_mib(operator: OperatorProcess) -> float:
    return operator.metric("process_resident_memory_bytes") / 2**20


def _percentiles(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)

    def part(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000

    return f"p50 {part(0.5):.0f} ms, p90 {part(0.9):.0f} ms, p99 {part(0.99):.0f} ms"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextmanager
def _bench() -> Iterator[Bench]:
    require_binaries()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = stack.enter_context(client.use(folder / "control-plane"))
        cluster = Cluster.connect(Path(running.kubeconfig), program=Path(running.kubectl))
        install_definitions(cluster, REPOSITORY / "crds")
        yield Bench(cluster, Identity.install(cluster), folder, frozenset(running.components.values()))


def main(arguments: Sequence[str]) -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("latency", "burst", "writes", "stored", "growth", "progress")
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--latency-jobs", type=int, default=50)
    parser.add_argument("--burst-jobs", type=int, default=500)
    parser.add_argument("--stored-jobs", type=int, default=5000)
    parser.add_argument("--active-jobs", type=int, default=500)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000, 2000, 5000])
    parser.add_argument("--resync", type=float, default=300.0, help="growth: seconds between two lists of everything")
    parser.add_argument("--reporting-jobs", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between two reports of a job")
    parser.add_argument("--report-seconds", type=float, default=60.0, help="how long reports are measured")
    parser.add_argument(
        "--apart", action="store_true", help="progress: the control plane on one core, operator and jobs on the others"
    )
    told = parser.parse_args(arguments)
    runs: dict[str, Callable[[Bench], Any]] = {
        "latency": lambda bench: latency(bench, jobs=told.latency_jobs),
        "burst": lambda bench: burst(bench, jobs=told.burst_jobs),
        "writes": writes,
        "stored": lambda bench: stored(bench, jobs=told.stored_jobs, active=told.active_jobs),
        "growth": lambda bench: growth(bench, sizes=told.sizes, resync=told.resync),
        "progress": lambda bench: progress(
            bench, jobs=told.reporting_jobs, interval=told.interval, seconds=told.report_seconds, apart=told.apart
        ),
    }
    _say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with _bench() as bench:
        for part in told.parts:
            runs[part](bench)


if __name__ == "__main__":
    main(sys.argv[1:])
