"""Candidates from as few loads as possible: a base model and its adapter share one, with the adapter switched."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import CandidateInput
from finetuning_workload.artifact import hash_file, require_intact
from finetuning_workload.errors import UserError
from finetuning_workload.models import (
    free,
    load_adapter,
    load_base_model,
    load_model_config,
    load_tokenizer,
    require_matching_tokenizer,
)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedCandidate:
    """A candidate whose model is in memory. Use the model inside ``active()`` only."""

    candidate: CandidateInput
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase

    def active(self) -> AbstractContextManager[None]:
        """Return a context in which the model is this candidate: with its adapter, or with none."""
        if isinstance(self.model, PeftModel) and self.candidate.adapter_path is None:
            return self.model.disable_adapter()
        return nullcontext()


@dataclass(frozen=True, slots=True)
class Load:
    """What is in memory together: one base model, at most one adapter, and the candidates that they make."""

    candidates: tuple[CandidateInput, ...]

    @property
    def model_path(self) -> str:
        """Folder of the base model."""
        return self.candidates[0].model.path

    @property
    def adapter_path(self) -> str | None:
        """Folder of the adapter, None without one."""
        return next((candidate.adapter_path for candidate in self.candidates if candidate.adapter_path), None)


def plan_loads(candidates: Sequence[CandidateInput]) -> tuple[Load, ...]:
    """Return the loads in the order of the candidates.

    A candidate with a switchable adapter joins the plain candidate of the same base model; every other is loaded alone.
    """
    groups: list[list[CandidateInput]] = []
    for candidate in candidates:
        home = next((group for group in groups if _can_share(group, candidate)), None)
        if home is None:
            groups.append([candidate])
        else:
            home.append(candidate)
    return tuple(Load(tuple(group)) for group in groups)


def is_switchable(adapter_path: Path) -> bool:
    """Return whether switching the adapter off gives the base model back, bit for bit.

    Not so when biases were trained, or whole modules (embeddings, the head) were saved with the adapter: then the base
    model is loaded by itself.
    """
    try:
        config = json.loads((adapter_path / "adapter_config.json").read_bytes())
    except (OSError, ValueError):
        # load_adapter says what is wrong with it.
        return False
    return config.get("bias", "none") == "none" and not config.get("modules_to_save")


@contextmanager
def loaded(load: Load, *, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[LoadedCandidate, ...]]:
    """Hold the candidates of a load in memory, in their order.

    Raises what loading raises, and UserError(ARTIFACT_CORRUPT) for an adapter that is not what its job made.
    """
    for candidate in load.candidates:
        if candidate.adapter_path is not None and candidate.adapter_digest is not None:
            require_intact(Path(candidate.adapter_path), digest=candidate.adapter_digest)
    path = Path(load.model_path)
    config = load_model_config(path)
    tokenizers = [load_tokenizer(Path(candidate.model.tokenizer_path)) for candidate in load.candidates]
    for tokenizer in tokenizers:
        require_matching_tokenizer(config, tokenizer)
    _LOG.info("loading %s from %s", ", ".join(candidate.name for candidate in load.candidates), path)
    base = load_base_model(path, dtype=dtype, device=device)
    model = base if load.adapter_path is None else load_adapter(base, Path(load.adapter_path))
    try:
        yield tuple(
            LoadedCandidate(candidate, model, tokenizer)
            for candidate, tokenizer in zip(load.candidates, tokenizers, strict=True)
        )
    finally:
        free(model)


def require_distinct(candidates: Sequence[CandidateInput]) -> None:
    """Raise UserError(CANDIDATES_IDENTICAL) when two candidates name the same model with the same adapter."""
    seen: dict[tuple[str, str | None], str] = {}
    for candidate in candidates:
        what = (candidate.model.path, candidate.adapter_path)
        if what in seen:
            message = f"the candidates {seen[what]} and {candidate.name} are the same model: {candidate.model.path}"
            raise UserError(Reason.CANDIDATES_IDENTICAL, message, "Compare different models or adapters.")
        seen[what] = candidate.name


def adapter_digest(candidate: CandidateInput) -> str | None:
    """Return the digest of a candidate's adapter: as told, else of its two files; None without an adapter."""
    if candidate.adapter_path is None or candidate.adapter_digest is not None:
        return candidate.adapter_digest
    # The same weights are another adapter with another alpha. A missing file is reported where the adapter is loaded.
    files = [Path(candidate.adapter_path) / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    listing = "".join(f"{file.name}\0{hash_file(file)}\n" for file in files if file.is_file())
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}" if listing else None


def _can_share(group: Sequence[CandidateInput], candidate: CandidateInput) -> bool:
    if len(group) != 1 or group[0].model.path != candidate.model.path:
        return False
    adapters = [path for path in (group[0].adapter_path, candidate.adapter_path) if path]
    return len(adapters) == 1 and is_switchable(Path(adapters[0]))
