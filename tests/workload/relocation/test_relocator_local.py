"""Paths, claims and ConfigMaps: what this program can see, brought or verified in place."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.needs import small_disk
from tests.support.relocator import Relocator, assert_refused, files_in

from finetuning_api.reasons import ExitCode

ROWS = {"train.jsonl": b'{"a": 1}\n', "more/test.jsonl": b'{"a": 2}\n'}


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def lay_config_map(folder: Path, keys: dict[str, bytes]) -> Path:
    """Lay out keys as kubelet does: links through ``..data`` to a dated folder."""
    (folder / "..2026_01_01").mkdir(parents=True)
    lay(folder / "..2026_01_01", keys)
    (folder / "..data").symlink_to("..2026_01_01")
    for key in keys:
        (folder / key).symlink_to(f"..data/{key}")
    return folder


def test_a_folder_is_copied_with_its_digests(relocator: Relocator, destination: Path, tmp_path: Path) -> None:
    ended = relocator.relocate(str(lay(tmp_path / "rows", ROWS)), destination)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == ROWS


def test_a_file_becomes_an_artifact_of_one_file(relocator: Relocator, destination: Path, tmp_path: Path) -> None:
    source = lay(tmp_path / "rows", ROWS) / "train.jsonl"
    ended = relocator.relocate(f"file://{source}", destination)
    assert files_in(destination) == {"train.jsonl": ROWS["train.jsonl"]}
    assert ended.artifact.files == 1


def test_equal_content_has_an_equal_digest_wherever_it_lies(relocator: Relocator, tmp_path: Path) -> None:
    first = relocator.relocate(str(lay(tmp_path / "one", ROWS)), tmp_path / "a").artifact
    second = relocator.relocate(str(lay(tmp_path / "two", ROWS)), tmp_path / "b").artifact
    assert first.digest == second.digest


def test_the_revision_of_a_path_is_the_digest_of_its_content(
    relocator: Relocator, destination: Path, tmp_path: Path
) -> None:
    source = lay(tmp_path / "rows", ROWS) / "train.jsonl"
    right = f"sha256:{hashlib.sha256(ROWS['train.jsonl']).hexdigest()}"
    assert relocator.relocate(str(source), destination, revision=right).exit_code == ExitCode.DONE
    wrong = relocator.relocate(str(source), tmp_path / "other", revision="main")
    assert_refused(wrong, "RevisionNotFound", "'main'", right)
    assert not (tmp_path / "other").exists()


def test_a_path_that_does_not_exist_is_named(relocator: Relocator, destination: Path, tmp_path: Path) -> None:
    ended = relocator.relocate(str(tmp_path / "absent"), destination)
    assert_refused(ended, "SourceNotFound", str(tmp_path / "absent"))
    assert not destination.exists()


def test_an_empty_folder_holds_nothing(relocator: Relocator, destination: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(relocator.relocate(str(tmp_path / "empty"), destination), "SourceNotFound", "empty")


def test_a_link_out_of_the_folder_is_refused(relocator: Relocator, destination: Path, tmp_path: Path) -> None:
    source = lay(tmp_path / "rows", ROWS)
    (source / "passwd.jsonl").symlink_to("/etc/passwd")
    ended = relocator.relocate(str(source), destination)
    assert_refused(ended, "UnsafeContent", "passwd.jsonl", "link")
    assert not destination.exists()


def test_a_large_file_pointer_of_git_is_not_taken_for_the_file(
    relocator: Relocator, destination: Path, tmp_path: Path
) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    source = lay(tmp_path / "model", {"config.json": b"{}", "model.safetensors": pointer})
    assert_refused(relocator.relocate(str(source), destination), "UnsafeContent", "Git LFS pointer")


def test_a_torch_archive_under_another_name_is_refused(relocator: Relocator, destination: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "rows").mkdir()
    torch.save({"a": torch.zeros(2)}, tmp_path / "rows" / "weights.dat")
    assert_refused(relocator.relocate(str(tmp_path / "rows"), destination), "UnsafeContent", "weights.dat is a pickle")


def test_another_source_never_overwrites_an_artifact(relocator: Relocator, destination: Path, tmp_path: Path) -> None:
    relocator.relocate(str(lay(tmp_path / "one", ROWS)), destination)
    ended = relocator.relocate(str(lay(tmp_path / "two", {"x.txt": b"x"})), destination)
    assert_refused(ended, "ArtifactCorrupt", "one", "two")
    assert files_in(destination) == ROWS


def test_a_config_map_is_followed_through_the_links_of_kubelet(
    relocator: Relocator, destination: Path, tmp_path: Path
) -> None:
    mount = lay_config_map(tmp_path / "mount", {"a.jsonl": b"{}\n", "b.txt": b"b"})
    ended = relocator.relocate_mounted("configmap://rows", mount, destination)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == {"a.jsonl": b"{}\n", "b.txt": b"b"}


@pytest.mark.parametrize("source", ["configmap://rows/a.jsonl", "configmap://rows#a.jsonl"])
def test_one_key_of_a_config_map_is_taken_alone(
    relocator: Relocator, destination: Path, tmp_path: Path, source: str
) -> None:
    mount = lay_config_map(tmp_path / "mount", {"a.jsonl": b"{}\n", "b.txt": b"b"})
    relocator.relocate_mounted(source, mount, destination)
    assert files_in(destination) == {"a.jsonl": b"{}\n"}


def test_an_empty_config_map_is_refused(relocator: Relocator, destination: Path, tmp_path: Path) -> None:
    mount = lay_config_map(tmp_path / "mount", {})
    ended = relocator.relocate_mounted("configmap://rows", mount, destination)
    assert_refused(ended, "SourceNotFound", "configmap://rows", "key")


def test_a_claim_is_copied_from_the_folder_that_the_source_names(
    relocator: Relocator, destination: Path, tmp_path: Path
) -> None:
    claim = lay(tmp_path / "claim", {"models/a.gguf": b"GGUF", "other/b.txt": b"b"})
    relocator.relocate_mounted("pvc://shared/models#a.gguf", claim, destination)
    assert files_in(destination) == {"a.gguf": b"GGUF"}


def test_a_claim_cannot_be_left(relocator: Relocator, destination: Path, tmp_path: Path) -> None:
    lay(tmp_path, {"secret/a.txt": b"s", "claim/b.txt": b"b"})
    ended = relocator.relocate_mounted("pvc://shared/../secret", tmp_path / "claim", destination)
    assert_refused(ended, "UnsafeContent", "leaves the claim")


def test_an_artifact_is_verified_in_place(relocator: Relocator, destination: Path, tmp_path: Path) -> None:
    made = relocator.relocate(str(lay(tmp_path / "rows", ROWS)), destination).artifact
    before = {path: path.stat().st_mtime_ns for path in destination.rglob("*")}
    verified = relocator.verify("pvc://shared/rows", destination)
    assert verified.artifact == made.model_copy(update={"transferred_bytes": 0})
    assert {path: path.stat().st_mtime_ns for path in destination.rglob("*")} == before


def test_files_without_a_manifest_are_hashed_and_left_as_they_are(relocator: Relocator, tmp_path: Path) -> None:
    claim = lay(tmp_path / "claim", ROWS)
    verified = relocator.verify("pvc://shared/rows", claim)
    assert verified.artifact.digest == relocator.relocate(str(claim), tmp_path / "copy").artifact.digest
    assert files_in(claim) == ROWS


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_claim_that_differs_from_its_manifest_is_refused(
    relocator: Relocator, destination: Path, tmp_path: Path, damage: str
) -> None:
    relocator.relocate(str(lay(tmp_path / "rows", ROWS)), destination)
    match damage:
        case "changed":
            (destination / "train.jsonl").write_bytes(b'{"a": 9}\n')
        case "missing":
            (destination / "train.jsonl").unlink()
        case _:
            (destination / "added.jsonl").write_bytes(b"{}")
    name = "added.jsonl" if damage == "added" else "train.jsonl"
    assert_refused(relocator.verify("pvc://shared/rows", destination), "ArtifactCorrupt", name)


def test_a_pickle_only_claim_is_refused(relocator: Relocator, tmp_path: Path) -> None:
    claim = lay(tmp_path / "claim", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    assert_refused(relocator.verify("pvc://shared/m", claim), "UnsafeContent", "pytorch_model.bin")


def test_an_unknown_scheme_is_refused(relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate("ftp://host/file", destination)
    assert_refused(ended, "UnknownScheme", "'ftp'", "hf://")
    assert not destination.exists()


@pytest.fixture
def megabyte(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "size=1m") as disk:
        yield disk


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(
    relocator: Relocator, megabyte: Path, tmp_path: Path
) -> None:
    source = lay(tmp_path / "rows", {"big.jsonl": b"x" * 3_000_000})
    ended = relocator.relocate(str(source), megabyte / "artifact")
    assert_refused(ended, "DiskFull", "3.0 MB", "1.0 MB", exit_code=ExitCode.ENVIRONMENT)
    assert not list(megabyte.rglob("big.jsonl"))


def test_a_read_only_folder_is_named(relocator: Relocator, megabyte: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(megabyte)], check=True)
    ended = relocator.relocate(str(lay(tmp_path / "rows", ROWS)), megabyte / "artifact")
    assert_refused(ended, "ReadOnlyFileSystem", str(megabyte), exit_code=ExitCode.ENVIRONMENT)
