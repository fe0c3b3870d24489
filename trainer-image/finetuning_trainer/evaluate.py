"""The held-out loss during training: a part of the held-out rows, always the same, at a bounded cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from finetuning_trainer.batching import Build, Division, TokenBudget, lengths_of, micro_batch, supervised_count
from finetuning_trainer.guard import Stopped
from finetuning_trainer.loss import Forward
from finetuning_trainer.strategy import SingleProcess
from finetuning_workload.data import TokenizedSplit

MOST_ROWS, MOST_TOKENS = 128, 16_384


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out rows that are looked at while training."""

    split: TokenizedSplit
    rows: tuple[int, ...]
    padded: bool
    build: Build
    budget: TokenBudget


def chosen_rows(split: TokenizedSplit) -> tuple[int, ...]:
    """Return the first held-out rows, at most MOST_ROWS and, but for the first row, MOST_TOKENS tokens."""
    chosen: list[int] = []
    used = 0
    for row, length in enumerate(lengths_of(split, range(min(len(split), MOST_ROWS)))):
        if chosen and used + length > MOST_TOKENS:
            break
        chosen.append(row)
        used += length
    return tuple(chosen)


@torch.no_grad()
def held_out_loss(
    forward: Forward, held_out: HeldOut, strategy: SingleProcess, *, stop: Callable[[], bool]
) -> float | None:
    """Return the mean negative log-likelihood per supervised token in nats; None without such a token.

    ``stop`` is asked before every forward pass. Raises Stopped, on every rank, where it held on one.
    """
    tokens = supervised_count(held_out.split, held_out.rows)
    if tokens == 0:
        return None
    training = forward.model.training
    forward.model.eval()
    try:
        total, stopped = _summed(forward, held_out, strategy, stop=stop)
        total, stops = strategy.group.sums(total, stopped)
    finally:
        forward.model.train(training)
    if stops:
        raise Stopped
    return total / tokens


def _summed(
    forward: Forward, held_out: HeldOut, strategy: SingleProcess, *, stop: Callable[[], bool]
) -> tuple[float, bool]:
    """Return what this process computed, and whether it stopped before the end."""
    rows: Sequence[int] = held_out.rows
    total = 0.0
    division = Division(held_out.budget.tokens, most_rows=None, padded=held_out.padded)
    for part in strategy.parts(rows, lengths_of(held_out.split, rows), division):
        if stop():
            return total, True
        batch = micro_batch(held_out.build, held_out.split, part).to(strategy.device)
        total += float(strategy.summed_nll(forward, batch))
    return total, False
