"""What is measured before requests come: whether rows can share steps, and how much memory their tokens take."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.reasons import Reason
from finetuning_server.engine.base import GenerationRequest
from finetuning_server.engine.lanes import Lane
from finetuning_server.engine.library import Voice
from finetuning_server.engine.rows import Row
from finetuning_workload.errors import UserError
from finetuning_workload.hardware import memory_limit
from finetuning_workload.memory import is_allocation_failure

_LOG = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}
"""By how much logits may differ, relative to the largest: rounding, never another answer."""
_SHARE_OF_FREE_MEMORY = 0.5
"""The rest is for activations, and for the copy that is made when a cache grows."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found out about a network."""

    together: bool
    """Whether rows of different lengths in one step are answered as they are alone."""
    bytes_per_token: int
    """Memory of one token's keys and values."""


@torch.inference_mode()
def calibrate(voice: Voice, tokenizer: PreTrainedTokenizerBase) -> Calibration:
    """Compute two short texts whole, token by token and together, which warms the model up too.

    Raises UserError(UNSUPPORTED) for a model that does not go on where transformers' cache left it.
    """
    texts = [tuple(range(1, 7)), tuple(range(2, 5))]
    lanes = [Lane(voice.network, together=False) for _ in texts]
    rows = [_row(voice, tokenizer, text) for text in texts]
    whole = torch.cat([_read(lane, [row]) for lane, row in zip(lanes, rows, strict=True)])
    size = sum(map(_state_bytes, rows)) // sum(len(text) for text in texts)

    single = torch.cat([_continue(Lane(voice.network, together=False), voice, tokenizer, [text]) for text in texts])
    if not _equal(single, whole, dtype=voice.network.model.dtype):
        message = f"{type(voice.network.model).__name__} does not continue a text as transformers' cache holds it"
        raise UserError(Reason.UNSUPPORTED, message, "Serve a model with attention in its layers.")

    lane = Lane(voice.network)
    if not lane.together:
        return Calibration(together=False, bytes_per_token=size)
    try:
        beside = _continue(lane, voice, tokenizer, texts)
    except Exception as error:
        if is_allocation_failure(error):
            raise
        _LOG.info("the model cannot compute rows of different lengths in one step (%s)", error)
        return Calibration(together=False, bytes_per_token=size)
    together = _equal(beside, whole, dtype=voice.network.model.dtype)
    if not together:
        _LOG.warning("rows that share a step are not answered as they are alone: they are computed one by one")
    return Calibration(together=together, bytes_per_token=size)


def token_budget(bytes_per_token: int, *, device: torch.device) -> int:
    """Return how many tokens' keys and values fit into the memory that the loaded models leave free."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_limit() - _resident_bytes()
    return int(max(0, free) * _SHARE_OF_FREE_MEMORY / max(1, bytes_per_token))


def _read(lane: Lane, rows: list[Row]) -> torch.Tensor:
    """Return the logits after the rows' prompts, [rows, vocabulary]."""
    logits = lane.read(rows, most=sum(len(row.prompt) for row in rows))
    if logits is None:
        raise RuntimeError("the text was not read to its end")
    return logits.float()


def _continue(
    lane: Lane, voice: Voice, tokenizer: PreTrainedTokenizerBase, texts: list[tuple[int, ...]]
) -> torch.Tensor:
    """Return the logits after each text, [rows, vocabulary], when the last token comes in a step of its own."""
    rows = [_row(voice, tokenizer, text[:-1]) for text in texts]
    _read(lane, rows)
    for row, text in zip(rows, texts, strict=True):
        row.new.append(text[-1])
        lane.join(row)
    return lane.write(rows).float()


def _equal(found: torch.Tensor, expected: torch.Tensor, *, dtype: torch.dtype) -> bool:
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    return difference <= _TOLERANCE.get(dtype, min(_TOLERANCE.values()))


def _state_bytes(row: Row) -> int:
    """Return the memory of everything that a row's own cache holds, whatever kind of layers it has."""
    layers = [] if row.own is None else row.own.layers
    held = [state for layer in layers for state in vars(layer).values() if isinstance(state, torch.Tensor)]
    return sum(state.numel() * state.element_size() for state in held)


def _row(voice: Voice, tokenizer: PreTrainedTokenizerBase, text: tuple[int, ...]) -> Row:
    request = GenerationRequest(model="", tokens=text, max_new_tokens=1)
    return Row(request, voice, tokenizer, limit=1)


def _resident_bytes() -> int:
    """Return the memory that this process uses now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
