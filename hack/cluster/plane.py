"""A running control plane: starts the components, keeps them running, and leaves nothing behind."""

import fcntl
import json
import logging
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hack.cluster.components import Component, Layout, Site, fake_nodes, memory_folder

_LOG = logging.getLogger(__name__)
_READY_SECONDS = 120
_PAUSE_SECONDS = 0.1
_VOLUMES = Path("/tmp/hostpath_pv")  # noqa: S108  (where the controller manager puts host-path volumes; not ours to choose)


Design = Callable[..., Layout]
"""``design(folder, data=..., binaries=...)`` says what runs, and writes what it reads."""


class StartError(Exception):
    """A component did not come up; the message names its log."""


@dataclass(frozen=True, slots=True)
class Running:
    """A control plane as other processes find it, by the file ``cluster.json`` of its folder."""

    server: str
    kubeconfig: str
    ca: str
    kubectl: str
    supervisor: int
    """Process that holds the components; SIGTERM ends them all."""
    components: Mapping[str, int]
    """Process of each component, by name."""

    @classmethod
    def find(cls, folder: Path) -> "Running | None":
        """Return the control plane of a folder, or None when none is ready there."""
        try:
            found = cls(**json.loads((folder / "cluster.json").read_text()))
        except FileNotFoundError:
            return None
        return found if is_alive(found.supervisor) else None


class ControlPlane:
    """The components of one control plane as children of this process; a context manager."""

    def __init__(
        self, folder: Path, *, binaries: Mapping[str, Path], design: Design = fake_nodes, holder: int | None = None
    ) -> None:
        self._folder = folder
        self._binaries = binaries
        self._design = design
        self._holder = holder
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._components: dict[str, Component] = {}
        self._site: Site | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def keep(self, *, until: Callable[[], bool]) -> None:
        """Start again what ends, until there is nothing to keep.

        What has a file of its name in the folder ``down`` stays down, for tests of what happens then.
        """
        pause = threading.Event()
        while not until():
            if os.getpid() == 1:
                self._collect_orphans()
            for name, child in list(self._children.items()):
                if child.poll() is not None and not (self._folder / "down" / name).exists():
                    _LOG.warning("%s ended with %s; starting it again", name, child.returncode)
                    self._spawn(self._components[name])
                    self._announce()
            pause.wait(_PAUSE_SECONDS)

    def _collect_orphans(self) -> None:
        """Do what the first process of a machine does: ask those that lost their parents how they ended."""
        own = {child.pid for child in self._children.values()}
        with suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in own:
                os.waitpid(ended.si_pid, 0)

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_data(self._folder)
        data = Path(tempfile.mkdtemp(prefix="finetuning-etcd-", dir=memory_folder(self._folder)))
        (self._folder / "etcd").symlink_to(data)
        layout = self._design(self._folder, data=data, binaries=self._binaries)
        self._site = layout.site
        self._components = {component.name: component for component in (*layout.first, *layout.others)}
        for component in layout.first:
            self._spawn(component)
        self._wait("the API server is ready", self._api_is_ready)
        for command in layout.commands:
            _run(command)
        for component in layout.others:
            self._spawn(component)
        self._wait("pods can be created and placed", self._pods_can_run)
        self._announce()

    def _spawn(self, component: Component) -> None:
        logs = self._folder / "logs"
        logs.mkdir(exist_ok=True)
        launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), str(os.getpid())]
        with (logs / f"{component.name}.log").open("ab") as log:
            self._children[component.name] = subprocess.Popen(
                [*launcher, *component.command],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C in a terminal reaches whoever holds them, not them.
            )

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        pause = threading.Event()
        while not condition():
            for name, child in self._children.items():
                if child.poll() is not None:
                    raise StartError(f"{name} ended with {child.returncode}; see {self._folder}/logs/{name}.log")
            if time.monotonic() > deadline:
                raise StartError(f"not within {_READY_SECONDS} s: {what}; see {self._folder}/logs")
            pause.wait(_PAUSE_SECONDS)

    def _api_is_ready(self) -> bool:
        try:
            return self._get("/readyz") == b"ok"
        except OSError:
            return False

    def _pods_can_run(self) -> bool:
        try:
            self._get("/api/v1/namespaces/default/serviceaccounts/default")
            nodes = self._items("/api/v1/nodes")
            deployments = self._items("/apis/apps/v1/namespaces/kube-system/deployments")
        except OSError:
            return False
        ready = [node for node in nodes if _has_condition(node, "Ready")]
        return len(ready) == len(nodes) > 0 and all(_has_condition(each, "Available") for each in deployments)

    def _items(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self._get(path))["items"]
        return items

    def _get(self, path: str) -> bytes:
        site = self._known_site()
        context = ssl.create_default_context(cafile=site.ca)
        context.load_cert_chain(site.admin.certificate, site.admin.key)
        address = site.server + path
        with urllib.request.urlopen(address, context=context, timeout=5) as answer:  # noqa: S310  (always https)
            content: bytes = answer.read()
        return content

    def _announce(self) -> None:
        site = self._known_site()
        running = Running(
            server=site.server,
            kubeconfig=str(site.kubeconfig),
            ca=str(site.ca),
            kubectl=str(self._binaries["kubectl"]),
            supervisor=self._holder or os.getpid(),
            components={name: child.pid for name, child in self._children.items()},
        )
        aside = self._folder / "cluster.json.new"
        aside.write_text(json.dumps(asdict(running), indent=2))
        aside.replace(self._folder / "cluster.json")

    def _known_site(self) -> Site:
        if self._site is None:
            raise RuntimeError("the control plane was not started")
        return self._site

    def _stop(self) -> None:
        (self._folder / "cluster.json").unlink(missing_ok=True)
        volumes = self._volumes()
        # Nothing of the data is kept, so nothing is asked to end in order; this also ends what a test has paused.
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.wait()
        for path in volumes:
            shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # Somebody else's volumes may lie there.
            _VOLUMES.rmdir()
        if self._site is not None:
            # Not by the link: a test session removes its folders as soon as it ends.
            shutil.rmtree(self._site.data, ignore_errors=True)
        remove_data(self._folder)

    def _volumes(self) -> list[Path]:
        """Return the folders that the controller manager made for claims that still exist."""
        try:
            items = self._items("/api/v1/persistentvolumes")
        except (OSError, HTTPException, ValueError, RuntimeError):
            return []
        paths = [Path(item["spec"].get("hostPath", {}).get("path", "/")) for item in items]
        return [path for path in paths if path.parent == _VOLUMES]


