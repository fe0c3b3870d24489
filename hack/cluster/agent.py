"""What a node does beside its kubelet: it makes volumes for claims, and enforces network policies.

``python -m hack.cluster.agent --kubeconfig FILE --volumes FOLDER --socket FILE --node NAME``
"""

import argparse
import logging
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import yaml
from hack.cluster import network_policy, volumes
from hack.cluster.addresses import Addresses

from finetuning_operator.reconcile.quantities import parse_quantity

Object = dict[str, Any]
_LOG = logging.getLogger(__name__)
_SECONDS = 10
_PATHS = {
    "pods": "/api/v1/pods",
    "namespaces": "/api/v1/namespaces",
    "policies": "/apis/networking.k8s.io/v1/networkpolicies",
    "claims": "/api/v1/persistentvolumeclaims",
    "volumes": "/api/v1/persistentvolumes",
    "classes": "/apis/storage.k8s.io/v1/storageclasses",
}


class CommandFailed(Exception):
    """A program of the node refused."""


class Agent:
    """Brings a node to what the API says, whenever that changes."""

    def __init__(self, api: httpx.Client, *, place: volumes.Place) -> None:
        self._api = api
        self._place = place
        self._rules = ""
        self._changed = threading.Event()
        self._addresses = Addresses(self._changed)

    def run(self, announcements: Path) -> None:
        """Work until the process ends; at a socket it hears of new addresses."""
        _hook()
        self._addresses.listen(announcements)
        for path in _PATHS.values():
            threading.Thread(target=self._watch, args=(path,), daemon=True).start()
        while True:
            self._changed.clear()
            try:
                self._work()
            except (httpx.HTTPError, OSError, CommandFailed):
                _LOG.exception("not done; tried again at the next change, or soon")
            self._changed.wait(_SECONDS)

    def _watch(self, path: str) -> None:
        """Tell of every change of a kind; what it is, the next look shows."""
        pause = threading.Event()
        while True:
            try:
                with self._api.stream("GET", path, params={"watch": "1"}, timeout=None) as answer:
                    for _ in answer.iter_lines():
                        self._changed.set()
            except httpx.HTTPError as error:
                _LOG.info("%s: %r", path, error)
            pause.wait(1)

    def _work(self) -> None:
        told = self._addresses.count()
        found = {name: self._list(path) for name, path in _PATHS.items()}
        self._addresses.complete(found["pods"])
        state = network_policy.State(found["pods"], found["namespaces"], found["policies"])
        self._enforce(network_policy.render(state))
        self._addresses.settle(told)
        classes = {each["metadata"]["name"]: each for each in found["classes"]}
        for wish in volumes.wanted(found["claims"], found["volumes"], classes=classes, place=self._place):
            _make(wish)
            _check(self._api.post(_PATHS["volumes"], json=wish.volume), unless=httpx.codes.CONFLICT)
        for volume in volumes.unwanted(found["volumes"]):
            _remove(volumes.path_of(volume))
            path = f"{_PATHS['volumes']}/{volume['metadata']['name']}"
            _check(self._api.delete(path), unless=httpx.codes.NOT_FOUND)

    def _enforce(self, rules: str) -> None:
        if rules != self._rules:
            _run("iptables-restore", "--noflush", "--wait", text=rules)
            self._rules = rules

    def _list(self, path: str) -> list[Object]:
        answer = self._api.get(path, params={"resourceVersion": "0"}).raise_for_status()
        items: list[Object] = answer.json()["items"]
        return items


def main(arguments: list[str]) -> None:
    """Run the agent of a node."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--volumes", type=Path, required=True, help="where volumes are made")
    parser.add_argument("--socket", type=Path, required=True, help="where the network tells of new addresses")
    parser.add_argument("--node", required=True, help="the node's name")
    options = parser.parse_args(arguments)
    options.volumes.mkdir(exist_ok=True)
    place = volumes.Place(node=options.node, folder=options.volumes)
    with _client(yaml.safe_load(options.kubeconfig.read_text())) as api:
        Agent(api, place=place).run(options.socket)


def _client(kubeconfig: Mapping[str, Any]) -> httpx.Client:
    target, user = kubeconfig["clusters"][0]["cluster"], kubeconfig["users"][0]["user"]
    context = ssl.create_default_context(cafile=target["certificate-authority"])
    context.load_cert_chain(user["client-certificate"], user["client-key"])
    return httpx.Client(base_url=target["server"], verify=context, timeout=_SECONDS)


def _hook() -> None:
    """Let packets pass through our rules, which allow everything at first."""
    table = ("iptables", "--wait", "--table", network_policy.TABLE)
    with suppress(CommandFailed):  # It is there when the agent was started again.
        _run(*table, "--new-chain", network_policy.HOOK)
        for chain in ("FORWARD", "INPUT"):
            _run(*table, "--insert", chain, "--jump", network_policy.HOOK)


def _run(*command: str, text: str | None = None) -> None:
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(f"`{' '.join(command)}`: {done.stderr.strip()}")


def _check(answer: httpx.Response, *, unless: httpx.codes) -> None:
    """Raise for an answer that is no success, but for the one that says that it was done before."""
    if answer.status_code != unless:
        answer.raise_for_status()


def _make(wish: volumes.Wish) -> None:
    wish.path.mkdir(exist_ok=True)
    if wish.limited and not wish.path.is_mount():
        size = int(parse_quantity(wish.size))
        options = f"size={size},mode=755"
        _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(wish.path))


def _remove(path: Path) -> None:
    if path.is_mount():
        _run("umount", str(path))
    shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
