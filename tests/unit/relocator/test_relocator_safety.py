"""Paths and contents that never reach a volume."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning_api.reasons import Reason
from finetuning_relocator.safety import is_pickle_name, path_problem, require_harmless, require_safe_paths
from finetuning_workload.errors import UserError


@pytest.mark.parametrize(
    "path",
    [
        *("", "/a", "../a", "a/../b", "a/..", "./a", "a//b", "a/", "a\\b", "..\\a", "C:/a", "c:a"),
        *("a\x00b", "a\nb", "a\x7f", "x" * 256, "/".join(["d"] * 600)),
    ],
)
def test_a_path_that_could_be_written_elsewhere_is_refused(path: str) -> None:
    assert path_problem(path) is not None
    with pytest.raises(UserError) as error:
        require_safe_paths(["config.json", path], source="the source")
    assert error.value.reason is Reason.UNSAFE_CONTENT
    assert repr(path) in error.value.message


@pytest.mark.parametrize("path", ["a", "a/b.json", "...", "..a/b", "a b", "ä/漢字.txt", ".hidden", "x" * 255])
def test_an_ordinary_path_is_taken(path: str) -> None:
    assert path_problem(path) is None


@given(st.text(min_size=1, max_size=40))
def test_a_path_without_a_problem_stays_in_its_folder(path: str) -> None:
    root = Path("/artifact")
    if path_problem(path) is None:
        joined = Path("/artifact") / path
        assert joined.is_relative_to(root)
        assert ".." not in joined.parts


@pytest.mark.parametrize(
    "paths", [("a.json", "A.json"), ("dir/a", "DIR/a"), ("straße", "STRASSE"), ("a", "a/b"), ("a/b/c", "a/B")]
)
def test_two_paths_that_may_be_one_file_are_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(UserError) as error:
        require_safe_paths(paths, source="the source")
    assert error.value.reason is Reason.UNSAFE_CONTENT


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a/model.PT", "x.pth", "x.pkl", "x.ckpt"])
def test_names_of_pickles_are_known(name: str) -> None:
    assert is_pickle_name(name)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "bin", "a.bin/config.json", "rows.jsonl"])
def test_other_names_are_not_taken_for_pickles(name: str) -> None:
    assert not is_pickle_name(name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", [{"weights": [1.0] * 500}, "text", [Path("x")], {}])
def test_a_pickle_is_known_by_its_content(tmp_path: Path, protocol: int, value: object) -> None:
    path = tmp_path / "weights.dat"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(UserError) as error:
        require_harmless(path, name="weights.dat")
    assert error.value.reason is Reason.UNSAFE_CONTENT


def test_a_zip_with_a_pickle_in_it_is_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "weights.dat"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(UserError, match="pickle"):
        require_harmless(path, name="weights.dat")


def plain_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "a")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x80", b"\x80\x02", b'{"a": 1}\n', b"GGUF\x03\x00\x00\x00", b"PK broken", plain_zip()),
        struct.pack("<Q", 0x0480) + b'{"__metadata__": {}}',  # A safetensors header whose length looks like PROTO 4.
        b"\x80\x02" + bytes(range(200, 256)),
        "\x80\x04 text".encode("latin-1"),
    ],
)
def test_harmless_content_passes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    require_harmless(path, name="file")
