"""The docker daemon by hand: builds, answers, and leaves the machine as it was."""

import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hack.cluster.machine import needs_root
from hack.images.daemon import Daemon
from hack.images.docker import Docker, ImageError
from tests.support.needs import lacks_right, require_program

_NOBODY = "unix:///nonexistent/docker.sock"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    if needs_root():
        lacks_right("starting a docker daemon needs root on Linux")
    require_program("dockerd", install="apt-get install docker.io")
    # The path of a socket has room for a hundred characters, and folders of tests may take them all.
    with tempfile.TemporaryDirectory(prefix="dockerd-") as short:
        made = Daemon(data=tmp_path / "data", run=Path(short) / "run")
        yield made
        made.stop()


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A root file system that is enough for a RUN line: a static program that is called sh."""
    program = require_program("busybox", install="apt-get install busybox-static")
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as content:
        content.add(Path(program).resolve(), "bin/sh")
    return archive


def machine(*folders: Path) -> dict[str, list[str]]:
    """Return what a daemon might change on a machine; other links, rules and mounts are other people's."""

    def told(*words: str) -> list[str]:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()

    rules = [line.split(" [")[0] for line in told("iptables-save")]  # Without counters.
    mounts = Path("/proc/mounts").read_text().splitlines()
    return {
        "links": [line.split()[1] for line in told("ip", "-o", "link") if "docker" in line],
        "rules": [line for line in rules if "DOCKER" in line or line.startswith(":FORWARD")],
        "forwarding": told("sysctl", "net.ipv4.ip_forward"),
        "mounts": [line for line in mounts if any(str(folder) in line for folder in folders)],
    }


def test_an_image_is_built_without_a_trace_on_the_machine(daemon: Daemon, busybox: Path, tmp_path: Path) -> None:
    before = machine(tmp_path, daemon.run)
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("ARG BASE\nFROM ${BASE}\nRUN echo built > /told\nUSER 65532:65532\n")

    daemon.start()
    docker = daemon.docker
    subprocess.run([docker.program, "import", str(busybox), "base"], env=docker.environment, check=True)
    docker.build(context, "Dockerfile", arguments={"BASE": "base"}, tags=("made:1", "made:2"))
    with docker.file_system("made:1") as files, tarfile.open(fileobj=files, mode="r|") as content:
        names = {member.name for member in content}

    assert {"bin/sh", "told"} <= names
    assert [docker.has(f"made:{number}") for number in (1, 2, 3)] == [True, True, False]
    assert daemon.stop()
    assert daemon.pid is None
    assert machine(tmp_path, daemon.run) == before


def test_what_was_built_is_there_at_the_next_start(daemon: Daemon, busybox: Path) -> None:
    assert daemon.start()
    docker = daemon.docker
    subprocess.run([docker.program, "import", str(busybox), "base"], env=docker.environment, check=True)
    assert daemon.stop()

    assert daemon.start()
    assert not daemon.start()
    assert docker.has("base")


def test_a_daemon_that_does_not_start_tells_why(daemon: Daemon) -> None:
    daemon.data.write_text("no folder")

    with pytest.raises((ImageError, FileExistsError)):
        daemon.start()
    assert daemon.pid is None


def test_a_daemon_that_does_not_start_leaves_no_mount(daemon: Daemon, tmp_path: Path) -> None:
    without_room = replace(daemon, run=tmp_path / ("r" * 100))  # No socket has so long a path.

    with pytest.raises(ImageError, match="dockerd does not start"):
        without_room.start()
    assert machine(tmp_path)["mounts"] == []


def test_nobody_answers_where_no_daemon_is() -> None:
    assert not Docker(host=_NOBODY).answers()
