"""The part of a kubelet that an API server asks for logs and forwarded ports, on a node of its own."""

import asyncio
import secrets
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import WSMsgType, web
from tests.support import pods
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.tls import Certificate

_FOLLOW_SECONDS = 0.02
_HOSTNAME = "kubernetes.io/hostname"
_ROOM = {"cpu": "100", "memory": "1Ti", "ephemeral-storage": "1Ti", "pods": "100"}
_DATA, _ERROR = 0, 1


@dataclass(slots=True)
class Kubelet:
    """A node whose pods log what a test says, and whose ports lead to a server of the test."""

    node: str
    logs: dict[str, list[str]] = field(default_factory=dict)
    """Lines by pod name; a follower gets what is added."""
    ended: set[str] = field(default_factory=set)
    """Pods whose log is complete."""
    port: int = 0
    """Where every forwarded port leads on this machine."""

    @property
    def placement(self) -> Object:
        """What ``spec.pod`` says of pods that are to run here."""
        return {"nodeSelector": {_HOSTNAME: self.node}, "tolerations": [{"operator": "Exists"}]}

    async def log(self, request: web.Request) -> web.StreamResponse:
        """Answer as kubelet does: all lines, or the last ones, and with ``follow`` those to come."""
        pod = request.match_info["pod"]
        tail = int(request.query.get("tailLines", len(self.logs[pod])))
        sent = max(0, len(self.logs[pod]) - tail)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            for line in self.logs[pod][sent:]:
                await response.write(f"{line}\n".encode())
                sent += 1
            if "follow" not in request.query or pod in self.ended:
                return response
            await asyncio.sleep(_FOLLOW_SECONDS)

    async def forward(self, request: web.Request) -> web.WebSocketResponse:
        """Carry bytes between a WebSocket with a channel for data and one for errors, and a port of this machine."""
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        wanted = struct.pack("<H", int(request.query["port"]))
        for channel in (_DATA, _ERROR):
            await socket.send_bytes(bytes([channel]) + wanted)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        answers = asyncio.create_task(_carry_answers(reader, socket))
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data[0] == _DATA:
                writer.write(message.data[1:])
        writer.close()
        await answers
        return socket


async def _carry_answers(reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
    while not socket.closed and (data := await reader.read(65536)):
        await socket.send_bytes(bytes([_DATA]) + data)


@contextmanager
def running_kubelet(cluster: Cluster, folder: Path) -> Iterator[Kubelet]:
    """Serve a kubelet and register its node, which takes no pods but those that name it or ask for its placement."""
    kubelet = Kubelet(node=f"kubelet-{secrets.token_hex(4)}")
    with _served(kubelet, Certificate.make(folder)) as port:
        taint = {"key": "tests", "value": "kubelet", "effect": "NoSchedule"}
        annotations, labels = {"kwok.x-k8s.io/node": "fake"}, {_HOSTNAME: kubelet.node}
        metadata = {"name": kubelet.node, "annotations": annotations, "labels": labels}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        made = cluster.create({**node, "spec": {"unschedulable": True, "taints": [taint]}})
        # What plays the fake nodes writes the status of a new one once.
        cluster.wait_for_object("Node", kubelet.node, where=lambda found: has_condition(found, "Ready"))
        address = {"type": "InternalIP", "address": "127.0.0.1"}
        endpoints = {"kubeletEndpoint": {"Port": port}}
        status = {"addresses": [address], "daemonEndpoints": endpoints, "capacity": _ROOM, "allocatable": _ROOM}
        cluster.patch(made, {"status": status}, subresource="status")
        try:
            yield kubelet
        finally:
            cluster.delete(made)


def make_pod(cluster: Cluster, kubelet: Kubelet, manifest: Object) -> Object:
    """Make a pod on the kubelet's node and let it run."""
    metadata, spec = manifest["metadata"], pods.restricted_spec() | {"nodeName": kubelet.node}
    kubelet.logs[metadata["name"]] = []
    made = cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return pods.run(cluster, made)


@contextmanager
def _served(kubelet: Kubelet, certificate: Certificate) -> Iterator[int]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", kubelet.log)
    app.router.add_get("/portForward/{namespace}/{pod}", kubelet.forward)
    runner = web.AppRunner(app, shutdown_timeout=0)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context())
        await site.start()
        port: int = runner.addresses[0][1]
        return port

    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
