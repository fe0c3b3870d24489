"""``s3://`` and ``gs://``: an object, or every object below a prefix, through obstore."""

import re
from collections.abc import Iterator
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import GCSStore, S3Store

from finetuning_api.sources import Scheme
from finetuning_relocator.archives import is_archive_name
from finetuning_relocator.faults import (
    access_denied,
    authentication_required,
    from_status,
    not_found,
    unreachable,
)
from finetuning_relocator.sources.base import (
    BLOCK_BYTES,
    CONNECT_SECONDS,
    Block,
    ConnectionCut,
    Listing,
    RemoteFile,
    Request,
    Source,
    SourceChanged,
)
from finetuning_workload.errors import ProgramError

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, GCSConfig, S3Config

S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
GS_KEYS = ("GOOGLE_SERVICE_ACCOUNT_KEY",)
_AMBIENT_IDENTITY = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Variables with which a cluster tells a pod that it has an identity of its own."""
_NO_CONNECTION = re.compile(
    r"dns error|tcp connect error|client error \(Connect\)|Connection refused|Connect,", re.IGNORECASE
)
_STATUS = re.compile(r"(?:status code|status|HTTP status \w+ error \()\D{0,3}([45]\d\d)")


class ObjectSource(Source):
    """A bucket of S3 or GCS, or of a server that speaks like one of them."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._what = request.parsed.canonical
        bucket, _, self._key = request.parsed.location.partition("/")
        self._is_s3 = request.parsed.scheme is Scheme.S3
        self._anonymous = False
        self._store = self._s3(bucket) if self._is_s3 else self._gs(bucket)

    def _client_options(self) -> "ClientConfig":
        seconds = timedelta(seconds=self._request.read_seconds)
        return {
            "allow_http": (self._request.ref.endpoint or "").startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": seconds,
            # The limit of a whole transfer; the watch ends one that has stalled.
            "timeout": timedelta(days=7),
        }

    def _s3(self, bucket: str) -> S3Store:
        credentials, environment = self._request.credentials, self._request.environment
        config: S3Config = {
            "region": credentials.get("AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1",
            "virtual_hosted_style_request": self._request.ref.endpoint is None,
        }
        if self._request.ref.endpoint:
            config["endpoint"] = self._request.ref.endpoint
        key, secret = credentials.get("AWS_ACCESS_KEY_ID"), credentials.get("AWS_SECRET_ACCESS_KEY")
        if key and secret:
            config["access_key_id"], config["secret_access_key"] = key, secret
            if token := credentials.get("AWS_SESSION_TOKEN"):
                config["session_token"] = token
        elif not any(environment.get(name) for name in _AMBIENT_IDENTITY):
            self._anonymous = config["skip_signature"] = True
        return S3Store(bucket, config=config, client_options=self._client_options(), retry_config={"max_retries": 0})

    def _gs(self, bucket: str) -> GCSStore:
        credentials, environment = self._request.credentials, self._request.environment
        config: GCSConfig = {}
        if self._request.ref.endpoint:
            config["base_url"] = self._request.ref.endpoint
        if key := credentials.get(*GS_KEYS):
            config["service_account_key"] = key
        elif not environment.get("GOOGLE_APPLICATION_CREDENTIALS") and not environment.get("GCE_METADATA_HOST"):
            self._anonymous = config["skip_signature"] = True
        return GCSStore(bucket, config=config, client_options=self._client_options(), retry_config={"max_retries": 0})

    def list_files(self) -> Listing:
        """List one object, or all below the key as a folder."""
        try:
            return self._list_object() or self._list_prefix()
        except (BaseError, OSError, ValueError) as error:
            raise self._failure(error) from error

    def _list_object(self) -> Listing | None:
        if not self._key:
            return None
        try:
            found = obstore.head(self._store, self._key)
        except FileNotFoundError:
            return None
        name = self._key.rpartition("/")[2]
        member = self._request.parsed.member if is_archive_name(name) else ""
        file = RemoteFile(path=name, key=self._key, size=found["size"], etag=found["e_tag"])
        return Listing(files=(file,), member=member)

    def _list_prefix(self) -> Listing:
        prefix = f"{self._key}/" if self._key else ""
        files = [
            RemoteFile(
                path=found["path"].removeprefix(prefix), key=found["path"], size=found["size"], etag=found["e_tag"]
            )
            for page in obstore.list(self._store, prefix or None)
            for found in page
            # Consoles mark a folder by an empty object whose name ends in a slash.
            if found["path"].rstrip("/") != self._key and not found["path"].endswith("/")
        ]
        if not files:
            raise not_found(f"any object at {self._what}", "Check bucket and key.")
        return Listing(files=tuple(files))

    def read(self, file: RemoteFile, *, offset: int) -> Iterator[Block]:
        """Stream an object from a position on, if it is still the one that was listed."""
        if file.size == 0:
            return
        options: GetOptions = {"range": {"offset": offset}} if offset else {}
        if file.etag is not None:
            options["if_match"] = file.etag
        position = offset
        try:
            for data in obstore.get(self._store, file.key, options=options).stream(min_chunk_size=BLOCK_BYTES):
                block = bytes(data)
                yield Block(position, block)
                position += len(block)
        except PreconditionError as error:
            message = f"{file.key} changed while it was fetched"
            raise SourceChanged(message) from error
        except (BaseError, OSError) as error:
            if position > offset:
                message = f"{file.key}: {_first_line(error)}"
                raise ConnectionCut(message) from error
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> ProgramError:
        """Return what an error of obstore means: by its type, else by the status or the cause in its text."""
        text = str(error)
        keys = S3_KEYS if self._is_s3 else GS_KEYS
        credentials = self._request.credentials
        if isinstance(error, FileNotFoundError):
            return not_found(self._what, "Check bucket and key.")
        status = _STATUS.search(text)
        code = int(status.group(1)) if status else None
        if isinstance(error, UnauthenticatedError | PermissionDeniedError) or code in {
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.FORBIDDEN,
        }:
            if self._anonymous or isinstance(error, UnauthenticatedError) or code == HTTPStatus.UNAUTHORIZED:
                return authentication_required(self._what, credentials, *keys)
            return access_denied(self._what, f"Allow {keys[0]} to list and read it, or use another key.")
        if _NO_CONNECTION.search(text):
            return unreachable(self._request.ref.endpoint or self._what, _first_line(error))
        if code is not None:
            failure = from_status(code, what=self._what, credentials=credentials, keys=keys)
            if failure is not None:
                return failure
        return unreachable(self._request.ref.endpoint or self._what, _first_line(error))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
