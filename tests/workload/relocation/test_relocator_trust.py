"""Behind a wall: names that only a proxy knows, and certificates of an authority that only the site trusts."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.support.relocator import JOB, Relocator, files_in

from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import EXTRA_CA_ENV, RelocateConfig
from finetuning_api.sources import SourceRef
from finetuning_operator.cluster.options import Outside
from finetuning_operator.cluster.progress.certificates import self_signed

HOST = "data.example"
"""A name that no resolver knows."""
ROWS = b'{"text": "row"}\n'
SOURCES = {
    "web": SourceRef(source="https://data.example/rows.jsonl"),
    "object store": SourceRef(source="s3://bucket/rows.jsonl", endpoint="https://data.example"),
}


class Rows(BaseHTTPRequestHandler):
    """Answers every path with the same file."""

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(ROWS)

    def do_HEAD(self) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in {
            "Content-Length": str(len(ROWS)),
            "ETag": '"1"',
            "Last-Modified": "Sun, 01 Mar 2026 12:00:00 GMT",
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class Wall:
    """A proxy before a server that only it can find."""

    proxy: str
    authority: Path
    asked: list[str] = field(default_factory=list)
    """What the proxy was asked to connect to."""


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def wall(tmp_path: Path) -> Iterator[Wall]:
    signed = self_signed([HOST], now=datetime.now(UTC))
    certificate, key = signed.write(tmp_path)
    (tmp_path / "authority.pem").write_text(signed.ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site = ThreadingHTTPServer(("127.0.0.1", 0), Rows)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    asked: list[str] = []
    with serving(site) as behind:

        class Proxy(BaseHTTPRequestHandler):
            """Connects whoever asks to the one server that there is."""

            def do_CONNECT(self) -> None:
                asked.append(self.path)
                self.send_response(HTTPStatus.OK)
                self.end_headers()
                with socket.create_connection(("127.0.0.1", behind)) as there:
                    back = threading.Thread(target=pump, args=(there, self.connection), daemon=True)
                    back.start()
                    pump(self.connection, there)
                    back.join()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        with serving(ThreadingHTTPServer(("127.0.0.1", 0), Proxy)) as port:
            yield Wall(f"http://127.0.0.1:{port}", tmp_path / "authority.pem", asked)


def pump(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes until one side ends."""
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def behind(wall: Wall, relocator: Relocator, *, trusting: bool = True) -> Relocator:
    """Tell a relocator what the operator tells its pods."""
    relocator.environment |= Outside(https_proxy=wall.proxy).variables
    if trusting:
        relocator.environment[EXTRA_CA_ENV] = str(wall.authority)
    return relocator


@pytest.mark.parametrize("ref", SOURCES.values(), ids=SOURCES)
def test_a_source_behind_the_wall_is_brought(
    wall: Wall, relocator: Relocator, destination: Path, ref: SourceRef
) -> None:
    ended = behind(wall, relocator).run(RelocateConfig(job=JOB, source=ref, destination=str(destination)))

    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == {"rows.jsonl": ROWS}
    assert set(wall.asked) == {f"{HOST}:443"}


def test_an_authority_that_nobody_told_of_is_not_trusted(wall: Wall, relocator: Relocator, destination: Path) -> None:
    ended = behind(wall, relocator, trusting=False).relocate(SOURCES["web"].source, destination)

    assert (ended.exit_code, ended.words.reason) == (ExitCode.ENVIRONMENT, Reason.NETWORK_UNREACHABLE)
    assert "certificate" in ended.words.message


def test_the_public_authorities_stay_trusted(wall: Wall, relocator: Relocator, destination: Path) -> None:
    temporary = relocator.home / "tmp"
    temporary.mkdir(parents=True)
    relocator.environment["TMPDIR"] = str(temporary)
    behind(wall, relocator).relocate(SOURCES["web"].source, destination)

    (bundle,) = temporary.glob("authorities-*.pem")
    assert bundle.read_text().count("BEGIN CERTIFICATE") > 100


def test_a_bundle_that_is_not_there_is_a_fault_of_the_environment(relocator: Relocator, destination: Path) -> None:
    relocator.environment[EXTRA_CA_ENV] = str(relocator.home / "none.pem")

    ended = relocator.relocate(SOURCES["web"].source, destination)

    assert ended.exit_code == ExitCode.ENVIRONMENT
    assert "none.pem" in ended.words.message
