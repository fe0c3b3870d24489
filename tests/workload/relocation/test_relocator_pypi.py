"""pypi:// with pip against a package index on loopback."""

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.loopback import Fault, Trouble
from tests.support.relocator import JOB, Relocator, assert_refused, files_in, reference, wait_until
from tests.support.wheels import PackageIndex

from finetuning_api.reasons import ExitCode
from finetuning_api.runconfig import RelocateConfig

GGUF = b"GGUF" + bytes(range(256)) * 2000
FILES = {
    "tiny_model/__init__.py": b"raise SystemExit('imported')",
    "tiny_model/tiny.Q4.gguf": GGUF,
    "tiny_model/notes.txt": b"notes",
}


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with PackageIndex() as running:
        running.add_wheel("tiny-model", "1.0", FILES)
        running.add_wheel("tiny-model", "1.1", FILES)
        yield running


def test_a_file_in_a_wheel_is_taken_without_installing_anything(
    index: PackageIndex, relocator: Relocator, destination: Path
) -> None:
    source = "pypi://tiny-model==1.0#tiny_model/tiny.Q4.gguf"
    ended = relocator.relocate(source, destination, endpoint=index.index_url)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == {"tiny.Q4.gguf": GGUF}
    assert (ended.artifact.format, ended.artifact.resolved_revision) == ("gguf", "1.0")
    assert ended.artifact.transferred_bytes > 0


def test_a_whole_wheel_is_taken_without_its_code(index: PackageIndex, relocator: Relocator, destination: Path) -> None:
    relocator.relocate("pypi://tiny-model==1.0", destination, endpoint=index.index_url)
    assert set(files_in(destination)) == {"tiny_model/tiny.Q4.gguf", "tiny_model/notes.txt"}


def test_a_second_run_does_not_start_pip(index: PackageIndex, relocator: Relocator, destination: Path) -> None:
    first = relocator.relocate("pypi://tiny-model==1.0", destination, endpoint=index.index_url)
    assert first.exit_code == ExitCode.DONE, first.log
    asked = len(index.seen)
    again = relocator.relocate("pypi://tiny-model==1.0", destination, endpoint=index.index_url)
    assert (again.artifact.transferred_bytes, len(index.seen)) == (0, asked)


def test_the_index_of_the_users_own_configuration_is_used(
    index: PackageIndex, relocator: Relocator, destination: Path
) -> None:
    relocator.environment["PIP_INDEX_URL"] = index.index_url
    ended = relocator.relocate("pypi://tiny-model==1.1", destination)
    assert ended.exit_code == ExitCode.DONE, ended.log


def test_an_endpoint_without_tls_is_used_where_it_is_not_this_machine_by_name(
    index: PackageIndex, relocator: Relocator, destination: Path
) -> None:
    # An address that reaches this machine too, but is none of those that pip takes for it.
    endpoint = index.index_url.replace("127.0.0.1", "0.0.0.0")  # noqa: S104  (it is asked, not listened on)
    ended = relocator.relocate("pypi://tiny-model==1.1", destination, endpoint=endpoint)
    assert ended.exit_code == ExitCode.DONE, ended.log


def test_only_the_version_is_known_before_the_wheel_is_there(index: PackageIndex, relocator: Relocator) -> None:
    measured = relocator.measure("pypi://tiny-model==1.0", endpoint=index.index_url).measured
    assert (measured.size_bytes, measured.files, measured.resolved_revision) == (None, None, "1.0")


def test_a_file_that_the_wheel_lacks_names_its_neighbours(
    index: PackageIndex, relocator: Relocator, destination: Path
) -> None:
    ended = relocator.relocate("pypi://tiny-model==1.0#tiny_model/tiny.Q8.gguf", destination, endpoint=index.index_url)
    assert_refused(ended, "SourceNotFound", "tiny.Q8.gguf", "tiny_model/tiny.Q4.gguf")
    assert not destination.exists()


def test_a_version_that_does_not_exist_names_those_that_do(
    index: PackageIndex, relocator: Relocator, destination: Path
) -> None:
    ended = relocator.relocate("pypi://tiny-model==9.9", destination, endpoint=index.index_url)
    assert_refused(ended, "RevisionNotFound", "'9.9'", "1.0, 1.1")


