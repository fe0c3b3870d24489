"""Which files of a relocated data set are data, which format they have, and how their text is encoded."""

import codecs
import gzip
from collections import Counter
from pathlib import Path
from typing import IO, cast

from finetuning_api.dataset import DataFormat
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import MANIFEST_NAME
from finetuning_workload.errors import UserError

_FORMATS = {
    ".jsonl": DataFormat.JSONL,
    ".ndjson": DataFormat.JSONL,
    ".json": DataFormat.JSON,
    ".csv": DataFormat.CSV,
    ".tsv": DataFormat.TSV,
    ".tab": DataFormat.TSV,
    ".parquet": DataFormat.PARQUET,
    ".pq": DataFormat.PARQUET,
    ".arrow": DataFormat.ARROW,
    ".feather": DataFormat.ARROW,
    ".txt": DataFormat.TEXT,
    ".text": DataFormat.TEXT,
}
_GZIP = ".gz"
# What hubs and `datasets` itself put beside the data.
_BOOKKEEPING = frozenset(
    {MANIFEST_NAME, "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json"}
)
_PROSE = frozenset({"readme", "license", "licence", "copying", "notice", "changelog"})

# The longer mark first: that of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def find_data_files(path: Path, wanted: DataFormat) -> tuple[DataFormat, tuple[Path, ...]]:
    """Return the format and the data files of a file or folder, sorted by path.

    Manifests, hidden files, read-me files and the bookkeeping of hubs are no data. Raises
    UserError(DATASET_UNREADABLE) where there is no data file, or several formats and none was wanted.
    """
    if path.is_file():
        return _format_of_file(path, wanted), (path,)
    if not path.is_dir():
        hint = "Check spec.dataset.source."
        raise UserError(Reason.DATASET_UNREADABLE, f"there is no data at {path}", hint)
    candidates = [file for file in sorted(path.rglob("*")) if file.is_file() and _may_be_data(file.relative_to(path))]
    by_format = [(file, format_of_name(file)) for file in candidates]
    if wanted is not DataFormat.AUTO:
        named = tuple(file for file, found in by_format if found is wanted)
        # A name that says nothing is taken at the user's word; one that says another format is not.
        return wanted, named or _require_files(path, [file for file, found in by_format if found is None], wanted)
    known = [(file, found) for file, found in by_format if found is not None]
    formats = Counter(found for _, found in known)
    if len(formats) > 1:
        listing = ", ".join(f"{count} {name}" for name, count in sorted(formats.items()))
        message = f"spec.dataset.format is auto, but the data set has files of several formats: {listing}"
        raise UserError(Reason.DATASET_UNREADABLE, message, "Set spec.dataset.format, or narrow spec.dataset.include.")
    files = _require_files(path, [file for file, _ in known], wanted)
    return known[0][1], files


def format_of_name(path: Path) -> DataFormat | None:
    """Return the format that a file's name tells, looking through ``.gz``; None where it tells none."""
    name = path.name.lower().removesuffix(_GZIP)
    return _FORMATS.get(Path(name).suffix)


def _format_of_file(path: Path, wanted: DataFormat) -> DataFormat:
    found = format_of_name(path) if wanted is DataFormat.AUTO else wanted
    if found is None:
        message = f"spec.dataset.format is auto, but the name {path.name!r} tells no format"
        raise UserError(Reason.DATASET_UNREADABLE, message, f"Set spec.dataset.format to one of {_format_names()}.")
    return found


def _may_be_data(relative: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    name = relative.name.lower()
    return not hidden and name not in _BOOKKEEPING and name.split(".")[0] not in _PROSE


def _require_files(folder: Path, files: list[Path], wanted: DataFormat) -> tuple[Path, ...]:
    if files:
        return tuple(files)
    present = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    what = "data file" if wanted is DataFormat.AUTO else f"{wanted} file"
    listing = ", ".join(present[:10]) or "nothing"
    message = f"spec.dataset.source holds no {what}; it holds {listing}"
    hint = f"Data files end in {', '.join(_FORMATS)}; for other names set spec.dataset.format."
    raise UserError(Reason.DATASET_UNREADABLE, message, hint)


def _format_names() -> str:
    return ", ".join(name.value for name in DataFormat if name is not DataFormat.AUTO)


def is_blank(path: Path) -> bool:
    """Return whether a text file has no byte but blanks and a byte order mark."""
    with _open(path) as file:
        while block := file.read(1 << 16):
            if block.strip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"):
                return False
    return True


def encoding_of(path: Path) -> str:
    """Return the codec of a text file: UTF-8 unless a byte order mark says UTF-16 or UTF-32."""
    with _open(path) as file:
        start = file.read(4)
    return next((codec for mark, codec in _BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8-sig")


def undecodable(path: Path, name: str) -> UserError:
    """Return the error for a file that is not the text that it should be, with the place of the first wrong byte."""
    decoder = codecs.getincrementaldecoder(encoding_of(path))()
    line, offset = 1, 0
    with _open(path) as file:
        for raw in file:
            try:
                decoder.decode(raw)
            except UnicodeDecodeError as error:
                place = f"line {line}, byte {offset + error.start} ({error.object[error.start]:#04x})"
                break
            line, offset = line + 1, offset + len(raw)
        else:
            place = "its end: the last character is cut off"
    message = f"{name} is not valid UTF-8: {place}"
    hint = f"Convert it to UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8-{path.name}"
    return UserError(Reason.DATASET_UNREADABLE, message, hint)


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.name.lower().endswith(_GZIP) else path.open("rb")
