"""Inside a pod: what can be reached from it, what is mounted and can be written; and the processes that it is."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

from tests.support.cluster import Cluster, Object
from tests.support.pods import restricted_spec

OPEN = "open"
"""What ``reach`` says of an address that answered."""
_REACH = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def tried(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        return type(error).__name__
    return "open"
addresses = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(addresses)) as all_at_once:
    print(json.dumps(dict(zip(addresses, all_at_once.map(tried, addresses.values())))))
"""
_WRITE = """
import errno, json, os, sys
def tried(folder):
    path = os.path.join(folder, "written-by-a-test")
    try:
        with open(path, "w"):
            pass
    except OSError as error:
        return errno.errorcode[error.errno]
    os.remove(path)
    return "written"
print(json.dumps({folder: tried(folder) for folder in json.loads(sys.argv[1])}))
"""
_MOUNTS = """
import json
mounts = [line.split() for line in open("/proc/self/mountinfo")]
print(json.dumps({mount[4]: mount[5].split(",")[0] for mount in mounts}))
"""
_LISTEN = """
import signal, socket, sys
signal.alarm(120)
listening = socket.create_server(("", int(sys.argv[1])))
while True:
    listening.accept()[0].close()
"""


@dataclass(frozen=True, slots=True)
class Inside:
    """The container of a running pod."""

    cluster: Cluster
    namespace: str
    pod: str

    def python(self, code: str, *arguments: str) -> Any:  # noqa: ANN401  (what the code prints as JSON)
        """Run a piece of Python there and return what it prints."""
        return json.loads(self.cluster.kubectl(*self._exec(code, arguments)).stdout)

    def reach(self, addresses: Mapping[str, str]) -> dict[str, str]:
        """Return what became of a connection to each ``host:port``, by its name: OPEN or the kind of error."""
        found: dict[str, str] = self.python(_REACH, json.dumps(dict(addresses)))
        return found

    def write(self, folders: Iterable[str]) -> dict[str, str]:
        """Return by folder ``written``, or the name of the error with which a file could not be made."""
        found: dict[str, str] = self.python(_WRITE, json.dumps(list(folders)))
        return found

    def mounts(self) -> dict[str, str]:
        """Return by folder how it is mounted: ``ro`` or ``rw``."""
        found: dict[str, str] = self.python(_MOUNTS)
        return found

    @contextmanager
    def listening(self, port: int) -> Iterator[None]:
        """Have something listen on a port there while the block runs, as a program does that nobody expects to."""
        kubectl = (str(self.cluster.program), f"--kubeconfig={self.cluster.kubeconfig}")
        command = (*kubectl, *self._exec(_LISTEN, (str(port),)))
        with Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL) as process:
            try:
                here = {"itself": f"127.0.0.1:{port}"}
                self.cluster.wait_for(
                    lambda: self.reach(here) == {"itself": OPEN}, what=f"{self.pod} listens on {port}"
                )
                yield
            finally:
                process.terminate()

    def _exec(self, code: str, arguments: Iterable[str]) -> tuple[str, ...]:
        return ("exec", "-n", self.namespace, self.pod, "--", *_python(code, arguments))


def _python(code: str, arguments: Iterable[str]) -> tuple[str, ...]:
    return ("python", "-c", code, *arguments)


def visitor(
    namespace: str,
    name: str,
    *,
    image: str,
    labels: Mapping[str, str] | None = None,
    user: int = 65532,
    claims: Mapping[str, str] | None = None,
) -> Object:
    """Return a pod of somebody else that only waits, with claims at their places; it may write to nothing but these."""
    spec = restricted_spec()
    volumes = [{"name": "tmp", "emptyDir": {}}]
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108  (the pod's own)
    for number, (claim, path) in enumerate((claims or {}).items()):
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"claim-{number}", "mountPath": path})
    (container,) = spec["containers"]
    container["securityContext"]["readOnlyRootFilesystem"] = True
    container |= {"image": image, "imagePullPolicy": "IfNotPresent", "volumeMounts": mounts}
    container["command"] = [*_python("import signal; signal.pause()", ())]
    spec |= {"volumes": volumes, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False}
    spec["securityContext"] |= {"runAsUser": user, "fsGroup": user}
    metadata = {"name": name, "namespace": namespace, "labels": dict(labels or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def processes_of(pod: Object) -> list[int]:
    """Return the processes of a pod's programs, as this machine numbers them: its node must be one of ours."""
    mark = f"pod{pod['metadata']['uid']}"
    found = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in found if mark in _read(pid, "cgroup") and "python" in _read(pid, "cmdline")]


def _read(pid: int, file: str) -> str:
    try:
        return Path(f"/proc/{pid}/{file}").read_text(errors="replace")
    except OSError:
        return ""  # It ended meanwhile.
