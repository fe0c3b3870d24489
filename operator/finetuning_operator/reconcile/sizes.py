"""How large a volume must be, where it can be told before the bytes exist."""

from finetuning_api.finetuningjob import FineTuningJobSpec, MethodType
from finetuning_api.trials import trial_count
from finetuning_api.tuning import TunedField

_FLOOR = 2**30
_TOKEN_BYTES = 5
"""A token takes 4 bytes and its mark 1; a byte of text is at most one token."""
_OPTIMIZER_COPIES = 2
"""AdamW keeps two moments for each trained weight; checkpoints hold both beside the weight."""


def adapter_bytes(spec: FineTuningJobSpec, *, dataset: int, model: int) -> int:
    """Return the bytes to plan for adapter, checkpoints, token cache and report. ``dataset`` and ``model`` in bytes.

    A LoRA of rank r has about r/16 of 2 % of the base model's weights at the ranks in use; the floor covers the rest.
    Of trials, each leaves its adapter until one is chosen, and those that run have checkpoints.
    """
    tuning = spec.tuning
    trained = model if spec.method.type is MethodType.FULL else model * _greatest_rank(spec) // (16 * 50)
    checkpoints = (spec.training.keep_checkpoints + 1) * (1 + _OPTIMIZER_COPIES) * trained
    results, at_once = (trial_count(tuning), tuning.parallelism) if tuning else (1, 1)
    return _FLOOR + results * trained + min(results, at_once) * checkpoints + _TOKEN_BYTES * dataset


def _greatest_rank(spec: FineTuningJobSpec) -> int:
    parameters = spec.tuning.parameters if spec.tuning else ()
    tried = next((each for each in parameters if each.name is TunedField.RANK), None)
    return spec.method.rank if tried is None else int(max(tried.values or [tried.max or 0]))