def test_an_unknown_package_is_not_found(index: PackageIndex, relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate("pypi://absent==1.0", destination, endpoint=index.index_url)
    assert_refused(ended, "SourceNotFound", "absent", "endpoint")


def test_a_record_that_does_not_fit_its_file_is_noticed(
    index: PackageIndex, relocator: Relocator, destination: Path
) -> None:
    index.add_wheel("liar", "1.0", FILES, false_digest_of="tiny_model/tiny.Q4.gguf")
    ended = relocator.relocate("pypi://liar==1.0", destination, endpoint=index.index_url)
    assert_refused(ended, "ChecksumMismatch", "tiny.Q4.gguf", exit_code=ExitCode.ENVIRONMENT)


def test_what_is_left_of_another_source_is_never_used(
    index: PackageIndex, relocator: Relocator, destination: Path
) -> None:
    index.add_wheel("liar", "1.0", {"other.txt": b"other"}, false_digest_of="other.txt")
    relocator.relocate("pypi://liar==1.0", destination, endpoint=index.index_url)
    assert (destination / ".partial" / "staged" / "wheel").exists()
    relocator.relocate("pypi://tiny-model==1.0#tiny_model/notes.txt", destination, endpoint=index.index_url)
    assert files_in(destination) == {"notes.txt": b"notes"}


def test_a_wheel_that_arrives_damaged_is_noticed(index: PackageIndex, relocator: Relocator, destination: Path) -> None:
    index.fail(index.wheel_path("tiny-model", "1.0"), Fault(Trouble.WRONG_BYTES, after_bytes=99, times=9))
    ended = relocator.relocate("pypi://tiny-model==1.0", destination, endpoint=index.index_url)
    assert_refused(ended, "ChecksumMismatch", "tiny-model", exit_code=ExitCode.ENVIRONMENT)


def test_a_stalled_index_fails_with_its_reason(index: PackageIndex, relocator: Relocator, destination: Path) -> None:
    index.fail(index.wheel_path("tiny-model", "1.0"), Fault(Trouble.STALL, after_bytes=20, times=9))
    ended = relocator.relocate("pypi://tiny-model==1.0", destination, endpoint=index.index_url, stall_seconds=4)
    assert_refused(ended, "DownloadStalled", "tiny-model", "4 s", exit_code=ExitCode.ENVIRONMENT)


def test_sigterm_stops_pip_as_well_and_the_next_run_succeeds(
    index: PackageIndex, relocator: Relocator, destination: Path
) -> None:
    index.fail(index.wheel_path("tiny-model", "1.0"), Fault(Trouble.STALL, after_bytes=20))
    source = reference("pypi://tiny-model==1.0", {"endpoint": index.index_url})
    config = RelocateConfig(job=JOB, source=source, destination=str(destination))
    process = relocator.start(config)
    wait_until(lambda: bool(index.requests_for(index.wheel_path("tiny-model", "1.0"))))
    process.send_signal(signal.SIGTERM)
    assert relocator.finish(process).exit_code == ExitCode.INTERRUPTED
    assert not [line for line in command_lines() if str(destination) in line]
    assert relocator.run(config).exit_code == ExitCode.DONE


def command_lines() -> Iterator[str]:
    """Yield the command lines of everything that runs on this machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def test_an_index_that_wants_a_login_says_which_key_holds_it(relocator: Relocator, destination: Path) -> None:
    with PackageIndex(login=("reader", "s3cret")) as index:
        index.add_wheel("tiny-model", "1.0", FILES)
        refused = relocator.relocate("pypi://tiny-model==1.0", destination, endpoint=index.index_url)
        assert_refused(refused, "AuthenticationRequired", "PIP_INDEX_URL", "secretRef")
        with_login = index.index_url.replace("http://", "http://reader:s3cret@")
        relocator.environment["SOURCE_SECRET_PIP_INDEX_URL"] = with_login
        ended = relocator.relocate("pypi://tiny-model==1.0", destination)
        assert ended.exit_code == ExitCode.DONE, ended.log
        assert "s3cret" not in ended.log + ended.words.model_dump_json()
