"""What a host lacks for a node is told: a right skips, a program fails with the command that installs it."""

import shutil
from pathlib import Path

import pytest
from hack.cluster import machine
from tests.support import real_node as support
from tests.support.real_node import real_node


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A host that has everything and no cluster, with one worker that runs tests."""
    for name in ("KUBECONFIG", "FINETUNING_NODE", "CI", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    monkeypatch.setattr(support, "needs_root", lambda: False)
    return monkeypatch


def test_without_root_the_tests_of_a_node_are_skipped_and_say_so(host: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host.setattr(support, "needs_root", lambda: True)
    with pytest.raises(pytest.skip.Exception, match="needs root"), real_node(tmp_path):
        pass


def test_without_root_they_fail_in_ci(host: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host.setenv("CI", "true")
    host.setattr(support, "needs_root", lambda: True)
    with pytest.raises(pytest.fail.Exception, match="needs root"), real_node(tmp_path):
        pass


def test_a_missing_program_fails_with_the_command_that_installs_it(host: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = {"runc", "ctr", "containerd"}
    host.setattr(shutil, "which", lambda name, **_: None if name in absent else f"/usr/bin/{name}")
    assert machine.missing_means() == "a node needs more programs; as root: apt-get install containerd runc"
    with pytest.raises(pytest.fail.Exception, match="apt-get install containerd runc"), real_node(tmp_path):
        pass


def test_a_cluster_that_is_named_is_used_as_it_is(host: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host.setenv("KUBECONFIG", str(tmp_path / "config"))
    host.setattr(support, "needs_root", lambda: True)
    host.setattr(support, "require_binaries", lambda _: {"kubectl": Path("/usr/bin/kubectl")})
    with real_node(tmp_path / "none") as node:
        assert (node.kubeconfig, node.folder, node.registry) == (tmp_path / "config", None, None)
        with pytest.raises(pytest.skip.Exception, match="not to be taken apart"):
            node.restart("kubelet")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["KUBECONFIG", "FINETUNING_NODE"])
def test_several_workers_are_told_not_to_share_a_cluster(host: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    host.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    host.setenv(name, str(tmp_path / "named"))
    with pytest.raises(pytest.fail.Exception, match="2 workers would install"), real_node(tmp_path):
        pass
