"""GGUF to safetensors: once, without network, complete or not there."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ArtifactResult, ConvertConfig
from finetuning_trainer.folders import whole_folder
from finetuning_trainer.output import MODEL_FORMAT
from finetuning_workload.artifact import read_manifest, require_intact
from finetuning_workload.errors import UserError
from finetuning_workload.files import require_free_space
from finetuning_workload.hardware import set_threads
from finetuning_workload.memory import explained_memory_errors
from finetuning_workload.models import (
    load_tokenizer,
    quiet_libraries,
    require_matching_tokenizer,
    vocabulary_size,
)
from finetuning_workload.program import Context

_LOG = logging.getLogger(__name__)
_MAGIC = b"GGUF"
_GROWTH = 7
"""Times that a quantised file grows in 32 bits: from about 4.5 bits a weight."""
_LOADED, _CHECKED = 0.7, 0.8


def convert(config: ConvertConfig, context: Context) -> ArtifactResult:
    """Turn the GGUF file of a folder into an artifact of safetensors, configuration, tokenizer and chat template.

    The raw folder is removed when the artifact is complete; a complete artifact is not made again. Raises
    UserError(CONVERSION_FAILED) for a file that cannot be read as a model.
    """
    quiet_libraries()
    source, destination = Path(config.source), Path(config.destination)
    done = read_manifest(destination)
    if done is not None:
        done = require_intact(destination, content=False)
        shutil.rmtree(source, ignore_errors=True)
        return done.result()
    set_threads(context.environment)
    file = _gguf_file(source)
    require_free_space(destination, _GROWTH * file.stat().st_size, purpose="the converted model")
    reporter = context.reporter("Converting")
    try:
        reporter.update(0.0, note=file.name)
        with explained_memory_errors("the conversion", hint="Give it more memory: it holds the model in fp32."):
            model, tokenizer = _load(file)
        reporter.update(_LOADED, note="read; writing safetensors")
        context.stop.raise_if_set("stopped before the converted model was written")
        provenance = config.provenance
        with whole_folder(
            destination,
            source=provenance.source,
            revision=provenance.resolved_revision,
            content_format=MODEL_FORMAT,
        ) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            _drop_invented_tokens(partial / "tokenizer.json", vocabulary_size(model.config))
            require_matching_tokenizer(model.config, load_tokenizer(partial))
            reporter.update(_CHECKED, note="written; hashing")
        shutil.rmtree(source)
        reporter.update(1.0, note="done")
    finally:
        reporter.close()
    return require_intact(destination, content=False).result()


def _gguf_file(folder: Path) -> Path:
    require_intact(folder)
    files = sorted(folder.rglob("*.gguf"))
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        message = f"the source holds {len(files)} GGUF files ({names}); exactly one can be converted"
        raise UserError(Reason.CONVERSION_FAILED, message, "Name one file after # in spec.model.source.")
    with files[0].open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise _failed(files[0], "it does not begin as a GGUF file does")
    return files[0]


def _load(file: Path) -> tuple[PreTrainedModel, Any]:
    """Return the dequantised model in fp32 and its tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
        )
        # What is saved is an ordinary model: readers must not look for quantised weights.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    except (MemoryError, torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # The reader of a damaged file fails in as many ways as files can be damaged.
        raise _failed(file, str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)) from error
    if any(not torch.isfinite(weight).all() for weight in model.parameters()):
        raise _failed(file, "some of its weights are no finite numbers")
    return model, tokenizer


def _drop_invented_tokens(file: Path, vocabulary: int) -> None:
    """Remove special tokens that transformers adds to GGUF tokenizers of a kind, where the model has no such id."""
    content = json.loads(file.read_bytes())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < vocabulary]
    file.write_text(json.dumps(content, ensure_ascii=False))


def _failed(file: Path, why: str) -> UserError:
    hint = "Relocate the file again, or choose an architecture and quantisation that transformers reads from GGUF."
    return UserError(Reason.CONVERSION_FAILED, f"{file.name} cannot be converted: {why}", hint)
