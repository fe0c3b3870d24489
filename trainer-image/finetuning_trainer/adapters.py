"""Which weights are trained: LoRA and its variants through PEFT, or all of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetuning_api.finetuningjob import MethodSpec, MethodType
from finetuning_api.reasons import Reason
from finetuning_workload.errors import UserError

_ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class Trainee:
    """A model with the weights to train marked. ``wrapped`` is PEFT's model; in full fine-tuning, ``causal`` itself."""

    causal: PreTrainedModel
    wrapped: PreTrainedModel | PeftModel

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that are trained, by name, in the model's order."""
        return {name: weight for name, weight in self.wrapped.named_parameters() if weight.requires_grad}


def attach(model: PreTrainedModel, method: MethodSpec, *, seed: int) -> Trainee:
    """Mark the weights to train, and put the adapter on the model; its initial values follow from the seed.

    Raises UserError: UNSUPPORTED, TARGET_MODULES_NOT_FOUND.
    """
    require_supported(method)
    torch.manual_seed(seed)
    if method.type is MethodType.FULL:
        model.requires_grad_(requires_grad=True)
        return Trainee(causal=model, wrapped=model)
    config = lora_config(model, method)
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    if not isinstance(wrapped, PeftModel):
        message = f"peft made a {type(wrapped).__name__} of the model"
        raise TypeError(message)
    return Trainee(causal=model, wrapped=wrapped)


def require_supported(method: MethodSpec) -> None:
    """Raise UserError(UNSUPPORTED) for a method that this release does not run."""
    if method.type is MethodType.QLORA:
        message = "method.type is qlora: it needs 4-bit kernels of a GPU, which this release does not use"
        raise UserError(Reason.UNSUPPORTED, message, "Set spec.method.type to lora.")


def lora_config(model: PreTrainedModel, method: MethodSpec) -> LoraConfig:
    """Return PEFT's configuration for a method. Raises UserError(TARGET_MODULES_NOT_FOUND)."""
    names = method.target_modules
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=method.rank,
        # PEFT declares an integer and divides by the rank all the same; whole numbers stay whole in the adapter's file.
        lora_alpha=int(method.alpha) if method.alpha == int(method.alpha) else method.alpha,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        use_dora=method.dora,
        use_rslora=method.rslora,
        target_modules=_ALL_LINEAR if names == _ALL_LINEAR else list(require_targets(model, names)),
        fan_in_fan_out=any(isinstance(module, Conv1D) for _, module in linear_modules(model)),
        bias="none",
    )


def require_targets(model: PreTrainedModel, wanted: str) -> tuple[str, ...]:
    """Return the names in ``wanted`` (separated by commas) when each of them matches a linear layer.

    Raises UserError(TARGET_MODULES_NOT_FOUND), which lists the names that exist.
    """
    names = tuple(wanted.split(","))
    existing = [name for name, _ in linear_modules(model)]
    lacking = [name for name in names if not any(path == name or path.endswith(f".{name}") for path in existing)]
    if lacking:
        known = ", ".join(sorted({path.rpartition(".")[2] for path in existing}))
        message = f"spec.method.targetModules names {', '.join(lacking)}, which the model does not have; it has {known}"
        hint = f"Use some of {known}, or all-linear."
        raise UserError(Reason.TARGET_MODULES_NOT_FOUND, message, hint)
    return names


def linear_modules(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the linear layers that can carry LoRA, without the output layer, with their full names."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            yield name, module


def parameter_counts(trainee: Trainee) -> tuple[int, int]:
    """Return all parameters and the trained ones; a weight that is shared counts once."""
    weights = list(trainee.wrapped.parameters())
    return sum(weight.numel() for weight in weights), sum(weight.numel() for weight in weights if weight.requires_grad)
