"""The models in memory: one base model with every adapter that can share it, and beside it what cannot."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import AdapterInput, ServeConfig
from finetuning_server.engine.base import ServedModel
from finetuning_workload.candidates import is_switchable
from finetuning_workload.errors import UserError
from finetuning_workload.generation import eos_token_ids
from finetuning_workload.models import (
    free,
    load_adapter,
    load_base_model,
    load_model_config,
    load_tokenizer,
    require_fitting_adapter,
    require_matching_tokenizer,
)

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_LOG = logging.getLogger(__name__)

BASE = "__base__"
"""PEFT's word for rows of a batch that go through no adapter."""
_MODEL_CONFIG, _ADAPTER_CONFIG = "config.json", "adapter_config.json"
_BEYOND_LAYERS = ("trainable_token_indices", "target_parameters", "alora_invocation_tokens")
"""Settings of LoRA that change more than the layers' outputs, so that rows cannot choose it one by one."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A model in memory, and how it is told which adapter each row of a batch goes through.

    Rows of one network are computed together, rows of two networks never.
    """

    model: PreTrainedModel
    select: Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Voice:
    """What answers for a served name."""

    network: Network
    adapter: str
    eos: frozenset[int]
    """Tokens that end a text."""


class Library:
    """Loads the base model and its adapters, and finds them by the names that they are served under.

    What was loaded stays loaded: an adapter whose folder is deleted is served from memory until the server ends.
    Everything that loads belongs to the thread that computes; the rest may be asked from anywhere.
    """

    def __init__(self, config: ServeConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._dtype = dtype
        self.device = device
        self._model_config = load_model_config(Path(config.model.path))
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(Path(config.model.tokenizer_path))
        require_matching_tokenizer(self._model_config, self.tokenizer)
        base = load_base_model(Path(config.model.path), dtype=dtype, device=device)
        self._shared = _SharedModel(base)
        self.base = self._voice(Network(base, self._shared.select_per_row), BASE)
        self._voices = {config.served_name: self.base}
        self._loads = 0

    def voice(self, name: str) -> Voice | None:
        """Return what answers for a name, None for a name that is not served."""
        return self._voices.get(name)

    def models(self) -> tuple[ServedModel, ...]:
        """Return what is served, the base model first."""
        base = self._config.served_name
        return tuple(ServedModel(name, parent=None if name == base else base) for name in tuple(self._voices))

    def load(self, adapter: AdapterInput) -> Voice:
        """Load an adapter. Raises UserError for one that cannot be read or was made for another base model."""
        path = Path(adapter.path)
        if adapter.name in self._voices:
            message = f"the name {adapter.name} is served already"
            raise UserError(Reason.INVALID_SPEC, message, "Give every adapter a name of its own.")
        _LOG.info("loading %s from %s", adapter.name, path)
        if _is_whole_model(path):
            voice = self._load_whole_model(path)
        else:
            require_fitting_adapter(self._model_config, path)
            voice = self._load_apart(path) if _must_be_apart(path) else self._load_shared(path)
        return voice

    def serve(self, name: str, voice: Voice) -> None:
        """Let a name be asked for from now on."""
        self._voices[name] = voice

    def free(self) -> None:
        """Give the memory of all models back."""
        for network in {id(voice.network.model): voice.network for voice in self._voices.values()}.values():
            free(network.model)
        self._voices.clear()

    def _load_shared(self, path: Path) -> Voice:
        self._loads += 1
        name = f"adapter{self._loads}"
        if self._shared.add(name, path):
            return self._voice(self.base.network, name)
        return self._voice(Network(self.base.network.model, self._shared.select_whole), name)

    def _load_apart(self, path: Path) -> Voice:
        """Load an adapter on a base model of its own."""
        base = load_base_model(Path(self._config.model.path), dtype=self._dtype, device=self.device)
        load_adapter(base, path)
        return self._voice(Network(base, _select_nothing), BASE)

    def _load_whole_model(self, path: Path) -> Voice:
        """Load what full fine-tuning made. It must speak the base model's tokens."""
        require_matching_tokenizer(load_model_config(path), self.tokenizer)
        model = load_base_model(path, dtype=self._dtype, device=self.device)
        return self._voice(Network(model, _select_nothing), BASE)

    def _voice(self, network: Network, adapter: str) -> Voice:
        return Voice(network, adapter, eos_token_ids(network.model, self.tokenizer))


class _SharedModel:
    """A base model with LoRA adapters in its layers; every batch says anew which of them its rows go through."""

    def __init__(self, base: PreTrainedModel) -> None:
        self._base = base
        self._tuned: PeftModel | None = None
        self._active: str | None = None
        self._names: list[str] | None = None
        self._hooks: list[RemovableHandle] = []

    def add(self, name: str, path: Path) -> bool:
        """Load an adapter and return whether its rows can share a batch with rows of others."""
        self._tuned = load_adapter(self._base if self._tuned is None else self._tuned, path, name=name)
        self._active = None
        layers = [module for module in self._base.modules() if isinstance(module, LoraLayer)]
        for hook in self._hooks:
            hook.remove()
        self._hooks = [layer.register_forward_pre_hook(self._tell_names, with_kwargs=True) for layer in layers]
        return not any(name in layer.lora_variant for layer in layers)

    def select_per_row(self, adapters: Sequence[str]) -> None:
        """Let each row of the next batch go through its own adapter."""
        self._names = list(adapters)

    def select_whole(self, adapters: Sequence[str]) -> None:
        """Let the next batch go through one adapter, whatever kind of LoRA it is."""
        self._names = None
        if self._tuned is not None and self._active != adapters[0]:
            self._active = adapters[0]
            self._tuned.set_adapter(adapters[0], inference_mode=True)

    def _tell_names(
        self, _layer: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        return args, kwargs if self._names is None else {**kwargs, "adapter_names": self._names}


def _is_whole_model(path: Path) -> bool:
    return (path / _MODEL_CONFIG).is_file() and not (path / _ADAPTER_CONFIG).is_file()


def _must_be_apart(path: Path) -> bool:
    """Return whether an adapter needs a base model of its own. Raises UserError(UNSUPPORTED) for learned prompts."""
    config = PeftConfig.from_pretrained(str(path))
    if config.is_prompt_learning:
        message = f"the adapter in {path} is a learned prompt ({config.peft_type})"
        raise UserError(Reason.UNSUPPORTED, message, "Serve LoRA adapters or whole models.")
    plain = config.peft_type == PeftType.LORA and not any(getattr(config, name, None) for name in _BEYOND_LAYERS)
    return not plain or not is_switchable(path)


def _select_nothing(_adapters: Sequence[str]) -> None:
    """Do nothing: there is no choice."""
