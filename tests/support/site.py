"""One namespace of a cluster where the operator works: jobs that have what they need, and what became of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import pods
from tests.support.api_proxy import ApiProxy, Seen
from tests.support.cluster import Cluster, Object, has_condition, new_namespace
from tests.support.lifecycle import has_ended, job, resource
from tests.support.objects import DIGEST, RESULTS
from tests.support.operator_process import Identity, OperatorProcess, running_operator

from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.inferenceserver import InferenceServer
from finetuning_api.runconfig import TrainResult
from finetuning_operator.reconcile.evaluation import evaluation_needs
from finetuning_operator.reconcile.needs import Need, job_needs, server_needs
from finetuning_operator.reconcile.plan import Observed

ADAPTER = TrainResult.model_validate(RESULTS["train"])
ENV = {"FINETUNING_STATUS_DELAY": "0.2"}
_LONG_AGO = "2026-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Site:
    """A namespace that the operator serves."""

    cluster: Cluster
    namespace: str

    def job(self, name: str = "demo", **spec: object) -> Object:
        """Create a job whose inputs are there already."""
        return self.create(self.job_manifest(name, **spec))

    def job_manifest(self, name: str = "demo", **spec: object) -> Object:
        """Return a job for this namespace."""
        return job(self.namespace, name, **spec)

    def create(self, manifest: Object) -> Object:
        """Create one of our objects, with what it would have to relocate."""
        self.bring(manifest)
        return self.cluster.create(manifest)

    def bring(self, manifest: Object) -> None:
        """Have everything there that an object would have to relocate."""
        for need in _needs(manifest):
            if self.find("Relocation", need.name) is None:
                self._bring(need)

    def _bring(self, need: Need) -> None:
        spec = need.ref.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
        relocation = self.cluster.create(resource("Relocation", need.name, self.namespace, **spec))
        self.claim(need.name)
        self.cluster.patch(relocation, {"status": _ready(need.name)}, subresource="status")

    def claim(self, name: str, *, modes: tuple[str, ...] = ("ReadWriteOnce",)) -> Object:
        """Create a claim."""
        return self.cluster.create(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {"accessModes": list(modes), "resources": {"requests": {"storage": "1Gi"}}},
            }
        )

    def finished_job(self, name: str, **spec: object) -> Object:
        """Create a job that ended well a while ago, with its adapter."""
        made = self.create(self.job_manifest(name, suspend=True, **spec))
        if self.find("PersistentVolumeClaim", f"{name}-adapter") is None:
            self.claim(f"{name}-adapter")
        adapter = {"claimName": f"{name}-adapter", "path": "adapter", "digest": ADAPTER.digest, "bytes": 50}
        told = [_condition(kind) for kind in ("Accepted", "Relocated", "Trained", "Evaluated", "Complete")]
        status = {
            "phase": "Complete",
            "observedGeneration": 1,
            "startTime": _LONG_AGO,
            "completionTime": _LONG_AGO,
            "conditions": told,
            "artifacts": {"adapter": adapter},
        }
        return self.cluster.patch(made, {"status": status}, subresource="status")

    def get(self, kind: str, name: str = "demo") -> Object:
        """Return an object as it is now."""
        return self.cluster.get(kind, name, self.namespace)

    def find(self, kind: str, name: str = "demo") -> Object | None:
        """Return an object, None where it is not there."""
        return self.cluster.find(kind, name, self.namespace)

    def wait(
        self, kind: str, name: str = "demo", *, where: Callable[[Object], bool] = lambda _: True, seconds: float = 90
    ) -> Object:
        """Return an object once it is as it should be."""
        return self.cluster.wait_for_object(kind, name, self.namespace, where=where, seconds=seconds)

    def wait_for_job(self, name: str = "demo", *, where: Callable[[Object], bool] = has_ended) -> Object:
        """Return a job once it has ended, or is as it should be."""
        return self.wait("FineTuningJob", name, where=where)

    def wait_gone(self, kind: str, name: str) -> None:
        """Return once an object is not there."""
        self.cluster.wait_gone(kind, name, self.namespace)

    def wait_for_uid(self, kind: str, name: str, *, other_than: Object) -> Object:
        """Return an object once it is another one than that of the same name before."""
        return self.wait(kind, name, where=lambda found: uid(found) != uid(other_than))

    def pod(self, step: str, *, phase: str = "Running", other_than: tuple[str, ...] = ()) -> Object:
        """Return the pod of a step once it runs."""
        labels = f"finetuning.dev/step={step}"
        return pods.wait_for_pod(self.cluster, self.namespace, labels=labels, phase=phase, other_than=other_than)

    def play(self, *steps: str) -> None:
        """Let steps succeed, one after the other."""
        for step in steps:
            pods.succeed(self.cluster, self.pod(step))

    def names(self, kind: str) -> set[str]:
        """Return the names of all objects of a kind that are not on their way out."""
        found = self.cluster.objects(kind, self.namespace)
        return {each["metadata"]["name"] for each in found if "deletionTimestamp" not in each["metadata"]}

    def job_names(self) -> set[str]:
        """Return the names of all Jobs but those of relocations: what was brought here is measured for a moment."""
        return {name for name in self.names("Job") if not name.startswith("reloc-")}

    def patch(self, target: Object, **change: object) -> Object:
        """Merge a change into an object."""
        return self.cluster.patch(target, change)

    def patch_status(self, target: Object, **change: object) -> Object:
        """Merge a change into the status of an object."""
        return self.cluster.patch(target, {"status": change}, subresource="status")


def uid(target: Object) -> str:
    """Return the identity of an object."""
    return str(target["metadata"]["uid"])


@dataclass(frozen=True, slots=True)
class Pool:
    """An operator that serves all namespaces of a cluster, each lent to one test; what it asks for can be counted."""

    cluster: Cluster
    operator: OperatorProcess
    proxy: ApiProxy

    def lend(self, prefix: str = "run") -> Site:
        """Make a namespace; its prefix decides what pods do there."""
        code = self.operator.exit_code
        assert code is None, f"the operator ended with {code}:\n{self.operator.logs[-4000:]}"
        return Site(self.cluster, new_namespace(self.cluster, prefix))

    def writes(self, site: Site) -> list[str]:
        """Return what the operator wrote in a namespace."""
        return [f"{seen.asked.verb} {seen.asked.target}" for seen in self.seen(site)]

    def rests(self, site: Site) -> bool:
        """Return once nothing was written in a namespace while something was done for an object of another one."""

        def is_at_rest() -> bool:
            before = len(self.writes(site))
            other = self.lend()
            other.job(suspend=True)
            other.wait_for_job(where=lambda found: has_condition(found, "Suspended"))
            return len(self.writes(site)) == before

        return any(is_at_rest() for _ in range(5))

    def seen(self, site: Site) -> list[Seen]:
        """Return the write requests of the operator in a namespace."""
        return self.proxy.writes(namespace=site.namespace)


@contextmanager
def pool(cluster: Cluster, identity: Identity, *, folder: Path, **options: str) -> Iterator[Pool]:
    """Run an operator for all namespaces of a cluster that nobody shares."""
    env = ENV | {f"FINETUNING_{key}": text for key, text in options.items()}
    with ExitStack() as stack:
        proxy = stack.enter_context(ApiProxy(cluster.server, server_ca=cluster.ca, folder=folder, keep_bodies=True))
        operator = stack.enter_context(running_operator(identity, folder=folder, env=env, via=proxy))
        operator.wait_ready()
        yield Pool(cluster, operator, proxy)


def _needs(manifest: Object) -> tuple[Need, ...]:
    match manifest["kind"]:
        case "FineTuningJob":
            return job_needs(FineTuningJob.model_validate(manifest).spec)
        case "EvaluationJob":
            return evaluation_needs(EvaluationJob.model_validate(manifest), observed=Observed())
        case "InferenceServer":
            return server_needs(InferenceServer.model_validate(manifest).spec)
    return ()


def _ready(claim: str) -> Object:
    artifact = {"claim": {"claimName": claim, "path": "artifact"}, "digest": DIGEST, "bytes": 1000, "files": 3}
    return {
        "phase": "Ready",
        "observedGeneration": 1,
        "startTime": _LONG_AGO,
        "completionTime": _LONG_AGO,
        "conditions": [_condition("Ready")],
        "artifact": artifact,
    }


def _condition(kind: str) -> Object:
    return {
        "type": kind,
        "status": "True",
        "reason": "Succeeded",
        "message": "",
        "lastTransitionTime": _LONG_AGO,
        "observedGeneration": 1,
    }
