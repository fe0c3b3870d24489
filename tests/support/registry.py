"""Registries on loopback: Debian's docker-registry, and a small one of our own that can misbehave."""

import base64
import hashlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import httpx2
import oras.client
from tests.support.loopback import Answer, LoopbackServer, Seen

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_START_SECONDS = 30


@contextmanager
def docker_registry(program: str, *, folder: Path) -> Iterator[str]:
    """Run Debian's docker-registry on a free port; yields its host and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "registry.json"  # JSON is YAML.
    storage = {"filesystem": {"rootdirectory": str(folder / "storage")}}
    config.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": address}}))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
        try:
            _wait_until_it_answers(f"http://{address}/v2/", process)
            yield address
        finally:
            process.terminate()
            process.wait()


def _wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx2.get(url)
        except httpx2.TransportError:
            time.sleep(0.05)
            continue
        return
    message = f"the registry at {url} does not answer"
    raise RuntimeError(message)


def push(address: str, name: str, files: Mapping[str, bytes], *, folder: Path) -> str:
    """Push files as an artifact with the oras client and return the digest of its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        (folder / path).write_bytes(data)
    client = oras.client.OrasClient(hostname=address, insecure=True)
    answer = client.push(
        target=f"{address}/{name}",
        files=[f"{folder / path}:application/octet-stream" for path in files],
        disable_path_validation=True,
    )
    return str(answer.headers["Docker-Content-Digest"])


class SmallRegistry(LoopbackServer):
    """As much of a registry as pulling needs: manifests by tag and digest, blobs in parts, and a login."""

    def __init__(self, *, login: tuple[str, str] | None = None) -> None:
        super().__init__(self._answer)
        self._login = login
        self._manifests: dict[tuple[str, str], bytes] = {}
        self._blobs: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        """Host and port."""
        return self.url.removeprefix("http://")

    def add(self, name: str, tag: str, files: Mapping[str, bytes], **annotations: str) -> str:
        """Add an artifact and return the digest of its manifest; ``annotations`` go onto every layer."""
        layers = []
        for path, data in files.items():
            self._blobs[_digest(data)] = data
            notes = {"org.opencontainers.image.title": path, **annotations}
            layers.append(
                {"mediaType": "application/octet-stream", "digest": _digest(data), "size": len(data)}
                | {"annotations": notes}
            )
        manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": layers}).encode()
        for reference in (tag, _digest(manifest)):
            self._manifests[name, reference] = manifest
        return _digest(manifest)

    def blob_path(self, name: str, data: bytes) -> str:
        """Return the path of a blob."""
        return f"/v2/{name}/blobs/{_digest(data)}"

    def _answer(self, seen: Seen) -> Answer:
        if self._login is not None:
            expected = base64.b64encode(":".join(self._login).encode()).decode()
            if seen.headers.get("authorization") != f"Basic {expected}":
                headers = {"WWW-Authenticate": 'Basic realm="registry"'}
                return Answer(status=HTTPStatus.UNAUTHORIZED, headers=headers)
        if seen.path == "/v2/":
            return Answer(body=b"{}")
        name, kind, reference = seen.path.removeprefix("/v2/").rsplit("/", maxsplit=2)
        if kind == "manifests" and (name, reference) in self._manifests:
            return Answer(body=self._manifests[name, reference], headers={"Content-Type": MANIFEST_TYPE})
        if kind == "blobs" and reference in self._blobs:
            return Answer(body=self._blobs[reference], ranges=True)
        known = any(held == name for held, _ in self._manifests)
        code = "MANIFEST_UNKNOWN" if known else "NAME_UNKNOWN"
        return Answer(body=json.dumps({"errors": [{"code": code}]}).encode(), status=HTTPStatus.NOT_FOUND)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
