"""Addresses of pods from the moment that they get them: no pod of ours starts before the rules for it hold.

The API tells a pod's address when the pod runs already. The network's last plugin (``announce.py``) tells it before,
and waits.
"""

import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Object = dict[str, Any]
_SECONDS = 30


class Addresses:
    """What the network's plugin has told, and what of it is settled."""

    def __init__(self, changed: threading.Event) -> None:
        self._changed = changed
        self._news = threading.Condition()
        self._told: dict[tuple[str, str], str] = {}
        self._count = 0
        self._settled = 0

    def listen(self, path: Path) -> None:
        """Hear what is told at a socket from now on."""
        path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen(128)
        threading.Thread(target=self._accept, args=(server,), daemon=True).start()

    def count(self) -> int:
        """How much was told so far; what is listed from now on shows these pods."""
        with self._news:
            return self._count

    def complete(self, pods: Sequence[Object]) -> None:
        """Give pods the addresses that the API does not know yet, and forget those of pods that are gone."""
        with self._news:
            found = {(pod["metadata"]["namespace"], pod["metadata"]["name"]): pod for pod in pods}
            self._told = {key: address for key, address in self._told.items() if key in found}
            for key, address in self._told.items():
                found[key]["status"].setdefault("podIP", address)

    def settle(self, count: int) -> None:
        """Let those pods start that were told up to a count: the rules hold for them."""
        with self._news:
            self._settled = count
            self._news.notify_all()

    def _accept(self, server: socket.socket) -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rw") as stream:
            namespace, name, address = json.loads(stream.readline())
            with self._news:
                self._told[namespace, name] = address
                self._count += 1
                mine = self._count
                self._changed.set()
                settled = self._news.wait_for(lambda: self._settled >= mine, timeout=_SECONDS)
            stream.write("settled\n" if settled else "late\n")
