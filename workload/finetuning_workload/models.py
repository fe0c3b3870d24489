"""Models and tokenizers from local folders: safetensors only, never code from a model's folder, plain messages."""

import gc
import json
import struct
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from finetuning_api.reasons import Reason
from finetuning_workload.artifact import read_manifest
from finetuning_workload.errors import UserError
from finetuning_workload.memory import is_allocation_failure

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tokenizer_config.json")
_PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SINGLE_FILE, _INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MAX_HEADER_BYTES = 100_000_000
_OTHER_BASE = "An adapter fits only the base model that it was trained on; check spec.model."
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)
"""What transformers raises for folders that it cannot read."""
UNSUPPORTED = (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError)
"""What the code of an architecture raises when it is run in a way that it does not know: which of them depends on where
it trips. For trials of a faster way only, beside which there is always the plain one; ``refusal`` tells it in words."""


def refusal(error: Exception) -> str:
    """Return in words that an architecture cannot be run in a way; raises the error where memory ran out instead."""
    if is_allocation_failure(error):
        raise error
    return f"the architecture refuses it: {repr(error)[:200]}"


def quiet_libraries() -> None:
    """Silence what libraries draw and warn of on their own: a program has one progress line, and it is ours."""
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder. Raises UserError(TOKENIZER_NOT_FOUND)."""
    hint = "Set spec.tokenizer.source, or add the tokenizer's files (tokenizer.json) to the model's folder."
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(Reason.TOKENIZER_NOT_FOUND, f"{_named(path)} has no tokenizer", hint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except _UNREADABLE as error:
        message = f"the tokenizer in {path} cannot be read: {_first_line(error)}"
        raise UserError(Reason.TOKENIZER_NOT_FOUND, message, hint) from error
    return cast("PreTrainedTokenizerBase", tokenizer)


def _named(path: Path) -> str:
    """Return what a person calls a model's folder: the source that it was relocated from, else its path."""
    manifest = read_manifest(path)
    return str(path) if manifest is None else manifest.source


def load_model_config(path: Path) -> PreTrainedConfig:
    """Return the configuration of the model in a folder. Raises UserError(MODEL_UNREADABLE)."""
    if not (path / "config.json").is_file():
        hint = "A model's folder holds config.json and *.safetensors; check spec.model.source and its include patterns."
        raise UserError(Reason.MODEL_UNREADABLE, f"{_named(path)} has no config.json", hint)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except _UNREADABLE as error:
        message = f"the model's configuration {path / 'config.json'} cannot be read: {_first_line(error)}"
        hint = "Use a causal language model that transformers supports itself; code from model folders is never run."
        raise UserError(Reason.MODEL_UNREADABLE, message, hint) from error
    return cast("PreTrainedConfig", config)


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a model's folder, complete by their index and with whole headers.

    Raises UserError: UNSAFE_CONTENT where there are only pickles, MODEL_UNREADABLE for missing or cut files.
    """
    hint = "Relocate the model again, or choose a model with *.safetensors."
    if (path / _INDEX_FILE).is_file():
        try:
            names = sorted(set(json.loads((path / _INDEX_FILE).read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(Reason.MODEL_UNREADABLE, f"{path / _INDEX_FILE} is damaged: {error}", hint) from error
    elif (path / _SINGLE_FILE).is_file():
        names = [_SINGLE_FILE]
    else:
        raise _no_weights(path)
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        message = f"{path} lacks {', '.join(missing[:5])}, which its index names"
        raise UserError(Reason.MODEL_UNREADABLE, message, hint)
    files = tuple(path / name for name in names)
    for file in files:
        tensor_shapes(file)
    return files


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file by name, from its header alone.

    Raises UserError(MODEL_UNREADABLE) for a damaged header or a file that ends before its last tensor.
    The format: 8 bytes little-endian length, that many bytes of JSON, then the tensors.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")  # noqa: TRY301  (one message for every damage)
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        hint = "Relocate it again; the file is not whole."
        raise UserError(Reason.MODEL_UNREADABLE, f"{file} is damaged: {_first_line(error)}", hint) from error
    if file.stat().st_size != end:
        message = f"{file} has {file.stat().st_size} bytes, its header promises {end}"
        raise UserError(Reason.MODEL_UNREADABLE, message, "Relocate it again; the file is not whole.")
    return shapes


def load_base_model(path: Path, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return the causal language model of a folder, in evaluation mode, with scaled-dot-product attention if it has it.

    Raises UserError: MODEL_UNREADABLE, UNSAFE_CONTENT (pickles only).
    """
    config = load_model_config(path)
    weight_files(path)
    try:
        # With output_loading_info a pair comes back, which the type hints do not tell.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=_attention(config),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except _UNREADABLE as error:
        message = f"the model in {path} cannot be read: {_first_line(error)}"
        hint = "Use a causal language model in safetensors that transformers supports itself."
        raise UserError(Reason.MODEL_UNREADABLE, message, hint) from error
    model, loading = loaded
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        message = f"the model in {path} lacks {len(missing)} weights, for example {missing[0]}"
        hint = "Its files are incomplete or of another architecture than config.json says; relocate it again."
        raise UserError(Reason.MODEL_UNREADABLE, message, hint)
    return cast("PreTrainedModel", model.to(device).eval())


