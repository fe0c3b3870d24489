"""A node whose pods are the real programs, as processes on this machine; containers and mounts are what is played.

Every claim is a folder, every ConfigMap a folder with its files. A pod's program gets the environment that its pod
names, and its own RunConfig with the places of mounts put in for their paths. What it leaves behind (exit code, last
words) becomes the pod's status, as kubelet would write it. Deleting a pod sends SIGTERM and waits for the end.

A server listens on a port of its own, because all pods here share one address. It is ready when its readiness probe
says so, gets its Secret as files, and goes on for as long as its preStop hook sleeps before it is told to stop.

Works in namespaces named ``hold-*``, whose pods wait for somebody to play them.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tests.support import pods
from tests.support.cluster import Cluster, Object, Refused
from tests.support.player import MANAGED
from tests.support.served import free_port

from finetuning_api.runconfig import (
    MASTER_ADDRESS_ENV,
    MASTER_PORT_ENV,
    PROGRESS_URL_ENV,
    RUN_CONFIG_ENV,
    TERMINATION_LOG_BYTES,
    TERMINATION_LOG_ENV,
)
from finetuning_operator.cluster.render.labels import RUN_CONFIG
from finetuning_workload.parent import PARENT_ENV

_LOOK_SECONDS = 0.1
_ENDED = ("Succeeded", "Failed")
_INHERITED = ("PATH", "LANG", "SSL_CERT_FILE", "OMP_NUM_THREADS")
"""What an image would bring."""


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    words: Path
    port: int | None
    """Of a server."""
    ready: bool = False
    ends_at: float | None = None
    """When a pod that is deleted is told to stop, by the monotonic clock."""
    told_to_stop: bool = False


@dataclass(slots=True)
class ProgramNode:
    """Runs the pods of one namespace."""

    cluster: Cluster
    namespace: str
    folder: Path
    _running: dict[str, _Running] = field(default_factory=dict)
    _meetings: dict[str, int] = field(default_factory=dict)
    """Ports at which workers meet, by the uid of their Job."""
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def volumes(self) -> Path:
        """The folder that holds one folder for each claim."""
        return self.folder / "claims"

    def run(self) -> None:
        """Look at the pods again and again until stopped; then end what still runs."""
        while not self._stop.wait(_LOOK_SECONDS):
            for pod in self.cluster.objects("Pod", self.namespace, labels=MANAGED):
                try:
                    self._attend(pod)
                except Refused:
                    continue  # It went meanwhile.
        for running in self._running.values():
            running.process.kill()
            running.process.wait()

    def url(self, pod: Object) -> str:
        """Return where the server in a pod answers."""
        return f"http://127.0.0.1:{self._running[pod['metadata']['uid']].port}"

    def stop(self) -> None:
        """Let ``run`` return."""
        self._stop.set()

    def _attend(self, pod: Object) -> None:
        uid, deleted = pod["metadata"]["uid"], "deletionTimestamp" in pod["metadata"]
        running = self._running.get(uid)
        if running is not None:
            self._look_after(pod, running, deleted=deleted)
        elif deleted:
            self._remove(pod)
        elif pod["status"]["phase"] not in _ENDED and pod["spec"].get("nodeName"):
            self._running[uid] = self._start(pod)
            if self._running[uid].port is None:
                pods.run(self.cluster, pod)

    def _look_after(self, pod: Object, running: _Running, *, deleted: bool) -> None:
        code = running.process.poll()
        if code is None:
            if deleted:
                _ask_to_stop(running, pod)
            elif running.port is not None and not running.ready and _answers(running.port, pod):
                pods.run(self.cluster, pod)
                running.ready = True
            return
        words = running.words.read_bytes()[:TERMINATION_LOG_BYTES].decode(errors="replace")
        pods.finish(self.cluster, pod, exit_code=code if code >= 0 else 128 - code, message=words)
        del self._running[pod["metadata"]["uid"]]
        if deleted:
            self._remove(pod)

    def _remove(self, pod: Object) -> None:
        path = self.cluster.path("Pod", pod["metadata"]["name"], namespace=self.namespace)
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
        self.cluster.request("DELETE", path, body=options, content_type="application/json")

    def _start(self, pod: Object) -> _Running:
        home = self.folder / "pods" / pod["metadata"]["name"]
        (home / "scratch").mkdir(parents=True)
        words = home / "termination-log"
        words.touch()
        places = self._places(pod)
        (container,) = pod["spec"]["containers"]
        module = container["image"].partition(":")[0].replace("-", "_")
        port = free_port() if container.get("ports") else None
        environment = self._environment(pod, container, home=home, places=places)
        _choose_port(home / "run-config.json", port)
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                cwd=home / "scratch",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return _Running(process, words, port)

    def _places(self, pod: Object) -> Mapping[str, Path]:
        """Return the folder behind each mount path of claims and ConfigMaps."""
        (container,) = pod["spec"]["containers"]
        folders: dict[str, Path] = {}
        for volume in pod["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                folders[volume["name"]] = self.volumes / volume["persistentVolumeClaim"]["claimName"]
            elif "configMap" in volume:
                folders[volume["name"]] = self._config_map(volume["configMap"]["name"])
            elif "secret" in volume:
                folders[volume["name"]] = self._secret(volume["secret"]["secretName"])
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        mounts = container["volumeMounts"]
        return {mount["mountPath"]: folders[mount["name"]] for mount in mounts if mount["name"] in folders}

    def _config_map(self, name: str) -> Path:
        folder = self.folder / "config-maps" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in self.cluster.get("ConfigMap", name, self.namespace).get("data", {}).items():
            (folder / file).write_text(text)
        return folder

    def _secret(self, name: str) -> Path:
        folder = self.folder / "secrets" / name
        folder.mkdir(parents=True, exist_ok=True)
        for key, value in self.cluster.get("Secret", name, self.namespace)["data"].items():
            (folder / key).write_bytes(base64.b64decode(value))
        return folder

    def _environment(self, pod: Object, container: Object, *, home: Path, places: Mapping[str, Path]) -> dict[str, str]:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment |= {each["name"]: each["value"] for each in container["env"] if "value" in each}
        environment |= _looked_up(pod, container) | self._meeting(pod, environment)
        environment |= self._secrets(container)
        folders = {name: str(home / "scratch") for name in ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME")}
        environment |= folders | {TERMINATION_LOG_ENV: str(home / "termination-log"), PARENT_ENV: str(os.getpid())}
        told = pod["metadata"]["annotations"][RUN_CONFIG]
        for path, folder in places.items():
            told = told.replace(f'"{path}', f'"{folder}')
        (home / "run-config.json").write_text(told)
        environment[RUN_CONFIG_ENV] = str(home / "run-config.json")
        if PROGRESS_URL_ENV in environment:
            environment |= pods.given_to_report(self.cluster, pod, home)
        return environment

    def _meeting(self, pod: Object, environment: Mapping[str, str]) -> dict[str, str]:
        """Return where the workers of the pod's step meet: what a headless Service says, and a port of this machine."""
        if MASTER_PORT_ENV not in environment:
            return {}
        job = pod["metadata"]["ownerReferences"][0]["uid"]
        return {MASTER_ADDRESS_ENV: "127.0.0.1", MASTER_PORT_ENV: str(self._meetings.setdefault(job, free_port()))}

    def _secrets(self, container: Object) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            secret = self.cluster.get("Secret", source["secretRef"]["name"], self.namespace)
            values = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
            found |= {source.get("prefix", "") + name: value for name, value in values.items()}
        return found


