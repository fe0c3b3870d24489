"""``https://`` and ``http://``: one file at an address, or one file in an archive at an address."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from email.message import Message
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx2

from finetuning_api.reasons import Reason
from finetuning_relocator.archives import is_archive_name
from finetuning_relocator.faults import from_status
from finetuning_relocator.sources.base import ANSWER_SECONDS, Block, Listing, RemoteFile, Request, Source
from finetuning_relocator.sources.http import explained, read_blocks, timeouts
from finetuning_workload.errors import UserError

TOKEN_KEYS = ("TOKEN", "token")
USER_KEYS = ("USERNAME", "username")
PASSWORD_KEYS = ("PASSWORD", "password")


class WebSource(Source):
    """One address. Redirects are followed; credentials are not sent to the hosts that they lead to."""

    def __init__(self, request: Request) -> None:
        parsed = request.parsed
        self._request = request
        self._url = f"{parsed.scheme}://{parsed.location}"
        self._host = urlsplit(self._url).netloc
        self._client = httpx2.Client(
            follow_redirects=True,
            timeout=timeouts(request.read_seconds),
            auth=_auth(request),
            headers=_headers(request),
        )

    def list_files(self) -> Listing:
        """Ask for the file and close the answer after its headers: not every server knows HEAD."""
        asked = self._client.stream(
            "GET", self._url, headers={"Accept-Encoding": "identity"}, timeout=timeouts(ANSWER_SECONDS)
        )
        with explained(self._host), asked as response:
            self._require_success(response)
            name = _file_name(response, self._url)
            # A length of encoded bytes says nothing of the file.
            length = None if "content-encoding" in response.headers else response.headers.get("content-length")
            validator = response.headers.get("etag") or response.headers.get("last-modified")
        member = self._request.parsed.member
        if member and not is_archive_name(name):
            message = f"{name} is not an archive, so {member!r} cannot be taken from it"
            raise UserError(Reason.INVALID_SPEC, message, "Remove the part after #, or name a zip or tar archive.")
        file = RemoteFile(path=name, key=name, size=int(length) if length else None, etag=validator)
        return Listing(files=(file,), member=member)

    def read(self, file: RemoteFile, *, offset: int) -> Iterator[Block]:
        """Fetch the file, from a position on where the server can."""
        with explained(self._host):
            yield from read_blocks(self._open, file, offset=offset, require_success=self._require_success)

    def _open(self, headers: Mapping[str, str]) -> AbstractContextManager[httpx2.Response]:
        return self._client.stream("GET", self._url, headers=dict(headers))

    def _require_success(self, response: httpx2.Response) -> None:
        keys = ("token", "username and password")
        what = self._request.parsed.canonical
        failure = from_status(
            response.status_code, what=what, credentials=self._request.credentials, keys=(" or ".join(keys),)
        )
        if failure is not None:
            raise failure


def _auth(request: Request) -> tuple[str, str] | None:
    user, password = request.credentials.get_secret(*USER_KEYS), request.credentials.get_secret(*PASSWORD_KEYS)
    return (user, password) if user and password else None


def _headers(request: Request) -> dict[str, str]:
    token = request.credentials.get_secret(*TOKEN_KEYS)
    return {"Authorization": f"Bearer {token}"} if token else {}


def _file_name(response: httpx2.Response, url: str) -> str:
    """Return the name that the server gives to the file, else the last part of the address that was asked for."""
    disposition = Message()
    disposition["content-disposition"] = response.headers.get("content-disposition", "")
    offered = disposition.get_filename() or unquote(urlsplit(url).path)
    return PurePosixPath(offered.replace("\\", "/")).name or "download"
