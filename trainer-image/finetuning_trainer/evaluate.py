"""The held-out loss during training: a part of the held-out rows, always the same, at a bounded cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from finetuning_trainer.batching import Build, TokenBudget, divide, lengths_of, supervised_count
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
    forward: Forward, held_out: HeldOut, strategy: SingleProcess, *, poll: Callable[[], None]
) -> float | None:
    """Return the mean negative log-likelihood per supervised token in nats; None without such a token.

    ``poll`` is called before every forward pass and may raise to stop.
    """
    tokens = supervised_count(held_out.split, held_out.rows)
    if tokens == 0:
        return None
    training = forward.model.training
    forward.model.eval()
    try:
        return _summed(forward, held_out, strategy, poll=poll) / tokens
    finally:
        forward.model.train(training)


def _summed(forward: Forward, held_out: HeldOut, strategy: SingleProcess, *, poll: Callable[[], None]) -> float:
    rows: Sequence[int] = held_out.rows
    total = 0.0
    lengths = lengths_of(held_out.split, rows)
    for part in divide(rows, lengths, token_budget=held_out.budget.tokens, most_rows=None, padded=held_out.padded):
        poll()
        batch = held_out.build(held_out.split, part).to(strategy.device)
        with strategy.computing():
            total += float(forward.summed_nll(batch))
    return total
