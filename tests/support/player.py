"""Playing all programs of a namespace or a cluster: each pod that runs comes to the end that a script gives it.

The programs themselves are tested elsewhere; here they only say what they would say, so that the operator has
something to work with.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from tests.support import pods
from tests.support.cluster import Cluster, Object, Refused
from tests.support.objects import RESULTS

from finetuning_api.runconfig import LastWords

STEP_LABEL = "finetuning.dev/step"
MANAGED = "app.kubernetes.io/managed-by=finetuning-operator"
_WATCH_SECONDS = 3600
_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class End:
    """How the program of a pod ends."""

    exit_code: int = 0
    words: LastWords | str = ""


Script = Callable[[str, Object], End | None]
"""Step and pod to an end; None lets the program run on, and it is asked again when the pod changes."""


def succeed(step: str, pod: Object) -> End | None:  # noqa: ARG001  (every script is told the pod)
    """End well with the result that the step's program would tell; servers run on."""
    if step not in RESULTS:
        return None
    return End(words=pods.success_of(step))


def scripted(ends: Mapping[str, End | None]) -> Script:
    """Return a script that ends some steps as given and all others well."""
    return lambda step, pod: ends[step] if step in ends else succeed(step, pod)


@dataclass(slots=True)
class Player:
    """Plays pods until it is stopped."""

    cluster: Cluster
    script: Script
    namespace: str = ""
    played: list[tuple[str, str]] = field(default_factory=list)
    """(step, pod name) of every program that ended, in order."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _ended: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Follow the pods until stopped; a connection that breaks is made anew."""
        while not self._stop.is_set():
            try:
                self._follow()
            except httpx.HTTPError:
                self._stop.wait(_POLL_SECONDS)

    def stop(self) -> None:
        """Let ``run`` return."""
        self._stop.set()

    def _follow(self) -> None:
        path = self.cluster.path("Pod", namespace=self.namespace)
        query = f"{path}?watch=true&labelSelector={MANAGED}&timeoutSeconds={_WATCH_SECONDS}"
        timeout = httpx.Timeout(_POLL_SECONDS * 10, read=_POLL_SECONDS)
        while not self._stop.is_set():
            try:
                with self.cluster.http.stream("GET", query, timeout=timeout) as answer:
                    for line in answer.iter_lines():
                        if self._stop.is_set():
                            return
                        self._play(json.loads(line)["object"])
            except httpx.ReadTimeout:
                continue  # Nothing happened; asking again also repeats every pod, which does no harm.

    def _play(self, pod: Object) -> None:
        metadata = pod.get("metadata", {})
        step = metadata.get("labels", {}).get(STEP_LABEL, "")
        if pod.get("status", {}).get("phase") != "Running" or metadata["uid"] in self._ended:
            return
        end = self.script(step, pod)
        if end is None or "deletionTimestamp" in metadata:
            return
        try:
            pods.finish(self.cluster, {"kind": "Pod", **pod}, exit_code=end.exit_code, message=end.words)
        except Refused:
            return  # It was deleted meanwhile.
        self._ended.add(metadata["uid"])
        self.played.append((step, metadata["name"]))


@contextmanager
def play(cluster: Cluster, script: Script = succeed, *, namespace: str = "") -> Iterator[Player]:
    """Play the pods of a namespace, or of all, while the block runs."""
    player = Player(cluster, script, namespace)
    thread = threading.Thread(target=player.run, name="pod-player", daemon=True)
    thread.start()
    try:
        yield player
    finally:
        player.stop()
        thread.join(timeout=30)
