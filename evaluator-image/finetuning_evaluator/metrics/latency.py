"""Seconds of a completion that is generated alone, as one user would wait for it."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.runconfig import ContractModel
from finetuning_evaluator.aggregates import Statistic
from finetuning_evaluator.score import OnProgress
from finetuning_evaluator.statistics import Observations
from finetuning_workload.evaluated import TIMED_ROWS
from finetuning_workload.generation import Ends, complete

SIGNATURE = f"latency|seconds of a whole completion, one at a time|first {TIMED_ROWS} held-out rows|after one untimed"


class Timing(ContractModel):
    """One completion that was generated alone."""

    seconds: float
    tokens: int


def measure(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    ends: Ends,
    on_progress: OnProgress | None = None,
) -> list[Timing]:
    """Return the time of each completion, after the first prompt was completed once without being timed."""
    timings: list[Timing] = []
    for place, prompt in enumerate([prompts[0], *prompts]):
        started = time.monotonic()
        (found,) = complete(model, tokenizer, [prompt], max_new_tokens=max_new_tokens, ends=ends)
        if place:
            timings.append(Timing(seconds=time.monotonic() - started, tokens=found.tokens))
        if on_progress is not None:
            on_progress(place, len(prompts))
    return timings


def observe(timings: Sequence[Timing]) -> Observations:
    """Return the observations of the mean over completions, in seconds."""
    return Observations(Statistic.MEAN, np.array([[timing.seconds, 1.0] for timing in timings], dtype=np.float64))


def details(timings: Sequence[Timing]) -> dict[str, float]:
    """Return the median and the 95th percentile in seconds, and the tokens per second of one stream."""
    seconds = np.array([timing.seconds for timing in timings], dtype=np.float64)
    return {
        "medianSeconds": float(np.quantile(seconds, 0.5)),
        "p95Seconds": float(np.quantile(seconds, 0.95)),
        "tokensPerSecond": sum(timing.tokens for timing in timings) / float(seconds.sum()),
    }
