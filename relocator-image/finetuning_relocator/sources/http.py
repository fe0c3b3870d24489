"""Bytes over HTTP with the client that huggingface_hub brings: ranges, validators, failures that say what they are."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus

import httpx2

from finetuning_relocator.faults import unreachable
from finetuning_relocator.sources.base import (
    CONNECT_SECONDS,
    Block,
    ConnectionCut,
    RemoteFile,
    SourceChanged,
)

_CONTENT_RANGE = re.compile(r"^bytes (\d+)-\d+/(\d+|\*)$")


def timeouts(read_seconds: float) -> httpx2.Timeout:
    """Return the limits of one request: a short one to connect, the given one between two bytes."""
    return httpx2.Timeout(read_seconds, connect=CONNECT_SECONDS)


@contextmanager
def explained(host: str) -> Iterator[None]:
    """Turn what the client raises into a fault of the network, or a cut connection where bytes had begun to flow."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
        raise unreachable(host, str(error) or type(error).__name__) from error
    except httpx2.ReadTimeout as error:
        # Bytes that stop flowing are noticed earlier, by the watch: this host has not answered at all.
        raise unreachable(host, "it takes the connection, but does not answer") from error
    except httpx2.TransportError as error:
        message = f"{host}: {str(error) or type(error).__name__}"
        raise ConnectionCut(message) from error


def range_headers(file: RemoteFile, *, offset: int) -> dict[str, str]:
    """Return the headers that ask for bytes as they are, from a position on, if the file is still the same."""
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if file.etag is not None and not file.etag.startswith("W/"):
            headers["If-Range"] = file.etag
    return headers


def read_blocks(
    open_response: Callable[[Mapping[str, str]], AbstractContextManager[httpx2.Response]],
    file: RemoteFile,
    *,
    offset: int,
    require_success: Callable[[httpx2.Response], None],
) -> Iterator[Block]:
    """Yield the blocks of a file. ``open_response`` sends the request with the given headers added."""
    with open_response(range_headers(file, offset=offset)) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            message = f"{file.key} has no byte {offset} any more"
            raise SourceChanged(message)
        require_success(response)
        position = _start(response, offset)
        if position == 0 and offset and file.etag and response.headers.get("etag", file.etag) != file.etag:
            message = f"{file.key} changed while it was fetched"
            raise SourceChanged(message)
        # Pieces of a fixed size would wait in a buffer, and a cut would lose them.
        for data in response.iter_bytes():
            yield Block(position, data)
            position += len(data)


def _start(response: httpx2.Response, offset: int) -> int:
    """Return the position of the first byte of an answer; a server that ignores ranges starts at 0."""
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return 0
    match = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
    if match is None or int(match.group(1)) != offset:
        message = f"asked for byte {offset}, got {response.headers.get('content-range')!r}"
        raise SourceChanged(message)
    return offset
