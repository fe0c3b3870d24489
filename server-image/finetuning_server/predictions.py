"""The artifact of predictions: one line for every row and candidate, and what they were made with."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from finetuning_api.finetuningjob import Precision
from finetuning_api.runconfig import MANIFEST_NAME, ContractModel, JobIdentity, PredictConfig, PredictResult, Provenance
from finetuning_server.journal import Ending, Journal
from finetuning_workload.artifact import PARTIAL_NAME, Manifest, damaged_files, read_manifest, write_manifest
from finetuning_workload.candidates import adapter_digest
from finetuning_workload.data import RenderedRow, Table, iterate_prompts
from finetuning_workload.errors import UserError
from finetuning_workload.files import write_atomically
from finetuning_workload.models import load_tokenizer

PREDICTIONS_NAME = "predictions.jsonl"
SUMMARY_NAME = "summary.json"
_VERSION = 1
"""Raised when the meaning of a completion changes, so that an older run's are not taken for new ones."""
_TOOL = "finetuning_server"


class Prediction(ContractModel):
    """One line of predictions.jsonl. Lines are in the order of the rows, and of the candidates within a row."""

    row: int
    """Number of the row in the data, counted from 1."""
    row_id: str
    """16 hex digits of the hash of its content, and an ordinal for repeated rows."""
    candidate: str
    prompt: str
    completion: str | None
    """None where the prompt could not be gone on from."""
    finish_reason: Ending
    prompt_tokens: int
    completion_tokens: int


class PredictedCandidate(ContractModel):
    """What a candidate is made of."""

    name: str
    model: Provenance
    tokenizer: Provenance
    adapter_digest: str | None = None


class Summary(ContractModel):
    """Everything in summary.json."""

    schema_version: Literal["predict/v1"] = "predict/v1"
    job: JobIdentity
    config_digest: str
    """sha256 of what shapes the predictions; equal means that they need not be made again."""
    created_at: datetime
    dataset: Provenance
    candidates: tuple[PredictedCandidate, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    precision: Precision
    """Number format that the models computed in."""
    rows: int
    unanswered: int
    tokens: int

    def result(self, manifest: Manifest) -> PredictResult:
        """Return what the program reports."""
        return PredictResult(
            rows=self.rows,
            unanswered=self.unanswered,
            tokens=self.tokens,
            digest=manifest.digest,
            size_bytes=manifest.total_bytes,
            warnings=self._warnings(),
        )

    def _warnings(self) -> tuple[str, ...]:
        if not self.unanswered:
            return ()
        total = self.rows * len(self.candidates)
        why = "their prompts are empty or leave no room in the model's context"
        return (f"{self.unanswered} of {total} lines have no completion: {why} (finishReason says which)",)


def config_digest(config: PredictConfig) -> str:
    """Return the identity of predictions: equal means that the same completions would come out."""
    data = {
        "version": _VERSION,
        "dataset": [config.dataset.provenance.digest, config.dataset.rows.model_dump(mode="json")],
        "candidates": [each.model_dump(mode="json") for each in _candidates(config)],
        **config.model_dump(mode="json", include={"limit", "max_new_tokens", "stop"}),
    }
    return f"sha256:{hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()}"


def find_finished(folder: Path, *, config_digest: str) -> PredictResult | None:
    """Return the result of intact, finished predictions of the same configuration, else None."""
    try:
        manifest = read_manifest(folder)
        if manifest is None or damaged_files(folder, manifest):
            return None
        summary = Summary.model_validate_json((folder / SUMMARY_NAME).read_bytes())
    except (UserError, ValidationError, OSError):
        # Damaged: they are made again.
        return None
    return summary.result(manifest) if summary.config_digest == config_digest else None


@dataclass(frozen=True, slots=True)
class Made:
    """How predictions were made."""

    config_digest: str
    precision: Precision
    rows: int


def write_predictions(config: PredictConfig, table: Table, *, journal: Journal, made: Made) -> PredictResult:
    """Write everything that the journal holds in the order of the rows, and the manifest last."""
    folder = Path(config.output_path)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    unanswered = 0
    growing = folder / PARTIAL_NAME / PREDICTIONS_NAME
    with growing.open("w", encoding="utf-8") as file:
        for prediction in _predictions(config, table, journal):
            unanswered += not prediction.finish_reason.answered
            file.write(f"{prediction.model_dump_json(by_alias=True)}\n")
    growing.replace(folder / PREDICTIONS_NAME)
    summary = Summary(
        job=config.job,
        config_digest=made.config_digest,
        created_at=datetime.now(UTC),
        dataset=config.dataset.provenance,
        candidates=_candidates(config),
        max_new_tokens=config.max_new_tokens,
        stop=config.stop,
        precision=made.precision,
        rows=made.rows,
        unanswered=unanswered,
        tokens=journal.tokens,
    )
    write_atomically(folder / SUMMARY_NAME, summary.to_json())
    manifest = write_manifest(
        folder,
        source=f"prediction://{config.job.kind}/{config.job.name}",
        resolved_revision=made.config_digest,
        content_format="predictions",
        created_at=summary.created_at,
        tool=_TOOL,
    )
    return summary.result(manifest)


def _predictions(config: PredictConfig, table: Table, journal: Journal) -> Iterator[Prediction]:
    """Go through all lines. A prompt reads as its candidate's tokenizer renders it: chat templates differ."""
    paths = list(dict.fromkeys(candidate.model.tokenizer_path for candidate in config.candidates))
    for rendered in zip(*(_prompts(config, table, Path(path)) for path in paths), strict=True):
        by_path = dict(zip(paths, rendered, strict=True))
        for candidate in config.candidates:
            number, row = by_path[candidate.model.tokenizer_path]
            completed = journal.find(candidate.name, number)
            yield Prediction(row_id=row.row_id, prompt=row.prompt, **completed.model_dump())


def _prompts(config: PredictConfig, table: Table, tokenizer: Path) -> Iterator[tuple[int, RenderedRow]]:
    return iterate_prompts(table, config.dataset.rows, load_tokenizer(tokenizer), limit=config.limit)


def _candidates(config: PredictConfig) -> tuple[PredictedCandidate, ...]:
    return tuple(
        PredictedCandidate(
            name=candidate.name,
            model=candidate.model.provenance,
            tokenizer=candidate.model.tokenizer_provenance,
            adapter_digest=adapter_digest(candidate),
        )
        for candidate in config.candidates
    )
