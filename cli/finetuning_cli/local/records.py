"""What is kept of an object's steps between runs, sealed by a digest."""

import hashlib
from datetime import datetime
from pathlib import Path

from pydantic import Field, ValidationError

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ContractModel, LastWords
from finetuning_operator.reconcile.plan import StepPhase
from finetuning_workload.errors import UserError
from finetuning_workload.files import explained_os_errors, write_atomically

_NAME = "state.json"


class StepRecord(ContractModel):
    """One step: where it stands, and how often it was started and failed."""

    phase: StepPhase = StepPhase.PENDING
    attempts: int = 0
    failures: int = 0
    """Attempts that count against the retries; interruptions do not."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    last_words: LastWords | None = None
    pid: int | None = None


class _Steps(ContractModel):
    steps: dict[str, StepRecord] = Field(default_factory=dict)


class _File(ContractModel):
    digest: str
    content: _Steps


def load_records(folder: Path) -> dict[str, StepRecord]:
    """Return the records of an object's steps by name. Raises UserError(STATE_CORRUPT) for a damaged file."""
    path = folder / _NAME
    try:
        stored = _File.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise _corrupt(path) from error
    if stored.digest != _digest(stored.content):
        raise _corrupt(path)
    return stored.content.steps


def save_records(folder: Path, records: dict[str, StepRecord]) -> None:
    """Write the records of an object's steps."""
    content = _Steps(steps=records)
    with explained_os_errors("write the state folder"):
        write_atomically(folder / _NAME, _File(digest=_digest(content), content=content).to_json())


def _digest(content: _Steps) -> str:
    return f"sha256:{hashlib.sha256(content.to_json().encode()).hexdigest()}"


def _corrupt(path: Path) -> UserError:
    hint = f"Delete {path}: the stages of {path.parent.name} are checked and, where needed, run again."
    return UserError(Reason.STATE_CORRUPT, f"the state file {path} is damaged", hint)
