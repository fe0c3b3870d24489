"""A machine of its own inside this one: namespaces of network, mounts and processes, and cgroups of its own.

Everything that a node starts, mounts or connects lives in these namespaces. They end with their first process, and that
ends with the process that holds them, so nothing has to be undone step by step, whatever dies first.
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hack.cluster.plane import StartError, is_alive, remove_data

_LOG = logging.getLogger(__name__)
_CGROUPS = Path("/sys/fs/cgroup")
_NUMBERS = range(64)
_WAIT_SECONDS = 60
_BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "docker-registry": "docker-registry",
    "ip": "iproute2",
    "iptables-restore": "iptables",
    "nsenter": "util-linux",
    "runc": "runc",
    "unshare": "util-linux",
}
_MADE = ("/var/lib/kubelet", "/var/lib/cni")
"""Folders that programs of a node insist on and that a host may lack: made empty, and removed when they are left so."""
_COVERED = (*_MADE, "/var/log")
"""Folders in whose place the node has its own."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Machine:
    """What belongs to one node on this host, named by its number."""

    number: int

    @property
    def cgroup(self) -> str:
        """Its cgroup, below the root of every hierarchy."""
        return f"finetuning-node-{self.number}"

    @property
    def link(self) -> str:
        """The host's end of the cable to it."""
        return f"ftnode{self.number}"

    @property
    def host_address(self) -> str:
        """The host, as the node sees it."""
        return f"10.231.{self.number}.1"

    @property
    def address(self) -> str:
        """The node, as the host sees it."""
        return f"10.231.{self.number}.2"


@dataclass(frozen=True, slots=True)
class Held:
    """A machine as other processes find it, by the file ``machine.json`` of its folder."""

    number: int
    process: int
    """The process of this host whose child is the machine's first."""

    @classmethod
    def find(cls, folder: Path) -> "Held | None":
        """Return what is known of the machine of a folder, whether it still runs or not."""
        try:
            return cls(**json.loads((folder / "machine.json").read_text()))
        except FileNotFoundError:
            return None

    def command(self, *command: str) -> list[str]:
        """Return what runs a command in it."""
        nsenter = str(shutil.which("nsenter", path=SYSTEM_PATH))
        processes = f"--pid=/proc/{self.process}/ns/pid_for_children"
        return [nsenter, f"--target={self.process}", "--net", "--mount", processes, "--", *command]

    def load_image(self, archive: Path) -> str:
        """Give the node an image, as ``docker save`` writes it; return what was said."""
        load = self.command("ctr", "--namespace=k8s.io", "images", "import", "-")
        with archive.open("rb") as content:
            done = subprocess.run(load, stdin=content, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StartError(f"{archive}: {done.stderr.strip()}")
        return done.stdout.strip()


def needs_root() -> bool:
    """Whether this process lacks the rights that a node needs."""
    return sys.platform != "linux" or os.geteuid() != 0


def missing_means() -> str:
    """Return which programs of a node this host lacks, and how to get them; empty if none."""
    missing = {package for program, package in _PACKAGES.items() if shutil.which(program, path=SYSTEM_PATH) is None}
    return f"a node needs more programs; as root: apt-get install {' '.join(sorted(missing))}" if missing else ""


def hold(folder: Path, *, is_wanted: Callable[[], bool]) -> None:
    """Make a machine with ``python -m hack.cluster inside`` as its first process, and keep it while it is wanted."""
    os.environ["PATH"] = SYSTEM_PATH
    with _claimed(Held.find(folder)) as machine:
        _clean(machine, folder)
        _make_cgroups(machine)
        if not _BRIDGED.exists():
            _succeeds("modprobe", "br_netfilter")
        first = _start_inside(machine, folder)
        try:
            _connect(machine, first.pid)
            held = Held(number=machine.number, process=first.pid)
            (folder / "machine.json").write_text(json.dumps(asdict(held)))
            pause = threading.Event()
            while first.poll() is None and is_wanted():
                pause.wait(0.1)
            if first.poll() is not None:
                raise StartError(f"the node ended with {first.returncode}")
        finally:
            inside = _children_of(first.pid)
            first.kill()
            first.wait()
            _wait(lambda: not any(is_alive(process) for process in inside), what="every process of the node has ended")
            _clean(machine, folder)


def clean_up(folder: Path) -> None:
    """Remove what is left of the machine of a folder when its holder was killed."""
    former = Held.find(folder)
    if former is not None:
        with _claimed(former) as machine:
            if machine.number == former.number:
                _clean(machine, folder)


def enter(folder: Path, machine: Machine) -> None:
    """Make this machine look to its programs like any other; called by its first process."""
    os.environ["PATH"] = SYSTEM_PATH
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]  # There is no way out of here.
    _run("mount", "--make-rshared", "/")
    for place in _COVERED:
        own = folder / "data" / Path(place).name
        own.mkdir(parents=True)
        _run("mount", "--bind", str(own), place)
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    _wait(lambda: _succeeds("ip", "link", "show", "eth0"), what="the cable to the host is there")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", f"{machine.address}/30", "dev", "eth0")
    _run("ip", "link", "set", "eth0", "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


@contextmanager
def _claimed(former: Held | None) -> Iterator[Machine]:
    """Take a number that no node on this host has, the one of the folder's former node if possible."""
    with socket.socket(socket.AF_UNIX) as claim:
        for number in (former.number, *_NUMBERS) if former else _NUMBERS:
            # A name without a file: it is free again when its holder ends, in whatever way.
            with suppress(OSError):
                claim.bind(f"\0{Machine(number).cgroup}")
                yield Machine(number)
                return
    raise StartError(f"{len(_NUMBERS)} nodes run on this host already")


def _start_inside(machine: Machine, folder: Path) -> subprocess.Popen[bytes]:
    for place in _MADE:
        Path(place).mkdir(parents=True, exist_ok=True)
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), str(os.getpid())]
    unshare = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    first = [sys.executable, "-m", "hack.cluster", "inside", f"--state={folder}"]
    about = [f"--number={machine.number}", f"--holder={os.getpid()}"]
    program = str(shutil.which("unshare", path=SYSTEM_PATH))
    return subprocess.Popen([*launcher, program, *unshare, *first, *about])


