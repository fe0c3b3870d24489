"""Finished parts of an evaluation, kept so that a killed run goes on where it was."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from finetuning_api.runconfig import ContractModel
from finetuning_workload.files import write_atomically

PARTS_FOLDER = ".partial"

Part = TypeVar("Part", bound=ContractModel)


class Parts:
    """A folder of finished parts. A part is found again only under the key of everything that shaped it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, name: str, kind: type[Part], *, key: str) -> Part | None:
        """Return a finished part, None where there is none or it is damaged."""
        try:
            return kind.model_validate_json(self._path(name, key).read_bytes())
        except (OSError, ValidationError):
            return None

    def keep(self, name: str, part: ContractModel, *, key: str) -> None:
        """Keep a finished part."""
        write_atomically(self._path(name, key), part.to_json())

    def clear(self) -> None:
        """Remove all parts: the results are written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name: str, key: str) -> Path:
        return self._folder / f"{name}-{key[:16]}.json"


def digest_of(value: object) -> str:
    """Return the sha256 in hex of a JSON-ready value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
