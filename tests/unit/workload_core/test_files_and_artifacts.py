"""Files that are whole or not there, and artifacts that are complete or no artifacts."""

import errno
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning_api.reasons import Reason
from finetuning_workload.artifact import (
    PARTIAL_NAME,
    Manifest,
    ManifestFile,
    artifact_files,
    damaged_files,
    read_manifest,
    remove_all_but,
    require_intact,
    write_manifest,
)
from finetuning_workload.errors import EnvironmentFault, UserError
from finetuning_workload.files import explained_os_errors, format_bytes, require_free_space, write_atomically

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def lay(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def complete(folder: Path) -> Manifest:
    return write_manifest(
        folder, source="file:///rows", resolved_revision=None, content_format="files", created_at=NOW, tool="test"
    )


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_makes_the_folder_that_it_needs(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.txt", b"content")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, Reason.DISK_FULL),
        (errno.EDQUOT, Reason.DISK_FULL),
        (errno.EROFS, Reason.READ_ONLY_FILE_SYSTEM),
        (errno.EACCES, Reason.READ_ONLY_FILE_SYSTEM),
    ],
)
def test_a_disk_that_refuses_is_explained(number: int, reason: Reason) -> None:
    with pytest.raises(EnvironmentFault) as fault, explained_os_errors("save the adapter"):
        raise OSError(number, "refused", "/adapters/a")
    assert fault.value.reason is reason
    assert "cannot save the adapter" in fault.value.message
    assert "/adapters/a" in fault.value.message


def test_other_errors_of_the_system_pass() -> None:
    with pytest.raises(ConnectionResetError), explained_os_errors("read"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_missing_space_is_told_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as fault:
        require_free_space(tmp_path / "not" / "there" / "yet", 10**18, purpose="the model")
    assert fault.value.reason is Reason.DISK_FULL
    assert "1000000.0 TB" in fault.value.message


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_362_432, "98.4 MB"), (2.5e12, "2.5 TB")]
)
def test_bytes_are_written_for_a_person(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_an_artifact_without_its_manifest_is_none(tmp_path: Path) -> None:
    lay(tmp_path, a=b"a")
    assert read_manifest(tmp_path) is None
    with pytest.raises(UserError) as error:
        require_intact(tmp_path)
    assert error.value.reason is Reason.ARTIFACT_CORRUPT


def test_a_complete_artifact_is_intact(tmp_path: Path) -> None:
    manifest = complete(lay(tmp_path, a=b"a", b=b"bb"))
    assert require_intact(tmp_path, digest=manifest.digest) == manifest
    assert (manifest.total_bytes, [file.path for file in manifest.files]) == (3, ["a", "b"])


@pytest.mark.parametrize("change", [b"x", b"longer"])
def test_a_changed_file_is_damage(tmp_path: Path, change: bytes) -> None:
    manifest = complete(lay(tmp_path, a=b"a", b=b"b"))
    (tmp_path / "b").write_bytes(change)
    assert damaged_files(tmp_path, manifest) == ("b",)


def test_a_missing_file_is_damage_even_without_looking_at_content(tmp_path: Path) -> None:
    manifest = complete(lay(tmp_path, a=b"a"))
    (tmp_path / "a").unlink()
    assert damaged_files(tmp_path, manifest, content=False) == ("a",)


def test_another_digest_than_the_expected_one_is_refused(tmp_path: Path) -> None:
    complete(lay(tmp_path, a=b"a"))
    with pytest.raises(UserError, match="expected sha256:0"):
        require_intact(tmp_path, digest=f"sha256:{'0' * 64}")


def test_a_damaged_manifest_is_never_used(tmp_path: Path) -> None:
    lay(tmp_path, **{"manifest.json": b"{"})
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path)
    assert error.value.reason is Reason.ARTIFACT_CORRUPT


def test_what_is_not_content_is_neither_hashed_nor_removed(tmp_path: Path) -> None:
    lay(tmp_path, a=b"a")
    lay(tmp_path / PARTIAL_NAME, half=b"h")
    lay(tmp_path / "lost+found", orphan=b"o")
    assert [path.name for path in artifact_files(tmp_path)] == ["a"]
    remove_all_but(tmp_path, [])
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["half", "orphan"]


def test_a_link_inside_the_folder_is_content_and_one_out_of_it_is_refused(tmp_path: Path) -> None:
    folder = lay(tmp_path / "artifact", a=b"a")
    (folder / "b").symlink_to("a")
    assert len(artifact_files(folder)) == 2
    (folder / "c").symlink_to("../outside")
    with pytest.raises(UserError) as error:
        artifact_files(folder)
    assert error.value.reason is Reason.UNSAFE_CONTENT


files = st.lists(
    st.builds(
        ManifestFile,
        path=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=5),
        size=st.integers(0, 9),
        sha256=st.sampled_from(["0" * 64, "1" * 64]),
    ),
    unique_by=lambda file: file.path,
    max_size=4,
)


@given(files=files, data=st.data())
def test_the_digest_depends_on_content_and_not_on_order(files: list[ManifestFile], data: st.DataObject) -> None:
    def digest(listed: list[ManifestFile]) -> str:
        manifest = Manifest(source="x", files=tuple(listed), total_bytes=0, format="files", created_at=NOW, tool="test")
        return manifest.digest

    assert digest(data.draw(st.permutations(files))) == digest(files)
    added = ManifestFile(path="another path", size=0, sha256="2" * 64)
    assert digest([*files, added]) != digest(files)


def test_whoever_mounts_an_artifact_may_read_its_files(tmp_path: Path) -> None:
    folder = lay(tmp_path / "adapter", weights=b"\0" * 8)
    (folder / "weights").chmod(0o600)
    complete(folder)
    assert stat.S_IMODE((folder / "weights").stat().st_mode) == 0o644