def vocabulary_size(config: PreTrainedConfig) -> int:
    """Return the number of rows of a model's token embedding."""
    return int(config.get_text_config().vocab_size)


def require_matching_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError(TOKENIZER_MISMATCH) when the tokenizer has ids that the model has no embedding for.

    A model may have more embeddings than its tokenizer has ids: many are padded to a round number.
    """
    size, largest = vocabulary_size(config), max(tokenizer.get_vocab().values(), default=-1)
    if largest >= size:
        message = f"the tokenizer has ids up to {largest}, the model has embeddings for {size} ids"
        hint = "Use the model's own tokenizer (leave spec.tokenizer unset)."
        raise UserError(Reason.TOKENIZER_MISMATCH, message, hint)


def load_adapter(
    model: PreTrainedModel | PeftModel, path: Path, *, trainable: bool = False, name: str = "default"
) -> PeftModel:
    """Put the adapter of a folder on a base model, or beside the adapters that it has already.

    The base model's own layers are wrapped in place. A name has no dots: it becomes part of the modules' names.
    Raises UserError(ARTIFACT_CORRUPT) for an adapter that cannot be read, and UserError(INVALID_SPEC) for one that was
    made for another base model.
    """
    shapes = _adapter_shapes(path)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(path), adapter_name=name, is_trainable=trainable, torch_device=str(model.device))
            tuned = model
        else:
            tuned = PeftModel.from_pretrained(model, str(path), adapter_name=name, is_trainable=trainable)
    except torch.OutOfMemoryError:
        raise
    except _UNREADABLE as error:
        raise _does_not_fit(path, error) from error
    _require_every_weight(tuned, name=name, path=path, shapes=shapes)
    return tuned.eval() if not trainable else tuned


def require_fitting_adapter(config: PreTrainedConfig, path: Path) -> None:
    """Raise what ``load_adapter`` raises for an adapter that does not fit, without a base model in memory.

    An adapter that fails half-way through being put on a model leaves its traces there; this one is only a skeleton.
    """
    shapes = _adapter_shapes(path)
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
            tuned = get_peft_model(skeleton, PeftConfig.from_pretrained(str(path)))
    except _UNREADABLE as error:
        raise _does_not_fit(path, error) from error
    _require_every_weight(cast("PeftModel", tuned), name="default", path=path, shapes=shapes)


def free(model: torch.nn.Module) -> None:
    """Give back a model's memory, also while somebody still holds a reference to it; it cannot be used any more."""
    model.to(device="meta")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _adapter_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an adapter's weights. Raises UserError(ARTIFACT_CORRUPT) for a folder that has none."""
    for file in (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS):
        if not (path / file).is_file():
            message = f"{path} is not an adapter: it has no {file}"
            raise UserError(Reason.ARTIFACT_CORRUPT, message, "Delete the folder; it is made again.")
    return tensor_shapes(path / _ADAPTER_WEIGHTS)


def _does_not_fit(path: Path, error: BaseException) -> UserError:
    message = f"the adapter in {path} does not fit the base model: {str(error).strip()[:600]}"
    return UserError(Reason.INVALID_SPEC, message, _OTHER_BASE)


def _require_every_weight(tuned: PeftModel, *, name: str, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """PEFT warns about weights that found no place; an adapter that is loaded in part gives silently wrong answers."""
    state = get_peft_model_state_dict(tuned, adapter_name=name, save_embedding_layers=False)
    expected = {weight: tuple(tensor.shape) for weight, tensor in state.items()}
    wrong = sorted(weight for weight in expected.keys() | shapes.keys() if expected.get(weight) != shapes.get(weight))
    if wrong:
        weight = wrong[0]
        message = (
            f"the adapter in {path} does not fit the base model in {len(wrong)} weights, for example {weight}:"
            f" the adapter has {shapes.get(weight, 'none')}, the model needs {expected.get(weight, 'none')}"
        )
        raise UserError(Reason.INVALID_SPEC, message, _OTHER_BASE)


def _attention(config: PreTrainedConfig) -> str:
    """Return sdpa, or eager for architectures without it."""
    try:
        architecture = AutoModelForCausalLM._model_mapping[type(config)]  # noqa: SLF001  (the public way builds a whole model)
    except KeyError:
        return "eager"
    return "sdpa" if getattr(architecture, "_supports_sdpa", False) else "eager"


def _no_weights(path: Path) -> UserError:
    pickles = sorted(file.name for pattern in _PICKLE_PATTERNS for file in path.glob(pattern))
    if pickles:
        message = (
            f"{path} has its weights only as pickle ({', '.join(pickles[:3])}), which can run code when it is read"
        )
        hint = "Choose a revision with *.safetensors, or convert the model with transformers' save_pretrained."
        return UserError(Reason.UNSAFE_CONTENT, message, hint)
    hint = "A model's folder holds config.json and *.safetensors; check spec.model.source and its include patterns."
    return UserError(Reason.MODEL_UNREADABLE, f"{path} has no weights (*.safetensors)", hint)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
