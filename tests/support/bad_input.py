"""A user at a desk: a model, some rows, a manifest with one mistake, and `finetune run` as a process of its own."""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file
from tests.support.models import tiny_llama, tiny_tokenizer
from tests.support.processes import FINETUNE, environment, start

from finetuning_api.base import API_VERSION, ConditionType
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_api.relocation import RelocationPhase
from finetuning_api.runconfig import MANIFEST_NAME
from finetuning_api.sources import SourceRef, relocation_name
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.records import StepRecord, load_records
from finetuning_cli.local.store import Store
from finetuning_cli.manifest import load_manifest
from finetuning_operator.reconcile.conditions import find_condition, is_true
from finetuning_workload.artifact import PARTIAL_NAME

Rows = Sequence[Mapping[str, object]]
GOOD_ROWS: Rows = tuple(
    {"message": f"case {index} is about {kind}", "triage": kind} for index in range(24) for kind in ("refund", "crash")
)
_SPEC: Mapping[str, Any] = {
    "model": {"source": "model"},
    "dataset": {
        "source": "rows.jsonl",
        "prompt": "Message: {message}\nTriage: ",
        "completion": "{triage}",
        "split": {"test": 0.25},
    },
    "method": {"type": "lora", "rank": 4},
    "training": {
        "maxSteps": 8,
        "batchSize": 4,
        "maxLength": 96,
        "learningRate": 0.01,
        "precision": "fp32",
        "checkpointEverySteps": 1,
    },
    "evaluation": {"enabled": False},
}


def poison(model: Path, *, word: str) -> None:
    """Make the embedding of a word's first token no number: only rows with it have a loss that is none."""
    file = model / "model.safetensors"
    weights = load_file(file)
    (token, *_) = tiny_tokenizer().encode(word, add_special_tokens=False)
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


def poisoned_rows(*, word: str) -> Rows:
    """Return good rows of which one has the word; with the seed of `good_spec` its turn is in the third step."""
    rows = list(GOOD_ROWS)
    rows[10] = {"message": f"{word} case", "triage": "crash"}
    return tuple(rows)


def good_spec(changes: Mapping[str, object]) -> dict[str, Any]:
    """Return the spec of a job that would succeed but for changes, by dotted field."""
    spec: dict[str, Any] = deepcopy(dict(_SPEC))
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = spec
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = deepcopy(value)
    return spec


@dataclass(frozen=True, slots=True)
class Ended:
    """What a user sees of a run that has ended."""

    code: int
    output: str
    errors: str

    @property
    def terminal(self) -> str:
        """Everything that was printed."""
        return f"{self.output}\n{self.errors}"


class Desk:
    """A folder with a tiny model and rows; every job has a name of its own and may share one state folder."""

    def __init__(self, folder: Path, *, state: Path | None = None) -> None:
        self.folder = folder
        self.state = state or folder / ".finetuning"
        tiny_llama(folder / "model")
        self.write_rows("rows.jsonl", GOOD_ROWS)

    def write_rows(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Write rows as JSON lines."""
        (self.folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def write_job(self, name: str, changes: Mapping[str, object]) -> Path:
        """Write the manifest of a job that would succeed but for changes, by dotted field below spec."""
        manifest = {
            "apiVersion": API_VERSION,
            "kind": "FineTuningJob",
            "metadata": {"name": name},
            "spec": good_spec(changes),
        }
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(manifest))
        return file

    def run(
        self,
        name: str,
        changes: Mapping[str, object] | None = None,
        *,
        options: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
        limits: Sequence[str] = (),
        seconds: float = 300,
    ) -> Ended:
        """Run a job to its end. ``limits`` are options of prlimit; ``seconds`` is what a user would bear."""
        file = self.write_job(name, changes or {})
        command = [*(("prlimit", *limits) if limits else ()), *self._command(file), *options]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(extra),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return Ended(code=done.returncode, output=done.stdout, errors=done.stderr)

    def start(self, name: str, changes: Mapping[str, object] | None = None) -> subprocess.Popen[str]:
        """Start a job."""
        return start(*self._command(self.write_job(name, changes or {})), cwd=self.folder)

    def _command(self, file: Path) -> tuple[str, ...]:
        return str(FINETUNE), "run", file.name, "--state", str(self.state)

    @property
    def store(self) -> Store:
        return Store(Layout.at(self.state))

    def job(self, name: str) -> FineTuningJob:
        """Return a job as it is stored."""
        found = self.store.get("FineTuningJob", name)
        assert isinstance(found, FineTuningJob)
        return found

    def failure(self, name: str) -> tuple[Reason, str]:
        """Return reason and message of a job that has failed."""
        conditions = self.job(name).status.conditions
        failed = find_condition(conditions, ConditionType.FAILED)
        assert failed is not None
        assert is_true(conditions, ConditionType.FAILED)
        return failed.reason, failed.message

    def steps(self, name: str) -> Mapping[str, StepRecord]:
        """Return what is known of the steps of a job."""
        return load_records(self.state / "steps" / "FineTuningJob" / name)

    def log(self, name: str, step: str) -> str:
        """Return what the attempts of a step wrote into their logs."""
        logs = sorted((self.state / "steps" / "FineTuningJob" / name / step).glob("attempt-*.log"))
        return "".join(log.read_text() for log in logs)

    def artifact(self, name: str, field: str) -> Path:
        """Return where the model or the data of a job, a ``field`` of its spec, is or would be relocated to."""
        (job,) = load_manifest(self.folder / f"{name}.yaml").resources
        assert isinstance(job, FineTuningJob)
        ref = getattr(job.spec, field)
        plain = SourceRef.model_validate(ref.model_dump(include=set(SourceRef.model_fields)))
        return self.state / "volumes" / relocation_name(plain) / "artifact"


def require_told(desk: Desk, name: str, ended: Ended, *, reason: Reason, told: Sequence[str]) -> None:
    """Check what every failure owes to its user: one message, in words, that is also the reason in the status."""
    assert ended.code == 1, ended.terminal
    assert "Traceback" not in ended.terminal
    found, message = desk.failure(name)
    assert found is reason, message
    assert [part for part in told if part not in message] == [], message
    assert ended.terminal.count(message) == 1, ended.terminal


def require_nothing_half_done(desk: Desk, name: str) -> None:
    """Check that nothing was trained and that whatever was relocated is whole."""
    assert "train" not in desk.steps(name)
    adapter = desk.state / "volumes" / f"{name}-adapter"
    assert list(adapter.rglob(MANIFEST_NAME)) == []
    assert list(desk.state.rglob(PARTIAL_NAME)) == []
    assert list(desk.state.rglob(".*.tmp")) == []
    for key, resource in desk.store.all().items():
        if key[0] == "Relocation":
            folder = desk.state / "volumes" / key[1] / "artifact"
            ready = getattr(getattr(resource, "status", None), "phase", None) is RelocationPhase.READY
            assert (folder / MANIFEST_NAME).exists() is ready
