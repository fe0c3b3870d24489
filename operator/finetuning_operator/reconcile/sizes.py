"""How large a volume must be, where it can be told before the bytes exist."""

from finetuning_api.finetuningjob import MethodSpec, MethodType, TrainingSpec

_FLOOR = 2**30
_TOKEN_BYTES = 5
"""A token takes 4 bytes and its mark 1; a byte of text is at most one token."""
_OPTIMIZER_COPIES = 2
"""AdamW keeps two moments for each trained weight; checkpoints hold both beside the weight."""


def adapter_bytes(method: MethodSpec, training: TrainingSpec, *, dataset: int, model: int) -> int:
    """Return the bytes to plan for adapter, checkpoints, token cache and report. ``dataset`` and ``model`` in bytes.

    A LoRA of rank r has about r/16 of 2 % of the base model's weights at the ranks in use; the floor covers the rest.
    """
    trained = model if method.type is MethodType.FULL else model * method.rank // (16 * 50)
    checkpoints = (training.keep_checkpoints + 1) * (1 + _OPTIMIZER_COPIES) * trained
    return _FLOOR + trained + checkpoints + _TOKEN_BYTES * dataset
