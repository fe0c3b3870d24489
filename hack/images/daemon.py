"""A docker daemon by hand, for machines where none runs: as root, with Debian's docker.io or any other dockerd.

It has no bridge, writes no firewall rule and forwards nothing, so a machine's other networks do not notice it. Build
steps use the machine's own network.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hack.images.docker import Docker, ImageError
from hack.images.settings import Settings

_START_SECONDS = 60
_STOP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Daemon:
    """One daemon and where it keeps what it has; layers stay for the next start."""

    data: Path
    run: Path = Path("/run/finetuning-images")
    """For sockets and process ids; short, because the path of a socket is."""

    @property
    def docker(self) -> Docker:
        """The command that speaks to it."""
        return Docker(host=f"unix://{self.run}/docker.sock", network="host")

    @property
    def pid(self) -> int | None:
        """The process, None where it does not run."""
        try:
            pid = int((self.run / "docker.pid").read_text())
            program = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        except (FileNotFoundError, ValueError):
            return None
        return pid if program == "dockerd" else None

    def start(self) -> bool:
        """Start it and wait until it answers; return whether it did not run before."""
        if self.pid is not None:
            return False
        _require_means()
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.run / "docker.pid").unlink(missing_ok=True)
        with (self.run / "dockerd.log").open("wb") as log:
            child = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if not _within(_START_SECONDS, lambda: child.poll() is not None or self.docker.answers()) or child.poll():
            child.kill()
            child.wait()
            _unmount(self.data)  # It mounts this upon itself before it looks at the rest.
            raise ImageError(f"dockerd does not start:\n{(self.run / 'dockerd.log').read_text()[-2000:]}")
        return True

    def stop(self) -> bool:
        """End it and wait until it is gone; return whether it ran."""
        pid = self.pid
        if pid is None:
            return False
        os.kill(pid, signal.SIGTERM)
        if not _within(_STOP_SECONDS, lambda: _is_gone(pid)):
            raise ImageError(f"dockerd ({pid}) does not end within {_STOP_SECONDS} s")
        _unmount(self.run)
        shutil.rmtree(self.run)
        return True

    def _command(self) -> list[str]:
        return [
            *("dockerd", "--data-root", str(self.data), "--exec-root", f"{self.run}/exec"),
            *("--pidfile", f"{self.run}/docker.pid", "--host", f"unix://{self.run}/docker.sock"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver=overlay2"),
        ]


@contextmanager
def any_docker(settings: Settings, daemon: Daemon) -> Iterator[Docker]:
    """Lend the daemon that the environment names; where none answers, one by hand, for that time."""
    docker = Docker(program=settings.docker, network=settings.network)
    if docker.answers():
        yield docker
        return
    daemon.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (daemon.data / "users").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # Who comes second would find the daemon of the first stopped under its build.
        started = daemon.start()
        try:
            yield daemon.docker
        finally:
            if started:
                daemon.stop()


def _require_means() -> None:
    if shutil.which("dockerd") is None:
        raise ImageError("no docker daemon answers, and none is installed; as root: apt-get install docker.io")
    if os.geteuid() != 0:
        raise ImageError("no docker daemon answers, and starting one needs root")


def _unmount(folder: Path) -> None:
    """Unmount what the daemon leaves in a folder, such as the network namespace that its containers shared."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    for place in sorted((place for place in places if f"{place}/".startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", place], check=False)  # noqa: S607  (where it lies differs)


def _is_gone(pid: int) -> bool:
    """Return whether a process has ended; a child of ours leaves its exit code behind until somebody asks."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return not Path(f"/proc/{pid}").exists()


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (holds := condition()) and time.monotonic() < deadline:
        pause.wait(0.1)
    return holds
