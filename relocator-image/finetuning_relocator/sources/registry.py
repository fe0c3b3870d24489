"""``oci://``: files that were pushed to a registry as an ORAS artifact, through the oras client."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import oras.auth
import oras.provider
import requests
from requests.adapters import HTTPAdapter

from finetuning_api.reasons import Reason
from finetuning_relocator.faults import authentication_required, from_status, revision_not_found, unreachable
from finetuning_relocator.sources.base import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    Block,
    ConnectionCut,
    Listing,
    RemoteFile,
    Request,
    Source,
)
from finetuning_workload.errors import EnvironmentFault, UserError

USER_KEYS = ("USERNAME", "username")
PASSWORD_KEYS = ("PASSWORD", "password")
DOCKER_CONFIG_KEY = ".dockerconfigjson"
_PIECE_BYTES = 1 << 16  # What a cut connection loses: requests gives whole pieces only.
TITLE = "org.opencontainers.image.title"
_UNPACK = "io.deis.oras.content.unpack"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_MANIFEST_TYPES = (MANIFEST_TYPE, "application/vnd.oci.artifact.manifest.v1+json")
_UNREACHABLE = (
    requests.exceptions.ConnectTimeout,
    requests.exceptions.SSLError,
    requests.exceptions.ProxyError,
)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class _Registry(oras.provider.Registry):  # type: ignore[misc]  # oras ships no type hints.
    """The oras client, without its own retries: they wait for minutes where there is no network."""

    def do_request(self, url: str, method: str = "GET", **options: Any) -> requests.Response:  # noqa: ANN401
        """Send one request, with the client's own authentication."""
        response: requests.Response = oras.provider.Registry.do_request.__wrapped__(self, url, method, **options)
        return response


class _Limits(HTTPAdapter):
    """Gives every request of the client the limits that it lacks."""

    def __init__(self, read_seconds: float) -> None:
        super().__init__()
        self._timeout = (CONNECT_SECONDS, read_seconds)

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]  # noqa: ANN401
        """Send with limits; redirects and proxies stay as they are."""
        return super().send(request, **{**options, "timeout": options.get("timeout") or self._timeout})


class RegistrySource(Source):
    """One artifact of a registry: its layers are files, named by their title."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._what = request.parsed.canonical
        host, name, reference = _parts(request)
        plain = _is_plain(request.ref.endpoint, host)
        self._host, self._reference = host, reference
        self._client = _Registry(hostname=host, insecure=plain, auth_backend="token")
        self._client.session.mount("http://", _Limits(request.read_seconds))
        self._client.session.mount("https://", _Limits(request.read_seconds))
        separator = "@" if reference.startswith("sha256:") else ":"
        self._container = self._client.get_container(f"{host}/{name}{separator}{reference}")
        self._login = _login(request, host)
        if self._login is not None:
            self._client.auth.set_basic_auth(*self._login)

    def list_files(self) -> Listing:
        """Fetch the manifest, check it against a pinned digest, and list its titled layers."""
        body = self._manifest()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if self._reference.startswith("sha256:") and digest != self._reference:
            message = f"the manifest of {self._what} is {digest}, not {self._reference}"
            raise EnvironmentFault(Reason.CHECKSUM_MISMATCH, message, "The registry returned another manifest.")
        manifest: dict[str, Any] = json.loads(body)
        if "manifests" in manifest:
            message = f"{self._what} is an index of several artifacts"
            raise UserError(Reason.UNSUPPORTED, message, "Pin one of them by its digest.")
        layers = manifest.get("layers") or manifest.get("blobs") or []
        files = tuple(self._announced(layer) for layer in layers)
        return Listing(files=files, resolved_revision=digest)

    def _manifest(self) -> bytes:
        url = f"{self._client.prefix}://{self._container.manifest_url()}"
        with self._explained():
            self._choose_authentication()
            response = self._client.do_request(url, headers={"Accept": ", ".join(_MANIFEST_TYPES)})
            if response.status_code == HTTPStatus.NOT_FOUND and "MANIFEST_UNKNOWN" in response.text:
                raise revision_not_found(self._what, self._reference)
            self._require_success(response)
            return response.content

    def _choose_authentication(self) -> None:
        """Ask the registry how it wants to be asked; the client itself handles tokens only."""
        response = self._client.session.get(
            f"{self._client.prefix}://{self._host}/v2/", timeout=(CONNECT_SECONDS, ANSWER_SECONDS)
        )
        if not response.headers.get("Www-Authenticate", "").lower().startswith("basic"):
            return
        if self._login is None:
            raise authentication_required(self._what, self._request.credentials, "USERNAME", "PASSWORD")
        self._client.session.auth = self._login

    def _announced(self, layer: Mapping[str, Any]) -> RemoteFile:
        annotations = layer.get("annotations") or {}
        title = annotations.get(TITLE)
        if title is None or annotations.get(_UNPACK) == "true":
            problem = "is a packed folder" if title else f"has no title ({layer.get('mediaType')})"
            message = f"a layer of {self._what} {problem}: {title or layer.get('digest')}"
            raise UserError(Reason.UNSUPPORTED, message, "Push files one by one: oras push NAME model.safetensors ...")
        algorithm, _, value = str(layer["digest"]).partition(":")
        return RemoteFile(
            path=title, key=layer["digest"], size=layer["size"], sha256=value if algorithm == "sha256" else None
        )

    def read(self, file: RemoteFile, *, offset: int) -> Iterator[Block]:
        """Stream a blob, from a position on where the registry can."""
        url = f"{self._client.prefix}://{self._container.get_blob_url(file.key)}"
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        with self._explained(), self._client.do_request(url, headers=headers, stream=True) as response:
            self._require_success(response)
            position = offset if response.status_code == HTTPStatus.PARTIAL_CONTENT else 0
            for data in response.iter_content(_PIECE_BYTES):
                yield Block(position, data)
                position += len(data)

    def _require_success(self, response: requests.Response) -> None:
        keys = ("USERNAME", "PASSWORD")
        failure = from_status(response.status_code, what=self._what, credentials=self._request.credentials, keys=keys)
        if failure is not None:
            raise failure

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the client raises into faults; it raises ValueError where it cannot authenticate."""
        try:
            yield
        except (
            requests.exceptions.ConnectTimeout,
            requests.exceptions.SSLError,
            requests.exceptions.ProxyError,
        ) as error:
            raise unreachable(self._host, _cause(error)) from error
        except requests.exceptions.ConnectionError as error:
            if "Failed to establish a new connection" in str(error) or "NameResolutionError" in str(error):
                raise unreachable(self._host, _cause(error)) from error
            raise ConnectionCut(str(error)) from error
        except requests.exceptions.RequestException as error:
            raise ConnectionCut(str(error)) from error
        except (oras.auth.AuthenticationException, ValueError) as error:
            raise authentication_required(self._what, self._request.credentials, "USERNAME", "PASSWORD") from error


