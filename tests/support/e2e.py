"""What the end-to-end tests share: the installed chart, places for jobs, small jobs, and a record of what was seen."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.bad_input import good_spec
from tests.support.chart import CHART, Values, helm
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.e2e_site import STORE, TINY_MODEL, TINY_ROWS
from tests.support.inside import processes_of
from tests.support.lifecycle import resource
from tests.support.processes import FINETUNE, REPOSITORY
from tests.support.real_node import RealNode

SYSTEM = "finetuning-system"
RELEASE = "finetuning"
OPERATOR = f"{RELEASE}-finetuning-operator"
"""Name of the Deployment and of what else the release makes."""
OPERATOR_PODS = f"app.kubernetes.io/name=finetuning-operator,app.kubernetes.io/instance={RELEASE}"
WAIT_SECONDS = 300
ONE_CORE = {"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}
"""Resources of a program with one thread: several, which wait for each other, take many times as long on busy cores."""
_LOG_LINES = "40"

Test = Callable[[Object], bool]


def record(title: str, text: str) -> None:
    """Append what a test saw to the record of this run, which is a page of Markdown."""
    place = Path(os.environ.get("FINETUNE_E2E_RECORD", REPOSITORY / "build" / "e2e-record.md"))
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a") as file:
        file.write(f"## {title}\n\n```\n{text.rstrip()}\n```\n\n")


@dataclass(frozen=True, slots=True)
class Installation:
    """The chart on a cluster, with the images under test."""

    cluster: Cluster
    values: Values
    """Which images; the same for every release of this session."""

    def install(self, more: Values | None = None) -> None:
        """Install or upgrade the release, and return once its operator is ready."""
        place = ("--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "110s")
        values = {**self.values, **(more or {})}
        helm("upgrade", "--install", RELEASE, str(CHART), *place, kubeconfig=self.cluster.kubeconfig, values=values)

    def uninstall(self) -> None:
        """Remove the release."""
        place = ("--namespace", SYSTEM, "--wait", "--timeout", "110s")
        helm("uninstall", RELEASE, *place, kubeconfig=self.cluster.kubeconfig)

    def pods(self) -> list[Object]:
        """Return the operator's pods that are not on their way out."""
        found = self.cluster.objects("Pod", SYSTEM, labels=OPERATOR_PODS)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def wait_ready(self, *, other_than: tuple[str, ...] = ()) -> Object:
        """Return the operator's pod once it is ready; ``other_than`` are uids of former ones."""

        def look() -> Object | None:
            fit = [pod for pod in self.pods() if pod["metadata"]["uid"] not in other_than]
            return next((pod for pod in fit if has_condition(pod, "Ready")), None)

        return self.cluster.wait_for(look, what="the operator is ready", seconds=WAIT_SECONDS)

    def logs(self) -> str:
        """Return what the operator has said."""
        asked = ("logs", f"--selector={OPERATOR_PODS}", "--tail=-1", "-n", SYSTEM)
        return self.cluster.kubectl(*asked, check=False).stdout


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace where Pod Security ``restricted`` is enforced, and what a user does in it."""

    cluster: Cluster
    namespace: str

    def create(self, kind: str, name: str, **spec: object) -> Object:
        """Create one of our objects."""
        return self.cluster.create(resource(kind, name, self.namespace, **spec))

    def tiny_job(self, name: str, changes: Mapping[str, object] | None = None) -> Object:
        """Create a job that tunes a tiny model within half a minute, but for changes by dotted field below spec."""
        return self.create("FineTuningJob", name, **tiny_spec(changes or {}))

    def get(self, kind: str, name: str) -> Object:
        """Return an object. Raises Refused when it is not there."""
        return self.cluster.get(kind, name, self.namespace)

    def objects(self, kind: str, *, labels: str = "") -> list[Object]:
        """Return all objects of a kind that are not on their way out."""
        found = self.cluster.objects(kind, self.namespace, labels=labels)
        return [each for each in found if "deletionTimestamp" not in each["metadata"]]

    def names(self, kind: str) -> set[str]:
        """Return their names."""
        return {each["metadata"]["name"] for each in self.objects(kind)}

    def pods(self, step: str, *, phase: str = "", job: str = "") -> list[Object]:
        """Return the pods of a step, of one job and phase or of any."""
        of_job = f",finetuning.dev/name={job}" if job else ""
        found = self.objects("Pod", labels=f"finetuning.dev/step={step}{of_job}")
        return [pod for pod in found if phase in {"", pod["status"].get("phase")}]

    def wait_for_pod(
        self, step: str, *, phase: str = "Running", other_than: tuple[str, ...] = (), seconds: float = WAIT_SECONDS
    ) -> Object:
        """Return the pod of a step once it is in a phase; ``other_than`` are names of former ones."""

        def look() -> Object | None:
            return next((pod for pod in self.pods(step, phase=phase) if _name(pod) not in other_than), None)

        with self._told():
            return self.cluster.wait_for(look, what=f"a pod of {step} is {phase}", seconds=seconds)

    def wait(self, kind: str, name: str, where: Test, *, seconds: float = WAIT_SECONDS) -> Object:
        """Return an object once it is as it should be; else fail, with all that the namespace tells."""
        with self._told():
            return self.cluster.wait_for_object(kind, name, self.namespace, where=where, seconds=seconds)

    def wait_for_job(self, name: str, where: Test, *, seconds: float = WAIT_SECONDS) -> Object:
        """Return a FineTuningJob once it is as it should be."""
        return self.wait("FineTuningJob", name, where, seconds=seconds)

    def wait_complete(self, name: str, *, seconds: float = WAIT_SECONDS) -> Object:
        """Return a FineTuningJob once it is complete; a failure of it is told at once."""
        done = self.wait_for_job(name, has_ended, seconds=seconds)
        assert has_condition(done, "Complete"), f"{self.story()}\n{json.dumps(done['status'], indent=1)}"
        return done

    def wait_gone(self, kind: str, name: str, *, seconds: float = WAIT_SECONDS) -> None:
        """Return once an object is not there."""
        with self._told():
            self.cluster.wait_gone(kind, name, self.namespace, seconds=seconds)

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        """Return what kubectl prints in this namespace."""
        return self.cluster.kubectl(*arguments, "-n", self.namespace, check=check).stdout

    def finetune(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Return what the command prints about this namespace."""
        place = ("--kubeconfig", str(self.cluster.kubeconfig), "-n", self.namespace)
        command = [str(FINETUNE), *arguments, *place]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
        assert not check or done.returncode == 0, f"finetune {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def story(self) -> str:
        """Return what a person would look at when something went wrong here."""
        parts = [self.kubectl("get", "all,pvc,ftj,evj,reloc,infs", "-o", "wide", check=False)]
        parts.append(self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False))
        for pod in self.cluster.objects("Pod", self.namespace):
            log = self.kubectl("logs", _name(pod), f"--tail={_LOG_LINES}", "--all-containers", check=False)
            parts.append(f"--- {_name(pod)} {json.dumps(pod['status'].get('containerStatuses', []))}\n{log}")
        return "\n".join(parts)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            error.add_note(self.story())
            raise


