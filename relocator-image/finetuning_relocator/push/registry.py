"""To a registry: an artifact as ORAS makes them, one layer a file, which ``oci://`` brings back."""

import hashlib
import io
import json
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import oras.utils

from finetuning_api.reasons import Reason
from finetuning_relocator.faults import unavailable
from finetuning_relocator.sources.registry import MANIFEST_TYPE, TITLE, RegistrySource
from finetuning_workload.artifact import Manifest, ManifestFile
from finetuning_workload.errors import UserError

ARTIFACT_TYPE: Final = "application/vnd.finetuning-operator.artifact.v1"
_LAYER_TYPE: Final = "application/octet-stream"
_EMPTY: Final = b"{}"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
"""What the OCI image specification wants as the configuration of what is no image."""
_SOURCE: Final = "org.opencontainers.image.base.name"
_FORMAT: Final = "dev.finetuning.format"


class _Told(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None]) -> None:
        super().__init__(path)
        self._on_bytes = on_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._on_bytes(len(data))
        return data


class RegistryDestination(RegistrySource):
    """One name and tag of a registry."""

    def push(self, folder: Path, manifest: Manifest, on_bytes: Callable[[int], None]) -> str:
        """Push the files that the registry lacks, then the manifest; return the digest of the manifest.

        The manifest holds nothing of the time or the machine: the same files give the same digest.
        """
        if self._reference.startswith("sha256:"):
            message = f"{self._what} names a digest, which follows from what is pushed"
            raise UserError(Reason.INVALID_SPEC, message, "Name a tag: oci://registry/repository:tag")
        with self._explained():
            self._choose_authentication()
            layers = [self._layer(folder, file, on_bytes) for file in manifest.files]
            if not self._has(_digest(_EMPTY)):
                self._put(io.BytesIO(_EMPTY), digest=_digest(_EMPTY), size=len(_EMPTY))
            body = {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": ARTIFACT_TYPE,
                "config": {"mediaType": _EMPTY_TYPE, "digest": _digest(_EMPTY), "size": len(_EMPTY)},
                "layers": layers,
                "annotations": {_SOURCE: manifest.source, _FORMAT: manifest.format},
            }
            return self._put_manifest(json.dumps(body, sort_keys=True).encode())

    def _layer(self, folder: Path, file: ManifestFile, on_bytes: Callable[[int], None]) -> dict[str, Any]:
        digest = f"sha256:{file.sha256}"
        if not self._has(digest):
            with _Told(folder / file.path, on_bytes) as stream:
                self._put(stream, digest=digest, size=file.size)
        return {
            "mediaType": _LAYER_TYPE,
            "digest": digest,
            "size": file.size,
            "annotations": {TITLE: file.path},
        }

    def _has(self, digest: str) -> bool:
        response = self._client.do_request(f"{self._client.prefix}://{self._container.get_blob_url(digest)}", "HEAD")
        if response.status_code != HTTPStatus.NOT_FOUND:
            self._require_success(response)
        return bool(response.status_code == HTTPStatus.OK)

    def _put(self, stream: io.RawIOBase | io.BytesIO, *, digest: str, size: int) -> None:
        """Send a blob in one request, without holding it in memory."""
        url = f"{self._client.prefix}://{self._container.upload_blob_url()}"
        opened = self._client.do_request(url, "POST", headers={"Content-Length": "0"})
        self._require_success(opened)
        session = self._client._get_location(opened, self._container)  # noqa: SLF001  (relative ones are made whole there only)
        if not session:
            raise unavailable(self._host, "it does not say where to send a blob to")
        headers = {"Content-Length": str(size), "Content-Type": _LAYER_TYPE}
        target = oras.utils.append_url_params(session, {"digest": digest})
        self._require_success(self._client.do_request(target, "PUT", data=stream, headers=headers))

    def _put_manifest(self, body: bytes) -> str:
        url = f"{self._client.prefix}://{self._container.manifest_url()}"
        response = self._client.do_request(url, "PUT", data=body, headers={"Content-Type": MANIFEST_TYPE})
        self._require_success(response)
        return _digest(body)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
