"""https:// and http:// against a server on loopback that can refuse, stall, cut and lie."""

import hashlib
import io
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path

import pytest
from tests.support.loopback import Answer, Fault, LoopbackServer, Seen, Trouble
from tests.support.relocator import STALL_SECONDS, Relocator, assert_refused, files_in

from finetuning_api.reasons import ExitCode
from finetuning_workload.artifact import read_manifest

ROWS = b'{"text": "row"}\n' * 60_000


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], *, links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


class Site(LoopbackServer):
    """Files at their paths, with validators; a few paths behave in their own way."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.files: dict[str, bytes] = {}
        self._later: dict[tuple[str, int], Callable[[], None]] = {}

    def after_request(self, path: str, number: int, change: Callable[[], None]) -> None:
        """Make a change once a path was asked for the given number of times."""
        self._later[path, number] = change

    def _answer(self, seen: Seen) -> Answer:
        answer = self._usual(seen)
        self._later.pop((seen.path, len(self.requests_for(seen.path))), lambda: None)()
        return answer

    def _usual(self, seen: Seen) -> Answer:
        rows = self.files["/rows.jsonl"]
        known = seen.headers.get("authorization") == "Bearer good"
        special = {
            "/moved": Answer(status=HTTPStatus.FOUND, headers={"Location": f"{self.url}/rows.jsonl"}),
            "/members": Answer(body=b"{}\n") if known else Answer(status=HTTPStatus.UNAUTHORIZED),
            "/secret": Answer(status=HTTPStatus.FORBIDDEN),
            "/download": Answer(body=b"{}\n", headers={"Content-Disposition": 'attachment; filename="../named.jsonl"'}),
            "/plain.jsonl": Answer(body=rows),
        }
        if seen.path in self.files:
            body = self.files[seen.path]
            return Answer(body=body, headers={"ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, ranges=True)
        return special.get(seen.path, Answer(status=HTTPStatus.NOT_FOUND))


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as running:
        running.files["/rows.jsonl"] = ROWS
        yield running


def test_a_file_keeps_its_name(site: Site, relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate(f"{site.url}/rows.jsonl", destination)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == {"rows.jsonl": ROWS}


def test_a_redirect_is_followed(site: Site, relocator: Relocator, destination: Path) -> None:
    relocator.relocate(f"{site.url}/moved", destination)
    assert files_in(destination) == {"moved": ROWS}


def test_a_name_that_the_server_gives_cannot_leave_the_folder(
    site: Site, relocator: Relocator, destination: Path
) -> None:
    relocator.relocate(f"{site.url}/download", destination)
    assert files_in(destination) == {"named.jsonl": b"{}\n"}


def test_a_file_is_measured_without_reading_it(site: Site, relocator: Relocator) -> None:
    measured = relocator.measure(f"{site.url}/rows.jsonl").measured
    assert (measured.size_bytes, measured.files) == (len(ROWS), 1)


def test_a_cut_goes_on_where_it_stopped(site: Site, relocator: Relocator, destination: Path) -> None:
    # The first answer is the one that the size is read from.
    site.fail("/rows.jsonl", Fault(Trouble.CUT, after_bytes=500_000, times=2))
    relocator.relocate(f"{site.url}/rows.jsonl", destination)
    assert files_in(destination) == {"rows.jsonl": ROWS}
    assert [seen.range_start for seen in site.requests_for("/rows.jsonl")] == [0, 0, 500_000]


def test_a_server_without_ranges_is_read_from_the_beginning_after_a_cut(
    site: Site, relocator: Relocator, destination: Path
) -> None:
    site.fail("/plain.jsonl", Fault(Trouble.CUT, after_bytes=500_000, times=2))
    ended = relocator.relocate(f"{site.url}/plain.jsonl", destination)
    assert files_in(destination) == {"plain.jsonl": ROWS}
    assert ended.artifact.transferred_bytes == len(ROWS) + 500_000


def test_a_file_that_changed_since_a_stall_is_fetched_anew(site: Site, relocator: Relocator, destination: Path) -> None:
    site.fail("/rows.jsonl", Fault(Trouble.STALL, after_bytes=500_000, times=2))
    stalled = relocator.relocate(f"{site.url}/rows.jsonl", destination, stall_seconds=STALL_SECONDS)
    assert_refused(stalled, "DownloadStalled", exit_code=ExitCode.ENVIRONMENT)
    site.files["/rows.jsonl"] = ROWS[::-1]
    relocator.relocate(f"{site.url}/rows.jsonl", destination)
    assert files_in(destination) == {"rows.jsonl": ROWS[::-1]}


def test_a_file_that_changes_between_two_tries_is_fetched_anew(
    site: Site, relocator: Relocator, destination: Path
) -> None:
    site.fail("/rows.jsonl", Fault(Trouble.CUT, after_bytes=500_000, times=2))
    site.after_request("/rows.jsonl", 2, lambda: site.files.update({"/rows.jsonl": ROWS[::-1]}))
    ended = relocator.relocate(f"{site.url}/rows.jsonl", destination)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == {"rows.jsonl": ROWS[::-1]}


@pytest.mark.parametrize(
    ("path", "reason", "part"),
    [
        ("/absent.jsonl", "SourceNotFound", "absent.jsonl"),
        ("/members", "AuthenticationRequired", "token"),
        ("/secret", "AccessDenied", "403"),
    ],
)
def test_refusals_are_told_apart(
    site: Site, relocator: Relocator, destination: Path, *, path: str, reason: str, part: str
) -> None:
    assert_refused(relocator.relocate(f"{site.url}{path}", destination), reason, part)
    assert not destination.exists()


def test_a_token_is_sent(site: Site, relocator: Relocator, destination: Path) -> None:
    relocator.environment["SOURCE_SECRET_token"] = "good"
    assert relocator.relocate(f"{site.url}/members", destination).exit_code == ExitCode.DONE


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_one_file_of_an_archive_is_taken_alone(
    site: Site, relocator: Relocator, destination: Path, pack: object
) -> None:
    assert callable(pack)
    name = "/pack.zip" if pack is zipped else "/pack.tar.gz"
    site.files[name] = pack({"data/rows.jsonl": ROWS, "../evil.jsonl": b"evil", "other.txt": b"o"})
    ended = relocator.relocate(f"{site.url}{name}#data/rows.jsonl", destination)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == {"rows.jsonl": ROWS}
    assert not (destination.parent / "evil.jsonl").exists()


def test_an_archive_without_a_member_is_kept_as_it_is(site: Site, relocator: Relocator, destination: Path) -> None:
    site.files["/pack.zip"] = zipped({"a.txt": b"a"})
    relocator.relocate(f"{site.url}/pack.zip", destination)
    assert files_in(destination) == {"pack.zip": site.files["/pack.zip"]}


def test_a_link_in_an_archive_is_refused(site: Site, relocator: Relocator, destination: Path) -> None:
    site.files["/pack.tar.gz"] = tarred({"a.txt": b"a"}, links={"rows.jsonl": "/etc/passwd"})
    ended = relocator.relocate(f"{site.url}/pack.tar.gz#rows.jsonl", destination)
    assert_refused(ended, "UnsafeContent", "rows.jsonl", "link")
    assert not destination.exists()


def test_a_member_that_an_archive_lacks_names_its_neighbours(
    site: Site, relocator: Relocator, destination: Path
) -> None:
    site.files["/pack.zip"] = zipped({"data/rows.jsonl": ROWS})
    ended = relocator.relocate(f"{site.url}/pack.zip#data/row.jsonl", destination)
    assert_refused(ended, "SourceNotFound", "data/row.jsonl", "data/rows.jsonl")


def test_a_member_of_something_that_is_no_archive_is_refused(
    site: Site, relocator: Relocator, destination: Path
) -> None:
    ended = relocator.relocate(f"{site.url}/rows.jsonl#part", destination)
    assert_refused(ended, "InvalidSpec", "rows.jsonl is not an archive")


def test_wrong_bytes_are_caught_by_the_checksum_of_the_user(
    site: Site, relocator: Relocator, destination: Path
) -> None:
    site.fail("/rows.jsonl", Fault(Trouble.WRONG_BYTES, after_bytes=9, times=9))
    expected = f"sha256:{hashlib.sha256(ROWS).hexdigest()}"
    ended = relocator.relocate(f"{site.url}/rows.jsonl", destination, checksum=expected)
    assert_refused(ended, "ChecksumMismatch", expected)
    assert read_manifest(destination) is None


def test_a_server_that_is_not_there_is_told_soon(relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate("http://127.0.0.1:9/rows.jsonl", destination)
    assert_refused(ended, "NetworkUnreachable", "127.0.0.1:9", exit_code=ExitCode.ENVIRONMENT)


def test_a_name_that_does_not_resolve_is_told_soon(relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate("https://host.invalid/rows.jsonl", destination)
    assert_refused(ended, "NetworkUnreachable", "host.invalid", exit_code=ExitCode.ENVIRONMENT)


def test_a_host_that_swallows_everything_is_told_after_two_short_tries(relocator: Relocator, destination: Path) -> None:
    with socket.socket() as silent, ExitStack() as waiting:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        # A queue that is full drops what comes next, as a firewall does.
        for _ in range(4):
            client = waiting.enter_context(socket.socket())
            client.settimeout(0)
            client.connect_ex(silent.getsockname())
        ended = relocator.relocate(f"http://127.0.0.1:{silent.getsockname()[1]}/rows.jsonl", destination)
    assert_refused(ended, "NetworkUnreachable", "127.0.0.1", exit_code=ExitCode.ENVIRONMENT)
    assert ended.log.count("try 1") == 1
