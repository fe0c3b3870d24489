"""When things happened in a cluster, as a watch of it sees them: finer than the whole seconds that objects tell."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import httpx
from tests.support.cluster import Cluster, Object

_LONGEST_SECONDS = 900
_STEP = re.compile(r"^(\S+) .*\bstep \d+/\d+", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Seen:
    """One change of one object."""

    at: float
    """Seconds since 1970."""
    kind: str
    change: str
    """ADDED, MODIFIED or DELETED."""
    state: Object


@dataclass(frozen=True, slots=True)
class Timeline:
    """What changed in a namespace since the watch began."""

    cluster: Cluster
    namespace: str
    changes: list[Seen] = field(default_factory=list)

    def first(self, kind: str, where: Callable[[Object], bool]) -> float:
        """Return when an object was first as described."""
        found = (seen.at for seen in list(self.changes) if seen.kind == kind and where(seen.state))
        moment = next(found, None)
        assert moment is not None, f"no {kind} in {self.namespace} was ever so"
        return moment

    def follow(self, kind: str) -> None:
        """Take down the changes of a kind until the watch ends."""
        path = f"{self.cluster.path(kind, namespace=self.namespace)}?watch=1&timeoutSeconds={_LONGEST_SECONDS}"
        try:
            with self.cluster.http.stream("GET", path, timeout=httpx.Timeout(30, read=None)) as answer:
                for line in answer.iter_lines():
                    event = json.loads(line)
                    self.changes.append(Seen(time.time(), kind, event["type"], event["object"]))
        except httpx.HTTPError:
            return  # The cluster goes when the tests have ended.


@contextmanager
def watched(cluster: Cluster, namespace: str, *kinds: str) -> Iterator[Timeline]:
    """Watch kinds in a namespace; what is there already comes first."""
    timeline = Timeline(cluster, namespace)
    for kind in kinds:
        threading.Thread(target=timeline.follow, args=(kind,), daemon=True).start()
    yield timeline


def first_step(log: str) -> float:
    """Return when a training's log (`kubectl logs --timestamps`) told of its first step."""
    found = _STEP.search(log)
    assert found is not None, f"the log tells of no step:\n{log}"
    return datetime.fromisoformat(found.group(1)).timestamp()


def named(name: str) -> Callable[[Object], bool]:
    """Return whether an object has a name."""
    return lambda found: bool(found["metadata"]["name"] == name)


def of_step(step: str, phase: str, *, job: str) -> Callable[[Object], bool]:
    """Return whether a pod is one of a job's step, and in a phase."""

    def fits(found: Object) -> bool:
        labels = found["metadata"].get("labels", {})
        named_so = (labels.get("finetuning.dev/step"), labels.get("finetuning.dev/name")) == (step, job)
        return named_so and found["status"].get("phase") == phase

    return fits
