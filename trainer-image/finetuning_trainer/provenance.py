"""What a result was made of: enough to make it again."""

import hashlib
import json
import platform
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version

from finetuning_api.finetuningjob import MethodSpec, Objective, TrainingSpec
from finetuning_api.runconfig import ContractModel, DatasetCounts, JobIdentity, Provenance, TrainingInputs
from finetuning_trainer.plan import TrainingPlan

_RECORDED = ("finetuning-operator", "torch", "transformers", "peft", "tokenizers", "safetensors", "accelerate")
_NO_INFLUENCE = {"checkpoint_every_steps", "keep_checkpoints", "evaluate_every_steps", "micro_batch_size"}
"""Fields of training that change when something is written or how much memory it takes, but not what is learned."""


class TrainingProvenance(ContractModel):
    """The record beside the adapter, provenance.json."""

    job: JobIdentity
    identity: str
    """Digest of model, tokenizer, data, method and training: what a checkpoint must have to be gone on from."""
    model: Provenance
    tokenizer: Provenance
    dataset: Provenance
    script: Provenance | None = None
    """What trained; None is the built-in training."""
    prepared_data: str
    method: MethodSpec
    training: TrainingSpec
    seed: int
    versions: dict[str, str]
    plan: dict[str, str | int | float | bool]
    counts: DatasetCounts
    steps: int
    tokens: int | None = None
    """Tokens trained on; None where a script trained."""
    loss: float | None = None
    evaluation_loss: float | None = None
    evaluation_rows: int | None = None
    loss_spikes: tuple[int, ...] = ()
    """Steps whose loss stood far above those before; metrics.jsonl has the ids of their rows."""
    best_step: int | None = None
    stopped_early: bool = False
    trial: int | None = None
    """Which of several trials this was; None where the job trained once."""
    given_up: bool = False
    peak_memory_bytes: int | None = None
    """What the training took at most; the plan's ``memory_bytes`` is what was expected. None where a script trained."""
    resumed_from_step: int | None = None
    resumptions: int = 0
    damaged_checkpoints: tuple[int, ...] = ()
    """Steps whose checkpoints were not gone on from, because they were damaged."""
    started_at: datetime
    finished_at: datetime


def training_identity(config: TrainingInputs, data_digest: str) -> str:
    """Return the sha256 of everything that decides what is learned: equal identity, equal training."""
    parts: dict[str, object] = {
        "model": config.model.provenance.digest,
        "tokenizer": config.model.tokenizer_provenance.digest,
        "data": data_digest,
        "method": config.method.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude=_without_influence(config.training)),
    }
    if config.script is not None:
        parts["script"] = {"digest": config.script.provenance.digest, "command": config.script.command}
    return f"sha256:{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}"


def _without_influence(training: TrainingSpec) -> set[str]:
    """Return the fields that do not decide what is learned; early stopping decides by the evaluations."""
    # Left out where it says nothing, so that trainings of before it was there are gone on with.
    objective = {"objective", "preference_beta"} if training.objective is Objective.SUPERVISED else set()
    if training.early_stopping is None:
        return {*_NO_INFLUENCE, "early_stopping"} | objective
    return (_NO_INFLUENCE - {"evaluate_every_steps"}) | objective


def versions() -> dict[str, str]:
    """Return the versions of what computed the result."""
    return {"python": platform.python_version()} | {name: version(name) for name in _RECORDED}


def plan_record(plan: TrainingPlan, *, micro_batch_tokens: int | None) -> dict[str, str | int | float | bool]:
    """Return the plan as JSON has it, with the micro-batches that memory allowed in the end."""
    return asdict(plan) | ({} if micro_batch_tokens is None else {"micro_batch_tokens": micro_batch_tokens})
