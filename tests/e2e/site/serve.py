"""Serves an object store (S3, port 9000, bucket ``site``) and a package index (port 8080, ``/simple/``).

The index answers only when the bucket is filled, so that one question tells whether both are ready.
"""

import hashlib
import html
import logging
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

from moto.server import ThreadedMotoServer

_CONTENT = Path("/srv/site")
_BUCKET = "site"
_STORE_PORT, _INDEX_PORT = 9000, 8080
_LOG = logging.getLogger("site")


class PackageIndex(SimpleHTTPRequestHandler):
    """Files of a folder; a project's page lists its wheels with their digests, as package indexes do."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a page or a file."""
        folder = Path(self.translate_path(self.path))
        if self.path.endswith("/") and folder.is_dir():
            self._send_page(folder)
        else:
            super().do_GET()

    def _send_page(self, folder: Path) -> None:
        page = "<!DOCTYPE html><html><body>" + "".join(map(_link, sorted(folder.iterdir()))) + "</body></html>"
        body = page.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _link(path: Path) -> str:
    name = html.escape(path.name)
    if path.is_dir():
        return f'<a href="{name}/">{name}</a>'
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f'<a href="{name}#sha256={digest}">{name}</a>'


def _put(path: str, body: bytes = b"") -> None:
    """Make a bucket or an object; the store asks for no signature."""
    # Without a type it would be taken for a form, and nothing of it stored.
    headers = {"Content-Type": "application/octet-stream"}
    request = Request(f"http://127.0.0.1:{_STORE_PORT}{path}", data=body, headers=headers, method="PUT")
    with urlopen(request) as answer:  # noqa: S310  (our own server)
        _LOG.info("%s: %s", path, answer.status)


def main() -> None:
    """Fill the bucket, then serve until the process ends."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ThreadedMotoServer("0.0.0.0", _STORE_PORT).start()  # noqa: S104  (in a pod of its own)
    _put(f"/{_BUCKET}")
    for file in sorted((_CONTENT / "bucket").iterdir()):
        _put(f"/{_BUCKET}/{file.name}", file.read_bytes())
    handler = partial(PackageIndex, directory=str(_CONTENT / "index"))
    with ThreadingHTTPServer(("0.0.0.0", _INDEX_PORT), handler) as server:  # noqa: S104
        server.serve_forever()


if __name__ == "__main__":
    main()
