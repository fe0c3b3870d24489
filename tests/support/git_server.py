"""Git repositories over HTTPS on loopback, served by git's own http-backend."""

import base64
import os
import subprocess
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self

from tests.support.tls import Certificate

_IDENTITY = {
    "GIT_AUTHOR_NAME": "Test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "Test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(*arguments: str, folder: Path) -> str:
    """Run git in a folder and return what it says."""
    environment = {**os.environ, **_IDENTITY}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class GitServer:
    """Serves every repository below ``root``; ``token`` makes it ask for a password."""

    def __init__(self, root: Path, *, certificate: Certificate, token: str | None = None) -> None:
        self.root = root
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(root, token))
        context = certificate.server_context()
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def commit(self, name: str, files: Mapping[str, bytes], *, links: Mapping[str, str] | None = None) -> str:
        """Add a commit to the main branch of a repository, made where there is none, and return it."""
        folder = self.root / name
        if not folder.exists():
            folder.mkdir(parents=True)
            git("init", "--quiet", "--initial-branch=main", folder=folder)
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        for path, target in (links or {}).items():
            (folder / path).symlink_to(target)
        git("add", "--all", folder=folder)
        git("commit", "--quiet", "--message=change", folder=folder)
        return git("rev-parse", "HEAD", folder=folder)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(root: Path, token: str | None) -> type[BaseHTTPRequestHandler]:
    backend = Path(git("--exec-path", folder=root)) / "git-http-backend"

    class Handler(BaseHTTPRequestHandler):
        """Runs git's backend for every request."""

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            expected = base64.b64encode(f"x-access-token:{token}".encode()).decode()
            if token is not None and self.headers.get("Authorization") != f"Basic {expected}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="git"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            length = int(self.headers.get("Content-Length") or 0)
            environment = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type") or "",
                "CONTENT_LENGTH": str(length),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            }
            done = subprocess.run(
                [str(backend)], input=self.rfile.read(length), env=environment, capture_output=True, check=False
            )
            head, _, body = done.stdout.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", maxsplit=1) for line in head.decode().splitlines() if ": " in line)
            self.send_response(int(headers.pop("Status", "200").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name of the base class)
            """Say nothing."""

    return Handler