def _parts(request: Request) -> tuple[str, str, str]:
    """Return host, name and reference (tag or digest) of an artifact; ``endpoint`` replaces the host."""
    location, _, digest = request.parsed.location.partition("@")
    path, slash, last = location.rpartition("/")
    last, _, tag = last.partition(":")
    host, _, name = f"{path}{slash}{last}".partition("/")
    endpoint = request.ref.endpoint
    if endpoint:
        is_host = "." in host or ":" in host or host == "localhost"
        name = name if is_host else f"{host}/{name}".rstrip("/")
        host = urlsplit(endpoint).netloc
    if not name:
        message = f"{request.parsed.canonical} does not name a repository"
        raise UserError(Reason.INVALID_SPEC, message, "Write oci://registry/name:tag or oci://registry/name@sha256:...")
    return host, name, request.revision or digest or tag or "latest"


def _is_plain(endpoint: str | None, host: str) -> bool:
    """Whether to speak without TLS: on this machine's own addresses only, unless its endpoint says https."""
    loopback = (urlsplit(f"//{host}").hostname or "") in _LOOPBACK
    if endpoint is None:
        return loopback
    if endpoint.startswith("http://") and not loopback:
        message = f"endpoint {endpoint!r} has no TLS"
        raise UserError(Reason.INVALID_SPEC, message, "Use https://; only a registry on this machine may do without.")
    return endpoint.startswith("http://")


def _login(request: Request, host: str) -> tuple[str, str] | None:
    """Return user and password, from the keys of the Secret or from the Docker configuration in it."""
    credentials = request.credentials
    user, password = credentials.get_secret(*USER_KEYS), credentials.get_secret(*PASSWORD_KEYS)
    if user and password:
        return user, password
    stored = credentials.get_secret(DOCKER_CONFIG_KEY)
    if stored is None:
        return None
    try:
        encoded = json.loads(stored)["auths"][host]["auth"]
        user, _, password = base64.b64decode(encoded).decode().partition(":")
    except (ValueError, KeyError, TypeError) as error:
        message = f"the key {DOCKER_CONFIG_KEY} of the Secret holds no login for {host}"
        raise UserError(Reason.AUTHENTICATION_REQUIRED, message, credentials.how_to_give(DOCKER_CONFIG_KEY)) from error
    return user, password


def _cause(error: Exception) -> object:
    """Return what urllib3 found, without the layers that were put around it."""
    return getattr(error.args[0], "reason", error) if error.args else error
