"""An adapter and its base model as one model: added up in 32 bits, and compared before anybody can use it."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import (
    PROVENANCE_NAME,
    ArtifactResult,
    ContractModel,
    ExportConfig,
    JobIdentity,
    Provenance,
)
from finetuning_trainer.card import CARD_NAME, model_card
from finetuning_trainer.folders import whole_folder
from finetuning_trainer.output import MODEL_FORMAT
from finetuning_trainer.provenance import TrainingProvenance, versions
from finetuning_workload.artifact import read_manifest, require_intact
from finetuning_workload.errors import UserError
from finetuning_workload.files import require_free_space
from finetuning_workload.hardware import set_threads
from finetuning_workload.memory import explained_memory_errors
from finetuning_workload.models import (
    free,
    load_adapter,
    load_base_model,
    load_tokenizer,
    quiet_libraries,
    require_matching_tokenizer,
)
from finetuning_workload.program import Context

_LOG = logging.getLogger(__name__)
EXPORT_NAME: Final = "export.json"
TOLERANCE: Final = 1e-4
"""Of the largest logit: sums of 32 bits in another order differ by less, weights that were rounded to 16 by more."""
_SAMPLES: Final = (
    "The quick brown fox jumps over the lazy dog.",
    '{"name": "example", "count": 3, "tags": ["a", "b"]}',
    "Summarise the following message in one sentence:\n\nThe parcel arrived late, but it arrived.\n",
    "def add(first, second):\n    return first + second\n",
    "äöü ß é 漢字 1234567890 +-*/ ?!",
)
_SAMPLE_TOKENS: Final = 64
_LOADED, _COMPARED, _MERGED, _WRITTEN = 0.2, 0.4, 0.5, 0.7


class ExportProvenance(ContractModel):
    """The record beside a merged model, export.json."""

    job: JobIdentity
    base: Provenance
    tokenizer: Provenance
    adapter_digest: str
    dtype: str = "float32"
    largest_difference: float
    """Largest difference of a logit, on the samples, between this model as it is read from its files and base model
    with adapter."""
    largest_logit: float
    tolerance: float
    """Differences above this share of the largest logit are refused."""
    sample_tokens: int
    versions: dict[str, str]
    made_at: datetime


def merge(config: ExportConfig, context: Context) -> ArtifactResult:
    """Write base model and adapter as one model that transformers reads by itself.

    A merged model of the same two that is complete is not made again. Raises UserError: ARTIFACT_CORRUPT for another
    adapter than the one that was asked for, MERGE_INEXACT where the merged model answers otherwise.
    """
    quiet_libraries()
    set_threads(context.environment)
    adapter, output = Path(config.adapter_path), Path(config.output_path)
    require_intact(adapter, digest=config.adapter_digest)
    identity = f"{config.model.provenance.digest}+{config.adapter_digest}"
    done = read_manifest(output)
    if done is not None and done.resolved_revision == identity:
        return require_intact(output).result()
    weights = sum(file.stat().st_size for file in Path(config.model.path).glob("*.safetensors"))
    require_free_space(output.parent, 2 * weights, purpose="the merged model")
    reporter = context.reporter("Merging")
    try:
        with (
            whole_folder(
                output, source=config.model.provenance.source, revision=identity, content_format=MODEL_FORMAT
            ) as partial,
            explained_memory_errors("the export", hint="Give it more memory: it holds the model in 32 bits."),
        ):
            reporter.update(0.0, note="loads base model and adapter")
            tokenizer = load_tokenizer(Path(config.model.tokenizer_path))
            expected = _write_sum(config, tokenizer, partial, context)
            reporter.update(_MERGED, note="written; compares it with base model and adapter")
            difference = _difference(partial, tokenizer, expected)
            _require_close(difference, expected)
            _describe(config, partial, difference=difference, expected=expected)
            reporter.update(_WRITTEN, note="hashing")
        reporter.update(1.0, note="done")
    finally:
        reporter.close()
    return require_intact(output, content=False).result()


def _write_sum(
    config: ExportConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, context: Context
) -> list[torch.Tensor]:
    """Write the sum and return the logits of what it is the sum of."""
    base = load_base_model(Path(config.model.path), dtype=torch.float32, device=torch.device("cpu"))
    require_matching_tokenizer(base.config, tokenizer)
    tuned = load_adapter(base, Path(config.adapter_path))
    try:
        expected = _logits(tuned, tokenizer)
        context.stop.raise_if_set("stopped before the merged model was written")
        merged = cast("PreTrainedModel", tuned.merge_and_unload(safe_merge=True))
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        free(base)
    return expected


def _difference(folder: Path, tokenizer: PreTrainedTokenizerBase, expected: list[torch.Tensor]) -> float:
    """Return by how much the logits of the model in a folder differ at most."""
    model = load_base_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    try:
        pairs = zip(_logits(model, tokenizer), expected, strict=True)
        return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    finally:
        free(model)


@torch.inference_mode()
def _logits(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[torch.Tensor]:
    found = []
    for text in _SAMPLES:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=_SAMPLE_TOKENS)["input_ids"]
        found.append(model(input_ids=ids).logits.float())
    return found


def _largest(logits: list[torch.Tensor]) -> float:
    return max(float(each.abs().max()) for each in logits)


def _require_close(difference: float, expected: list[torch.Tensor]) -> None:
    allowed = TOLERANCE * _largest(expected)
    _LOG.info("largest difference of a logit %.3g, allowed %.3g", difference, allowed)
    # Written so that a difference that is no number is refused, too.
    if not difference <= allowed:
        message = f"the merged model answers otherwise than base model and adapter: a logit differs by {difference:.3g}"
        hint = f"At most {allowed:.3g} was expected. Use the adapter as it is (format adapter), and report this."
        raise UserError(Reason.MERGE_INEXACT, message, hint)


def _describe(config: ExportConfig, folder: Path, *, difference: float, expected: list[torch.Tensor]) -> None:
    """Write what tells of the model beside it: how it was trained, and how it was merged."""
    try:
        trained = TrainingProvenance.model_validate_json((Path(config.adapter_path) / PROVENANCE_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        message = f"{PROVENANCE_NAME} of the adapter cannot be read: {error}"
        raise UserError(Reason.ARTIFACT_CORRUPT, message, "Train the adapter again with this release.") from error
    record = ExportProvenance(
        job=config.job,
        base=config.model.provenance,
        tokenizer=config.model.tokenizer_provenance,
        adapter_digest=config.adapter_digest,
        largest_difference=difference,
        largest_logit=_largest(expected),
        tolerance=TOLERANCE,
        sample_tokens=sum(each.shape[1] for each in expected),
        versions=versions(),
        made_at=datetime.now(UTC),
    )
    (folder / EXPORT_NAME).write_text(record.to_json())
    (folder / PROVENANCE_NAME).write_text(trained.to_json())
    (folder / CARD_NAME).write_text(model_card(trained, merged=True))
