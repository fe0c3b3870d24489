"""The finished artifact: weights in the formats that everybody reads, a card and the provenance."""

from pathlib import Path

import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from finetuning_api.runconfig import PROVENANCE_NAME, TrainResult
from finetuning_trainer.adapters import Trainee
from finetuning_trainer.card import CARD_NAME, model_card
from finetuning_trainer.folders import whole_folder
from finetuning_trainer.provenance import TrainingProvenance
from finetuning_workload.artifact import Manifest, require_intact
from finetuning_workload.errors import UserError

ADAPTER_FORMAT, MODEL_FORMAT = "peft-adapter", "safetensors"


def save_output(
    folder: Path,
    *,
    trainee: Trainee,
    weights: dict[str, torch.Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    record: TrainingProvenance,
) -> Manifest:
    """Write the artifact: an adapter as PEFT saves it or, after full fine-tuning, a whole model with its tokenizer.

    ``weights`` are the trained ones, whole, by their names in the model; None where the model has them itself.
    """
    adapter = isinstance(trainee.wrapped, PeftModel)
    content_format = ADAPTER_FORMAT if adapter else MODEL_FORMAT
    with whole_folder(folder, source="training", revision=record.identity, content_format=content_format) as partial:
        if isinstance(trainee.wrapped, PeftModel):
            # The path of this machine means nothing elsewhere; the source does. Embeddings are never resized here, and
            # looking whether they were would ask a hub.
            trainee.wrapped.active_peft_config.base_model_name_or_path = record.model.source
            trainee.wrapped.save_pretrained(str(partial), save_embedding_layers=False, state_dict=weights)
        else:
            trainee.causal.save_pretrained(partial, state_dict=weights)
            tokenizer.save_pretrained(partial)
        describe_output(partial, record)
    return require_intact(folder, content=False)


def describe_output(folder: Path, record: TrainingProvenance) -> None:
    """Write what tells of a result beside it: the card and the provenance."""
    (folder / CARD_NAME).write_text(model_card(record))
    (folder / PROVENANCE_NAME).write_text(record.to_json())


def finished_result(folder: Path, *, identity: str) -> TrainResult | None:
    """Return the result of a training that is already done, when its artifact is intact and of the same identity."""
    try:
        manifest, record = _made(folder)
    except (UserError, OSError, ValidationError):
        return None
    return train_result(manifest, record) if record.identity == identity else None


def result_of(folder: Path) -> TrainResult:
    """Return what the program says of an artifact that is there. Raises UserError(ARTIFACT_CORRUPT)."""
    return train_result(*_made(folder))


def _made(folder: Path) -> tuple[Manifest, TrainingProvenance]:
    manifest = require_intact(folder)
    return manifest, TrainingProvenance.model_validate_json((folder / PROVENANCE_NAME).read_bytes())


def train_result(manifest: Manifest, record: TrainingProvenance) -> TrainResult:
    """Return what the program says of a finished artifact."""
    return TrainResult(
        digest=manifest.digest,
        size_bytes=manifest.total_bytes,
        steps=record.steps,
        loss=record.loss,
        evaluation_loss=record.evaluation_loss,
        dataset=record.counts,
        best_step=record.best_step,
        stopped_early=record.stopped_early,
        given_up=record.given_up,
        resumed_from_step=record.resumed_from_step,
        resumptions=record.resumptions,
        damaged_checkpoints=record.damaged_checkpoints,
    )
