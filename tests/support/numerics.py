"""Seeded rows and plain models, on which fast paths are compared with slow ones."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetuning_trainer.strategy import SingleProcess
from finetuning_workload.data import TokenizedSplit

CPU = SingleProcess(torch.device("cpu"), torch.float32)
LENGTHS = (9, 23, 5, 14, 30, 7, 11, 18)


def split_of(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 1) -> TokenizedSplit:
    """Return random rows whose second half carries loss."""
    ends = np.concatenate([[0], np.cumsum(lengths)])
    supervised = np.zeros(ends[-1], dtype=np.uint8)
    for start, end in pairwise(ends):
        supervised[(start + end) // 2 : end] = 1
    ids = np.random.default_rng(seed).integers(3, 380, ends[-1]).astype(np.int32)
    row_ids = np.asarray([str(row) for row in range(len(lengths))])
    return TokenizedSplit(ids=ids, supervised=supervised, offsets=ends.astype(np.int64), row_ids=row_ids)


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model
