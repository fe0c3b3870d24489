"""What is measured before requests come: whether rows can share steps, and how much memory their tokens take."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from finetuning_server.engine.base import GenerationRequest
from finetuning_server.engine.lanes import Lane
from finetuning_server.engine.library import Voice
from finetuning_server.engine.rows import Row
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
    """Compute two short texts alone and together, which warms the model up too. Raises what the model raises alone."""
    texts = [tuple(range(1, 7)), tuple(range(2, 5))]
    alone = [_alone(voice, tokenizer, text) for text in texts]
    size = _bytes_per_token(voice, tokenizer, texts[0])
    try:
        found = _together(voice, tokenizer, texts)
    except Exception as error:
        if is_allocation_failure(error):
            raise
        _LOG.info("the model cannot compute rows of different lengths in one step (%s)", error)
        return Calibration(together=False, bytes_per_token=size)
    expected = torch.cat(alone)
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    together = difference <= _TOLERANCE.get(voice.network.model.dtype, min(_TOLERANCE.values()))
    if not together:
        _LOG.warning("rows differ by %.2g when they share a step; they are computed one after the other", difference)
    return Calibration(together=together, bytes_per_token=size)


def token_budget(bytes_per_token: int, *, device: torch.device) -> int:
    """Return how many tokens' keys and values fit into the memory that the loaded models leave free."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_limit() - _resident_bytes()
    return int(max(0, free) * _SHARE_OF_FREE_MEMORY / max(1, bytes_per_token))


def _bytes_per_token(voice: Voice, tokenizer: PreTrainedTokenizerBase, text: tuple[int, ...]) -> int:
    row = _row(voice, tokenizer, text)
    lane = Lane(voice.network)
    lane.read([row], most=len(text))
    return sum(one.numel() * one.element_size() for states in row.states for one in states) // len(text)


def _alone(voice: Voice, tokenizer: PreTrainedTokenizerBase, text: tuple[int, ...]) -> torch.Tensor:
    """Return the logits after a text, [1, vocabulary], read in one piece."""
    logits = Lane(voice.network, together=False).read([_row(voice, tokenizer, text)], most=len(text))
    if logits is None:
        raise RuntimeError("the text was not read to its end")
    return logits.float()


def _together(voice: Voice, tokenizer: PreTrainedTokenizerBase, texts: list[tuple[int, ...]]) -> torch.Tensor:
    """Return the logits after each text, [rows, vocabulary], when the last tokens share a step."""
    lane = Lane(voice.network)
    rows = [_row(voice, tokenizer, text[:-1]) for text in texts]
    lane.read(rows, most=sum(len(text) for text in texts))
    for row, text in zip(rows, texts, strict=True):
        row.new.append(text[-1])
        lane.join(row)
    return lane.write(lane.joined).float()


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