def _run(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StartError(f"`{' '.join(command)}`: {done.stderr.strip()}")


def _has_condition(target: dict[str, Any], kind: str) -> bool:
    conditions = target["status"].get("conditions", [])
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)


def is_alive(process: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:
        # A process that ended stays listed until its parent asks how; for us it is gone.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc/self").exists()


def remove_data(folder: Path) -> None:
    """Remove the data of an etcd that may have ended without doing so."""
    link = folder / "etcd"
    if link.is_symlink():
        shutil.rmtree(link.resolve(), ignore_errors=True)
        link.unlink()


def supervise(folder: Path, *, binaries: Mapping[str, Path], while_used: bool) -> None:
    """Hold a control plane until SIGTERM, or until nobody holds the lock of its users any more."""
    with wanted(folder, while_used=while_used) as is_wanted, ControlPlane(folder, binaries=binaries) as plane:
        plane.keep(until=lambda: not is_wanted())


@contextmanager
def wanted(folder: Path, *, while_used: bool) -> Iterator[Callable[[], bool]]:
    """Tell whether what runs in a folder is still wanted: until SIGTERM, or until its last user has ended."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopped.set())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users").open("a") as users:
        yield lambda: not (stopped.is_set() or (while_used and _is_unused(users.fileno())))


def _is_unused(lock: int) -> bool:
    """Whether no process uses the control plane. From then on new users wait for this process to end."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
