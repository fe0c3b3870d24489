"""A pod starts when the rules for its address hold: the network's plugin asks, the agent answers."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from hack.cluster import addresses
from hack.cluster.addresses import Addresses
from tests.support.processes import wait_until

_PLUGIN = Path(addresses.__file__).with_name("announce.py")
_RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.244.0.9/24"}]}
_ARGUMENTS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=web;K8S_POD_UID=u"


def plugin(command: str, **config: object) -> subprocess.Popen[str]:
    """Start the plugin as a container runtime does."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_PLUGIN)],
        env={**os.environ, "CNI_COMMAND": command, "CNI_ARGS": _ARGUMENTS},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps({"cniVersion": "1.0.0", **config}))
    child.stdin.close()
    child.stdin = None
    return child


def test_a_pod_waits_until_its_address_is_settled(tmp_path: Path) -> None:
    changed = threading.Event()
    told = Addresses(changed)
    told.listen(tmp_path / "s")

    child = plugin("ADD", socket=str(tmp_path / "s"), prevResult=_RESULT)
    assert changed.wait(20)
    count = told.count()
    pod: dict[str, Any] = {"metadata": {"namespace": "a", "name": "web"}, "status": {}}
    told.complete([pod])
    assert child.poll() is None
    told.settle(count)

    output, errors = child.communicate(timeout=20)
    assert (child.returncode, json.loads(output), errors) == (0, _RESULT, "")
    assert pod["status"] == {"podIP": "10.244.0.9"}


def test_rules_of_an_earlier_moment_settle_nothing(tmp_path: Path) -> None:
    changed = threading.Event()
    told = Addresses(changed)
    told.listen(tmp_path / "s")
    earlier = told.count()

    child = plugin("ADD", socket=str(tmp_path / "s"), prevResult=_RESULT)
    wait_until(lambda: told.count() > earlier, what="the plugin has told")
    told.settle(earlier)
    assert child.poll() is None

    told.settle(told.count())
    assert child.wait(20) == 0


def test_what_the_api_says_is_not_overruled_and_what_is_gone_is_forgotten(tmp_path: Path) -> None:
    told = Addresses(threading.Event())
    told.listen(tmp_path / "s")
    child = plugin("ADD", socket=str(tmp_path / "s"), prevResult=_RESULT)
    wait_until(lambda: told.count() == 1, what="the plugin has told")
    told.settle(1)
    assert child.wait(20) == 0

    known: dict[str, Any] = {"metadata": {"namespace": "a", "name": "web"}, "status": {"podIP": "10.244.0.8"}}
    told.complete([known])
    assert known["status"] == {"podIP": "10.244.0.8"}

    told.complete([])
    fresh: dict[str, Any] = {"metadata": {"namespace": "a", "name": "web"}, "status": {}}
    told.complete([fresh])
    assert fresh["status"] == {}


def test_the_plugin_says_what_it_understands_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    versions, _ = plugin("VERSION").communicate(timeout=20)
    assert json.loads(versions) == {"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}
    deleting = plugin("DEL", socket=str(tmp_path / "none"), prevResult=_RESULT)
    assert deleting.communicate(timeout=20) == ("", "")
    assert deleting.returncode == 0
