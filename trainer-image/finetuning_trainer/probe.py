"""Which of the fast paths are right for this model: measured on its own logits before the first step."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from finetuning_trainer.attention import SEGMENT_ATTENTION, register_segment_attention
from finetuning_trainer.batching import MicroBatch, pack, pad
from finetuning_trainer.loss import Forward
from finetuning_trainer.strategy import SingleProcess
from finetuning_workload.data import TokenizedSplit
from finetuning_workload.models import UNSUPPORTED, refusal, vocabulary_size

_LENGTHS = (5, 19, 11)
TOLERANCE = 1e-4
"""Greatest deviation in fp32: root mean square of the difference, as a share of the spread."""
NOISE_FACTOR = 2.5
"""In bf16 a path may deviate this much more than rounding does, which a row computed alone shows."""


@dataclass(frozen=True, slots=True)
class Paths:
    """How this model is run. ``why`` tells of what was refused, for the log and the provenance."""

    packed: bool
    split_head: bool
    why: str


def choose_paths(model: PreTrainedModel, strategy: SingleProcess) -> Paths:
    """Compare every fast path with the plain padded one, and leave the model set to what was chosen.

    The reference is the whole model on right-padded rows with a mask. A path with other logits, or one that the
    architecture refuses, is not used.
    """
    register_segment_attention()
    plain = model.config._attn_implementation  # noqa: SLF001  (transformers has no public reader)
    training = model.training
    model.eval()
    samples = probe_samples(model)
    rows = range(len(_LENGTHS))
    padded, packed = pad(samples, rows).to(strategy.loading_device), pack(samples, rows).to(strategy.loading_device)
    reference = _reference(model, samples, strategy)
    splits = not _differs(Forward(model, split_head=True), padded, strategy, reference=reference)
    packs, why = False, "the architecture fixes its attention"
    if _switched(model, SEGMENT_ATTENTION):
        why = _differs(Forward(model, split_head=splits), packed, strategy, reference=reference)
        packs = not why
    if not packs:
        _switched(model, plain)
    model.train(training)
    return Paths(packed=packs, split_head=splits, why=why or "packed and padded logits agree")


def probe_samples(model: PreTrainedModel) -> TokenizedSplit:
    """Return rows of seeded tokens that the model can read, each token of them supervised."""
    ends = np.concatenate([[0], np.cumsum(_LENGTHS)])
    size = vocabulary_size(model.config)
    return TokenizedSplit(
        ids=np.random.default_rng(0).integers(0, size, ends[-1]).astype(np.int32),
        supervised=np.ones(ends[-1], dtype=np.uint8),
        offsets=ends.astype(np.int64),
        row_ids=np.asarray([str(place) for place in range(len(_LENGTHS))]),
    )


@dataclass(frozen=True, slots=True)
class _Reference:
    """What is right: [tokens, vocabulary], and how far a right path may be from it."""

    logits: torch.Tensor
    tolerance: float

    def deviation(self, logits: torch.Tensor) -> float:
        """Return the root mean square of the difference, as a share of the spread of the reference's logits."""
        spread = (self.logits - self.logits.mean(dim=-1, keepdim=True)).square().mean().sqrt()
        return float((logits - self.logits).square().mean().sqrt() / spread.clamp_min(1e-12))


def _reference(model: PreTrainedModel, samples: TokenizedSplit, strategy: SingleProcess) -> _Reference:
    plain = Forward(model, split_head=False)
    rows = range(len(_LENGTHS))
    together = _logits(plain, pad(samples, rows).to(strategy.loading_device), strategy)
    alone = torch.cat([_logits(plain, pad(samples, [row]).to(strategy.loading_device), strategy) for row in rows])
    noise = 0.0 if strategy.dtype is torch.float32 else _Reference(together, 0.0).deviation(alone)
    return _Reference(together, tolerance=max(TOLERANCE, NOISE_FACTOR * noise))


@torch.no_grad()
def _logits(forward: Forward, batch: MicroBatch, strategy: SingleProcess) -> torch.Tensor:
    with strategy.computing():
        return forward.logits(batch).float()


def _differs(forward: Forward, batch: MicroBatch, strategy: SingleProcess, *, reference: _Reference) -> str:
    """Return in words how a path differs from the reference; nothing where it agrees."""
    try:
        logits = _logits(forward, batch, strategy)
    except UNSUPPORTED as error:
        return refusal(error)
    share = reference.deviation(logits)
    return "" if share <= reference.tolerance else f"its logits differ by {share:.2g} of their spread"


def _switched(model: PreTrainedModel, implementation: str) -> bool:
    model.set_attn_implementation(implementation)
    return bool(model.config._attn_implementation == implementation)  # noqa: SLF001  (transformers has no public reader)
