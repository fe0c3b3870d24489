"""Wheels built in the test, and a package index on loopback that serves them."""

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping
from http import HTTPStatus

from tests.support.loopback import Answer, LoopbackServer, Seen


def build_wheel(package: str, version: str, files: Mapping[str, bytes], *, false_digest_of: str = "") -> bytes:
    """Return a pure wheel; the RECORD lies about the digest of the file ``false_digest_of``."""
    info = f"{package.replace('-', '_')}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [
        f"{name},sha256={_digest(data + b'?' if name == false_digest_of else data)},{len(data)}"
        for name, data in content.items()
    ]
    content[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]).encode() + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


class PackageIndex(LoopbackServer):
    """A simple index. ``login`` (user, password) makes it ask for credentials."""

    def __init__(self, *, login: tuple[str, str] | None = None) -> None:
        super().__init__(self._answer)
        self._login = login
        self._files: dict[str, dict[str, bytes]] = {}

    def add_wheel(self, package: str, version: str, files: Mapping[str, bytes], *, false_digest_of: str = "") -> None:
        """Build a wheel and offer it."""
        name = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        wheel = build_wheel(package, version, files, false_digest_of=false_digest_of)
        self._files.setdefault(package, {})[name] = wheel

    def wheel_path(self, package: str, version: str) -> str:
        """Return the path that a wheel is served at."""
        return f"/files/{package}/{package.replace('-', '_')}-{version}-py3-none-any.whl"

    @property
    def index_url(self) -> str:
        """Address for --index-url."""
        return f"{self.url}/simple"

    def _answer(self, seen: Seen) -> Answer:
        if self._login is not None:
            expected = base64.b64encode(":".join(self._login).encode()).decode()
            if seen.headers.get("authorization") != f"Basic {expected}":
                headers = {"WWW-Authenticate": 'Basic realm="packages"'}
                return Answer(status=HTTPStatus.UNAUTHORIZED, headers=headers)
        parts = seen.path.strip("/").split("/")
        if parts[0] == "files":
            return Answer(body=self._files[parts[1]][parts[2]], ranges=True)
        package = parts[-1]
        if package not in self._files:
            return Answer(status=HTTPStatus.NOT_FOUND)
        links = "".join(
            f'<a href="/files/{package}/{name}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>'
            for name, data in self._files[package].items()
        )
        page = f"<!DOCTYPE html><html><body>{links}</body></html>"
        return Answer(body=page.encode(), headers={"Content-Type": "text/html"})