def _looked_up(pod: Object, container: Object) -> dict[str, str]:
    """Return the variables that the pod's own labels give."""
    paths = {
        each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in container["env"] if "valueFrom" in each
    }
    labels = pod["metadata"]["labels"]
    return {name: labels[path.removeprefix("metadata.labels['").removesuffix("']")] for name, path in paths.items()}


def _ask_to_stop(running: _Running, pod: Object) -> None:
    """Send SIGTERM once, after the pod's preStop hook has slept."""
    if running.ends_at is None:
        hook = pod["spec"]["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        running.ends_at = time.monotonic() + hook.get("seconds", 0)
    if not running.told_to_stop and time.monotonic() >= running.ends_at:
        running.told_to_stop = True
        running.process.send_signal(signal.SIGTERM)


def _answers(port: int, pod: Object) -> bool:
    """Whether a server says that it is ready, at the path that its pod names."""
    path = pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).is_success
    except httpx.TransportError:
        return False


def _choose_port(config: Path, port: int | None) -> None:
    if port is not None:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"port": port, "host": "127.0.0.1"}))


@contextmanager
def program_node(cluster: Cluster, namespace: str, *, folder: Path) -> Iterator[ProgramNode]:
    """Run the pods of a namespace as processes while the block runs."""
    node = ProgramNode(cluster, namespace, folder)
    thread = threading.Thread(target=node.run, name="program-node", daemon=True)
    thread.start()
    try:
        yield node
    finally:
        node.stop()
        thread.join(timeout=60)
