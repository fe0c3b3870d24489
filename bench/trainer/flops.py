"""How near to the limit: the sums that a model's training needs, and how fast the same cores multiply matrices."""

import time
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from finetuning_workload.data import TokenizedSample

_GEMM_ROWS, _GEMM_WIDTH, _GEMM_ROUNDS = 2048, 2048, 7
_FROZEN_PASSES, _TRAINED_PASSES, _ATTENTION_PASSES = 2, 3, 3
"""Forward and the gradient of the input; of trained weights their own gradient too; attention has two inputs."""


def training_flops(model: PreTrainedModel, samples: Sequence[TokenizedSample]) -> float:
    """Return the floating-point operations of one training pass over the samples: no padding, no recomputation.

    Matrices: 2 operations a weight and token for each pass. The output layer sees supervised tokens only. Attention:
    two products of half a square (it is causal) with the hidden size a layer.
    """
    frozen, trained = _matrix_weights(model)
    head = model.get_output_embeddings().weight.numel()
    shape = model.config.get_text_config()
    width = shape.num_hidden_layers * shape.hidden_size
    tokens = sum(len(sample.ids) for sample in samples)
    supervised = sum(sum(sample.supervised[1:]) for sample in samples)
    squares = sum(len(sample.ids) ** 2 for sample in samples)
    matrices = tokens * (_FROZEN_PASSES * frozen + _TRAINED_PASSES * trained) + supervised * _FROZEN_PASSES * head
    return 2.0 * float(matrices + _ATTENTION_PASSES * width * squares)


def _matrix_weights(model: PreTrainedModel) -> tuple[int, int]:
    frozen = trained = 0
    for module in model.modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            frozen += layer.get_base_layer().weight.numel()
            trained += sum(part.weight.numel() for side in (layer.lora_A, layer.lora_B) for part in side.values())
    return frozen, trained


def gemm_rate(dtype: torch.dtype) -> float:
    """Return the operations by CPU second of a large matrix product in a format, the best of some rounds."""
    rows = torch.randn(_GEMM_ROWS, _GEMM_WIDTH).to(dtype)
    weight = torch.randn(_GEMM_WIDTH, _GEMM_WIDTH).to(dtype)
    best = float("inf")
    for turn in count():
        started = time.process_time()
        torch.nn.functional.linear(rows, weight)
        best = min(best, time.process_time() - started)
        if turn == _GEMM_ROUNDS:
            return 2.0 * _GEMM_ROWS * _GEMM_WIDTH * _GEMM_WIDTH / best
    raise AssertionError