def tiny_spec(changes: Mapping[str, object]) -> dict[str, Any]:
    """Return the spec of a job that would tune a tiny model from the test site, but for changes by dotted field."""
    here = {
        "model": {"source": TINY_MODEL, "endpoint": STORE},
        "dataset.source": TINY_ROWS,
        "dataset.endpoint": STORE,
        # So many that maxSteps decides.
        "training.epochs": 1000,
        "resources": ONE_CORE,
    }
    return good_spec({**here, **changes})


def endless(**changes: object) -> dict[str, object]:
    """Return changes of a tiny job that make its training last until somebody ends it; it saves every few seconds."""
    return {"training.maxSteps": 30_000, "training.batchSize": 1, "training.checkpointEverySteps": 200, **changes}


def has_ended(target: Object) -> bool:
    """Whether an object is Complete or Failed."""
    return has_condition(target, "Complete") or has_condition(target, "Failed")


def is_stepping(target: Object) -> bool:
    """Whether a job's training told of a step."""
    return step_of(target) > 0


def step_of(target: Object) -> int:
    """Return the training step that a job told of last."""
    return int((target.get("status", {}).get("progress") or {}).get("step") or 0)


def kill(node: RealNode, pod: Object) -> None:
    """End the program of a pod as the kernel would, out of sight of everything in the cluster."""
    node.require_own()  # Processes of another machine cannot be killed from here.
    found = processes_of(pod)
    assert found, f"nothing runs in {_name(pod)}"
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def conditions(target: Object) -> str:
    """Return the conditions of an object, a line each, as the record shows them."""
    found = target.get("status", {}).get("conditions", ())
    return "\n".join(f"{each['type']}={each['status']} {each['reason']}: {each['message']}" for each in found)


def _name(target: Object) -> str:
    return str(target["metadata"]["name"])
