"""A fake of Google Cloud Storage on loopback: the few requests of its XML API that obstore sends, from memory.

No real server of that API installs from a package index; what is shown with this one is our use of obstore's client.
"""

import hashlib
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from tests.support.loopback import Answer, LoopbackServer, Seen


class FakeGcs(LoopbackServer):
    """Buckets with their objects."""

    def __init__(self, buckets: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__(self._answer)
        self._buckets = buckets
        self._refusal: HTTPStatus | None = None

    def refuse_everything(self, status: int) -> None:
        """Answer every request from now on with a status."""
        self._refusal = HTTPStatus(status)

    def _answer(self, seen: Seen) -> Answer:
        if self._refusal is not None:
            return Answer(status=self._refusal)
        bucket, _, key = seen.path.strip("/").partition("/")
        objects = self._buckets.get(bucket)
        if objects is None:
            return Answer(status=HTTPStatus.NOT_FOUND)
        if not key:
            return _listing(objects, prefix=parse_qs(seen.query).get("prefix", [""])[0])
        if key not in objects:
            return Answer(status=HTTPStatus.NOT_FOUND)
        headers = {"ETag": _etag(objects[key]), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        return Answer(body=objects[key], headers=headers, ranges=True)


def _etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _listing(objects: Mapping[str, bytes], *, prefix: str) -> Answer:
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>{escape(_etag(data))}</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key, data in sorted(objects.items())
        if key.startswith(prefix)
    )
    body = f'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>'
    return Answer(body=body.encode(), headers={"Content-Type": "application/xml"})
