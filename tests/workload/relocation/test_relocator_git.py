"""git+https:// with git against git's own http-backend behind TLS."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.git_server import GitServer, git
from tests.support.relocator import Relocator, assert_refused, files_in
from tests.support.tls import Certificate

from finetuning_api.reasons import ExitCode

FILES = {"data/train.jsonl": b'{"a": 1}\r\n', "data/test.jsonl": b"{}\n", "README.md": b"about\n"}
TOKEN = "g1t-token"


@pytest.fixture
def certificate(tmp_path: Path, relocator: Relocator) -> Certificate:
    made = Certificate.make(tmp_path)
    relocator.environment["GIT_SSL_CAINFO"] = str(made.path)
    return made


@pytest.fixture
def server(tmp_path: Path, certificate: Certificate) -> Iterator[GitServer]:
    root = tmp_path / "repositories"
    root.mkdir()
    with GitServer(root, certificate=certificate) as running:
        yield running


def test_the_newest_commit_arrives_byte_for_byte(server: GitServer, relocator: Relocator, destination: Path) -> None:
    commit = server.commit("rows", {**FILES, ".gitattributes": b"* text eol=lf\n"})
    ended = relocator.relocate(f"git+https://{server.address}/rows", destination)
    assert ended.exit_code == ExitCode.DONE, ended.log
    stored = git("cat-file", "blob", f"{commit}:data/train.jsonl", folder=server.root / "rows").encode()
    assert files_in(destination)["data/train.jsonl"].strip() == stored.strip()
    assert set(files_in(destination)) == set(FILES)
    assert ended.artifact.resolved_revision == commit
    assert ended.artifact.transferred_bytes > 0


def test_a_folder_of_a_repository_is_taken_alone(server: GitServer, relocator: Relocator, destination: Path) -> None:
    server.commit("rows", FILES)
    relocator.relocate(f"git+https://{server.address}/rows#data", destination)
    assert files_in(destination) == {"train.jsonl": FILES["data/train.jsonl"], "test.jsonl": b"{}\n"}


@pytest.mark.parametrize("revision", ["v1", "annotated", "old-branch", "commit"])
def test_a_revision_is_a_tag_a_branch_or_a_commit(
    server: GitServer, relocator: Relocator, destination: Path, revision: str
) -> None:
    commit = server.commit("rows", FILES)
    repository = server.root / "rows"
    git("tag", "v1", folder=repository)
    git("tag", "--annotate", "--message=release", "annotated", folder=repository)
    git("branch", "old-branch", folder=repository)
    server.commit("rows", {"README.md": b"newer\n"})
    pin = commit if revision == "commit" else revision
    ended = relocator.relocate(f"git+https://{server.address}/rows", destination, revision=pin)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert ended.artifact.resolved_revision == commit
    assert files_in(destination) == FILES


def test_a_second_run_asks_nobody(server: GitServer, relocator: Relocator, destination: Path) -> None:
    server.commit("rows", FILES)
    address = server.address
    first = relocator.relocate(f"git+https://{address}/rows", destination)
    server.__exit__(None, None, None)
    second = relocator.relocate(f"git+https://{address}/rows", destination)
    assert second.artifact == first.artifact.model_copy(update={"transferred_bytes": 0})


def test_measuring_resolves_the_revision(server: GitServer, relocator: Relocator) -> None:
    commit = server.commit("rows", FILES)
    measured = relocator.measure(f"git+https://{server.address}/rows", revision="main").measured
    assert (measured.resolved_revision, measured.size_bytes) == (commit, None)


def test_a_link_in_a_repository_is_refused(server: GitServer, relocator: Relocator, destination: Path) -> None:
    server.commit("rows", FILES, links={"passwd": "/etc/passwd"})
    ended = relocator.relocate(f"git+https://{server.address}/rows", destination)
    assert_refused(ended, "UnsafeContent", "passwd", "link")
    assert not destination.exists()


def test_a_wrong_revision_is_named(server: GitServer, relocator: Relocator, destination: Path) -> None:
    server.commit("rows", FILES)
    ended = relocator.relocate(f"git+https://{server.address}/rows", destination, revision="v9")
    assert_refused(ended, "RevisionNotFound", "'v9'", "40 digits")


def test_a_commit_that_does_not_exist_is_named(server: GitServer, relocator: Relocator, destination: Path) -> None:
    server.commit("rows", FILES)
    ended = relocator.relocate(f"git+https://{server.address}/rows", destination, revision="0" * 39 + "1")
    assert_refused(ended, "RevisionNotFound", "0001")


def test_an_unknown_repository_is_not_found(server: GitServer, relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate(f"git+https://{server.address}/absent", destination)
    assert_refused(ended, "SourceNotFound", "absent")


def test_a_token_opens_a_repository_and_is_never_told(
    tmp_path: Path, certificate: Certificate, relocator: Relocator, destination: Path
) -> None:
    with GitServer(tmp_path, certificate=certificate, token=TOKEN) as server:
        server.commit("rows", FILES)
        source = f"git+https://{server.address}/rows"
        refused = relocator.relocate(source, destination)
        assert_refused(refused, "AuthenticationRequired", "GIT_TOKEN", "secretRef")
        relocator.environment["SOURCE_SECRET_GIT_TOKEN"] = TOKEN
        ended = relocator.relocate(source, destination)
        assert ended.exit_code == ExitCode.DONE, ended.log
        assert TOKEN not in ended.log


def test_a_server_that_nobody_vouches_for_is_not_trusted(
    server: GitServer, relocator: Relocator, destination: Path
) -> None:
    server.commit("rows", FILES)
    del relocator.environment["GIT_SSL_CAINFO"]
    ended = relocator.relocate(f"git+https://{server.address}/rows", destination)
    assert_refused(ended, "NetworkUnreachable", "certificate", exit_code=ExitCode.ENVIRONMENT)
