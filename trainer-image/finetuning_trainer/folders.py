"""Folders that appear whole: written aside, made durable, completed by their manifest, moved to their name."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError

from finetuning_workload.artifact import Manifest, artifact_files, write_manifest
from finetuning_workload.files import explained_os_errors, fsync_path

TOOL = "finetuning_trainer"
_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")


@contextmanager
def whole_folder(final: Path, *, source: str, revision: str | None, content_format: str) -> Iterator[Path]:
    """Yield an empty folder to write into, beside ``final``; at the end it takes the place of ``final``.

    An error removes what was written and leaves ``final`` as it was.
    """
    partial = final.with_name(f".{final.name}.partial")
    with explained_write_errors(f"write {final.name}"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            complete(partial, source=source, revision=revision, content_format=content_format)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        fsync_path(final.parent)


def complete(folder: Path, *, source: str, revision: str | None, content_format: str) -> Manifest:
    """Make the files of a folder durable and write its manifest."""
    for path in artifact_files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return write_manifest(
        folder,
        source=source,
        resolved_revision=revision,
        content_format=content_format,
        created_at=datetime.now(UTC),
        tool=TOOL,
    )


@contextmanager
def explained_write_errors(action: str) -> Iterator[None]:
    """Explain a full disk also where safetensors reports it, which hides the error's number in its message."""
    with explained_os_errors(action):
        try:
            yield
        except SafetensorError as error:
            number = _ERROR_NUMBER.search(str(error))
            if number is None:
                raise
            raise OSError(int(number.group(1)), str(error)) from error
