"""One file out of an archive, and nothing else."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from finetuning_api.reasons import Reason
from finetuning_relocator.archives import copy_stream, is_archive_name, open_member
from finetuning_relocator.watch import Watch
from finetuning_workload.errors import UserError
from finetuning_workload.program import StopFlag


def make_zip(path: Path, *, link: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/a.txt", "zipped")
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    return path


def make_tar(path: Path, *, hard_link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("./data/a.txt")
        info.size = 6
        archive.addfile(info, io.BytesIO(b"tarred"))
        if hard_link:
            link = tarfile.TarInfo(hard_link)
            link.type, link.linkname = tarfile.LNKTYPE, "../../etc/passwd"
            archive.addfile(link)
    return path


def read(archive: Path, member: str) -> bytes:
    with open_member(archive, member) as (stream, size):
        data = stream.read()
        assert len(data) == size
        return data


def test_a_member_is_read_from_either_kind(tmp_path: Path) -> None:
    assert read(make_zip(tmp_path / "a.zip"), "data/a.txt") == b"zipped"
    assert read(make_tar(tmp_path / "a.tar.gz"), "data/a.txt") == b"tarred"


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    for archive in (make_zip(tmp_path / "a.zip", link="l"), make_tar(tmp_path / "a.tgz", hard_link="l")):
        with pytest.raises(UserError) as error:
            read(archive, "l")
        assert error.value.reason is Reason.UNSAFE_CONTENT


@pytest.mark.parametrize("content", [b"no archive at all", b"\x1f\x8b\x08cut"])
def test_a_damaged_archive_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path, "a.txt")
    assert error.value.reason is Reason.CHECKSUM_MISMATCH


def test_a_stream_that_is_longer_than_announced_does_not_fill_the_disk(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        copy_stream(io.BytesIO(b"x" * 100), tmp_path / "out", size=10, watch=Watch(StopFlag(), 1))
    assert error.value.reason is Reason.UNSAFE_CONTENT


@pytest.mark.parametrize(("name", "expected"), [("a.zip", True), ("A.TAR.GZ", True), ("a.gguf", False), ("zip", False)])
def test_archives_are_known_by_name(name: str, expected: bool) -> None:  # noqa: FBT001  (a case of the table)
    assert is_archive_name(name) is expected