def _children_of(process: int) -> list[int]:
    """Return the children of a process. The first process of a machine ends when all others of it have."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # One that ends meanwhile.
            parent = entry.read_text().rpartition(")")[2].split()[1]
            if int(parent) == process:
                found.append(int(entry.parent.name))
    return found


def _connect(machine: Machine, process: int) -> None:
    """Lay a cable between the host and the network of a process that is about to have one."""
    own, other = Path("/proc/self/ns/net"), Path(f"/proc/{process}/ns/net")
    _wait(lambda: not other.samefile(own), what="the node has a network")
    _run("ip", "link", "add", machine.link, "type", "veth", "peer", "name", "eth0", "netns", str(process))
    _run("ip", "address", "add", f"{machine.host_address}/30", "dev", machine.link)
    _run("ip", "link", "set", machine.link, "up")


def _clean(machine: Machine, folder: Path) -> None:
    """Remove what outlives the processes of a machine: its cgroups and its data."""
    cgroups = _cgroup_folders(machine)
    _wait(lambda: all(_is_removed(path) for path in cgroups), what=f"no process is in {machine.cgroup}")
    # The cable ends with its network, and that with its last connection: one to a pod that is gone is given up late.
    _succeeds("ip", "link", "delete", machine.link)
    (folder / "machine.json").unlink(missing_ok=True)
    remove_data(folder)
    shutil.rmtree(folder / "data", ignore_errors=True)
    for place in _MADE:
        with suppress(OSError):  # Somebody else's files may lie there.
            Path(place).rmdir()


def _cgroup_folders(machine: Machine) -> list[Path]:
    """Return the machine's folder of every hierarchy: of the only one, or of each controller."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS / machine.cgroup]
    return [path / machine.cgroup for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _make_cgroups(machine: Machine) -> None:
    unified = _CGROUPS / "cgroup.subtree_control"
    if unified.exists():
        # Else the kubelet finds controllers missing in the one that it is given.
        controllers = (_CGROUPS / "cgroup.controllers").read_text().split()
        with suppress(OSError):  # The kubelet then says what it lacks.
            unified.write_text(" ".join(f"+{name}" for name in controllers))
    for path in _cgroup_folders(machine):
        path.mkdir()


def _is_removed(cgroup: Path) -> bool:
    """Remove a cgroup and those below; those of processes that are about to end stay."""
    for path, _, _ in os.walk(cgroup, topdown=False):
        with suppress(OSError):
            Path(path).rmdir()
    return not cgroup.exists()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StartError(f"`{' '.join(command)}`: {done.stderr.strip()}")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _wait(condition: Callable[[], bool], *, what: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise StartError(f"not within {_WAIT_SECONDS} s: {what}")
        pause.wait(0.05)
