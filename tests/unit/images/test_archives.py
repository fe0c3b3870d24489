"""``python -m hack.images archives``: what has changed is built and saved, what is there is left alone."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hack.images.daemon import Daemon, any_docker
from hack.images.docker import ImageError
from hack.images.settings import Settings
from tests.support.fake_docker import FakeDocker, fake_docker
from tests.support.processes import REPOSITORY

GROUPS = {"operator", "relocator", "models", "site"}


@dataclass(frozen=True)
class Saved:
    path: str
    images: dict[str, str]


@dataclass(frozen=True)
class Machine:
    """A machine with a docker command, and a cache of its own."""

    docker: FakeDocker
    cache: Path

    @property
    def folder(self) -> Path:
        return self.cache / "finetuning-operator" / "images"

    def archives(self, **extra: str) -> dict[str, Saved]:
        done = self.run(**extra)
        assert done.returncode == 0, done.stderr
        return {group: Saved(**told) for group, told in json.loads(done.stdout).items()}

    def run(self, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        own = {"DOCKER": self.docker.program, "XDG_CACHE_HOME": str(self.cache), "BUILD_ARGS": "", **extra}
        command = [sys.executable, "-m", "hack.images", *(words or ("archives",))]
        return subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, **own}, check=False, capture_output=True, text=True
        )

    def files(self) -> set[str]:
        return {path.name.rpartition("-")[0] for path in self.folder.iterdir()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(fake_docker(tmp_path / "bin"), tmp_path / "cache")


def test_all_images_are_built_once_and_saved(machine: Machine) -> None:
    told = machine.archives()

    assert machine.docker.built() == [
        *("operator", "relocator-image"),
        *("workload", "trainer-image", "evaluator-image", "server-image"),
        "site",
    ]
    assert set(told) == GROUPS == machine.files()
    assert set(told["models"].images) == {"trainer", "evaluator", "server"}


def test_where_no_image_is_named_all_that_users_run_are_built(machine: Machine) -> None:
    assert machine.run("build").returncode == 0

    assert machine.docker.built() == [
        *("operator", "relocator-image", "workload"),
        *("trainer-image", "evaluator-image", "server-image"),
    ]


def test_an_image_that_does_not_exist_is_told_with_those_that_do(machine: Machine) -> None:
    refused = machine.run("build", "tuner")

    assert refused.returncode == 2
    assert "no image is called 'tuner'; choose from operator, relocator" in refused.stderr


def test_images_that_share_layers_are_saved_together_under_both_names(machine: Machine) -> None:
    told = machine.archives()
    saved = Path(told["models"].path).read_text().split()

    assert {name.partition(":")[0] for name in saved} == {
        "finetuning-trainer",
        "finetuning-evaluator",
        "finetuning-server",
    }
    assert {name for name in saved if ":in-" in name} == set(told["models"].images.values())
    assert len(saved) == 6


def test_what_is_there_needs_no_container_runtime(machine: Machine) -> None:
    first = machine.archives()

    assert machine.archives(DOCKER="/does/not/exist") == first


def test_only_a_missing_archive_is_made_again_and_of_the_images_that_are_there(machine: Machine) -> None:
    told = machine.archives()
    Path(told["operator"].path).unlink()
    machine.docker.forget()

    assert machine.archives() == told
    assert machine.docker.built() == []
    assert [words[0] for words in machine.docker.asked if words[0] == "save"] == ["save"]


def test_another_setting_makes_other_archives_and_the_latest_former_ones_stay(machine: Machine) -> None:
    first = machine.archives()
    for number in range(4):
        other = machine.archives(BUILD_ARGS=f"NUMBER={number}")

        assert other != first
    assert len(list(machine.folder.iterdir())) == 3 * len(GROUPS)


def test_a_failed_build_is_told_and_leaves_no_archive_of_it(tmp_path: Path) -> None:
    machine = Machine(fake_docker(tmp_path / "bin", fails="finetuning-server"), tmp_path / "cache")

    done = machine.run()

    assert done.returncode == 1
    assert "failed with exit code 9" in done.stderr.splitlines()[-1]
    assert machine.files() == {"operator", "relocator"}


def test_without_a_daemon_the_command_that_installs_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    daemon = Daemon(data=tmp_path / "data", run=tmp_path / "run")

    with (
        pytest.raises(ImageError, match=r"none is installed; as root: apt-get install docker\.io"),
        any_docker(Settings(docker="/does/not/exist"), daemon),
    ):
        pytest.fail("there is none")
