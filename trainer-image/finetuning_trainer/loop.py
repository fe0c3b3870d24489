"""The training loop: plain functions over a session and a position."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from finetuning_api.finetuningjob import EarlyStoppingSpec, TrainingSpec
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ProgressMetric
from finetuning_trainer.batching import (
    Build,
    Division,
    TokenBudget,
    lengths_of,
    micro_batch,
    rows_of_step,
    steps_per_epoch,
    supervised_count,
)
from finetuning_trainer.checkpoint import (
    Position,
    Snapshot,
    checkpoint_of,
    save_checkpoint,
)
from finetuning_trainer.evaluate import HeldOut, held_out_loss
from finetuning_trainer.group import Group
from finetuning_trainer.guard import Stopped, require_finite, training_memory_errors
from finetuning_trainer.history import History
from finetuning_trainer.loss import Forward
from finetuning_trainer.optim import learning_rate, set_learning_rate
from finetuning_trainer.spikes import Spike, SpikeWatch
from finetuning_trainer.strategy import SingleProcess
from finetuning_trainer.writer import CheckpointWriter
from finetuning_workload.data import TokenizedSplit
from finetuning_workload.errors import Interrupted, UserError
from finetuning_workload.progress import Reporter

_LOG = logging.getLogger(__name__)
Stop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that stays the same from the first step to the last."""

    training: TrainingSpec
    total_steps: int
    budget: TokenBudget
    split: TokenizedSplit
    text: Callable[[int], str]
    """Returns how a row of the split begins."""
    held_out: HeldOut
    build: Build
    padded: bool
    forward: Forward
    strategy: SingleProcess
    weights: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    checkpoints: Path
    writer: CheckpointWriter
    identity: str
    history: History
    spikes: SpikeWatch
    reporter: Reporter
    stop: Stop
    behind: Callable[[], bool] | None = None
    """Tells after an evaluation whether this training, one of several trials, is given up for better ones."""

    @property
    def group(self) -> Group:
        """The processes that train together."""
        return self.strategy.group

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the rows."""
        return steps_per_epoch(len(self.split), self.training.batch_size)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one optimizer step computed."""

    rows: list[int]
    nll: float
    supervised: int
    tokens: int
    gradient_norm: float
    rate: float

    @property
    def loss(self) -> float:
        """Mean over the supervised tokens of the step, in nats."""
        return self.nll / self.supervised


@dataclass(slots=True)
class _Saved:
    """The newest checkpoint."""

    step: int | None = field(default=None)


def train(session: Session, position: Position, *, saved_step: int | None) -> Position:
    """Train from a position to the end and return the last position, with the weights that are the result in place.

    Raises Interrupted after a checkpoint when asked to stop, and UserError LOSS_DIVERGED or OUT_OF_MEMORY.
    """
    saved = _Saved(saved_step)
    session.forward.model.train()
    try:
        while not _is_over(session, position):
            position = _one_step(session, position, saved=saved)
    except Stopped:
        _save(session, position, saved)
        session.writer.finish()
        # Nobody leaves before the checkpoint is whole: whoever starts processes ends the others with the first of them.
        session.group.wait()
        raise Interrupted(f"stopped at step {position.step} of {session.total_steps}, after a checkpoint") from None
    session.writer.finish()
    return _with_best_weights(session, position)


def _is_over(session: Session, position: Position) -> bool:
    stopping = session.training.early_stopping
    stale = stopping is not None and position.stale_evaluations >= stopping.patience
    return stale or position.given_up or position.step >= session.total_steps


def _with_best_weights(session: Session, position: Position) -> Position:
    """Go back to the weights of the lowest held-out loss where early stopping asks for them."""
    best = position.best_step
    if best is None or best == position.step:
        return position
    session.group.wait()  # The first rank may be writing it still.
    checkpoint = checkpoint_of(session.checkpoints, best, identity=session.identity)
    if checkpoint is None:
        _LOG.warning("the weights of step %d are the result: those of step %d are gone", position.step, best)
        return position.model_copy(update={"best_step": None})
    session.strategy.restore_weights(checkpoint, session.weights)
    _LOG.info(
        "the weights of step %d are the result: their held-out loss is the lowest, %.4f", best, position.best_loss
    )
    return position.model_copy(update={"evaluation_loss": position.best_loss})


def _one_step(session: Session, position: Position, *, saved: _Saved) -> Position:
    session.writer.check()
    started = time.monotonic()
    outcome = compute_step(session, position.step, saved_step=saved.step)
    seconds = time.monotonic() - started
    position = _advanced(position, outcome, session)
    evaluation_loss = _evaluation_loss(session, position.step, saved)
    if evaluation_loss is not None:
        position = _judged(position, evaluation_loss, session.training.early_stopping)
    spike = _spike(session, position.step, outcome)
    session.history.append(position.step, outcome, seconds=seconds, evaluation_loss=evaluation_loss, spike=spike)
    if evaluation_loss is not None:
        position = _compared(session, position)
    _report(session, position, outcome, seconds)
    due = position.step % session.training.checkpoint_every_steps == 0
    if due or position.step == position.best_step or _is_over(session, position):
        _save(session, position, saved)
    return position


def _compared(session: Session, position: Position) -> Position:
    """Note whether a trial that could go on is given up: the first process looks at the others, and all obey."""
    if session.behind is None or _is_over(session, position):
        return position
    behind = session.group.from_first(session.group.world.rank == 0 and session.behind())
    if behind:
        _LOG.info("given up after step %d: other trials have a lower held-out loss", position.step)
    return position.model_copy(update={"given_up": behind})


def _spike(session: Session, step: int, outcome: StepOutcome) -> Spike | None:
    usual = session.spikes.judge(outcome.loss)
    if usual is None:
        return None
    message = "the loss of step %d is %.3f, and %.3f was usual before it: look at its rows in %s"
    _LOG.warning(message, step, outcome.loss, usual, session.history.path)
    return Spike(usual=usual, rows={str(session.split.row_ids[row]): session.text(row) for row in outcome.rows})


def _judged(position: Position, loss: float, stopping: EarlyStoppingSpec | None) -> Position:
    """Note a held-out loss and, where early stopping asks for it, whether it is the best so far."""
    update: dict[str, object] = {"evaluation_loss": loss}
    if stopping is not None and (position.best_loss is None or loss < position.best_loss - stopping.min_delta):
        update |= {"best_loss": loss, "best_step": position.step, "stale_evaluations": 0}
    elif stopping is not None:
        update |= {"stale_evaluations": position.stale_evaluations + 1}
    return position.model_copy(update=update)


def compute_step(session: Session, step: int, *, saved_step: int | None) -> StepOutcome:
    """Compute one optimizer step, counted from 0.

    The loss is the summed negative log-likelihood over the supervised tokens of the whole step, divided by their
    number: however the step is divided into micro-batches, its gradient is that of the one big batch.
    """
    training = session.training
    rows = rows_of_step(step, rows=len(session.split), batch_size=training.batch_size, seed=training.seed)
    supervised = max(supervised_count(session.split, rows), 1)
    nll, tokens, stops = session.group.sums(*_accumulate(session, step, rows, supervised))
    if stops:
        raise Stopped
    check = partial(require_finite, step=step + 1, training=training, saved_step=saved_step)
    check(nll, what="the training loss")
    rate = learning_rate(step, training=training, total=session.total_steps)
    set_learning_rate(session.optimizer, rate)
    norm = session.strategy.update(
        session.optimizer, list(session.weights.values()), greatest_norm=training.max_grad_norm
    )
    check(norm, what="the norm of the gradients")
    return StepOutcome(rows=rows, nll=nll, supervised=supervised, tokens=int(tokens), gradient_norm=norm, rate=rate)


def _accumulate(session: Session, step: int, rows: list[int], supervised: int) -> tuple[float, int, bool]:
    """Add up the gradients of this process's share of a step; return what `_accumulate_once` does.

    Where memory runs out, this step and all that follow are divided into smaller micro-batches. Raises UserError
    OUT_OF_MEMORY when a single row is too much.
    """
    while True:
        _set_chance(session, step)
        session.strategy.forget_gradients(session.optimizer)
        try:
            return _accumulate_once(session, rows, supervised)
        except UserError as error:
            if error.reason is not Reason.OUT_OF_MEMORY or not _can_halve(session, rows):
                raise
            told = error.message
        # What the pass has taken is free by now: the error that held it is gone.
        session.strategy.release()
        _LOG.warning("%s: from step %d on at most %d tokens at once", told, step + 1, session.budget.tokens)


def _set_chance(session: Session, step: int) -> None:
    """Let chance (dropout) follow from the step, so that a resumed training draws what it would have drawn.

    Every rank draws for rows of its own.
    """
    rank = session.group.world.rank
    seeds = [session.training.seed, step, *([rank] if rank else [])]
    torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))


def _can_halve(session: Session, rows: list[int]) -> bool:
    """Make the micro-batches of this process smaller, where that is possible and the others need not know."""
    if session.strategy.in_lockstep:
        return False
    return session.budget.halve(lengths_of(session.split, rows), padded=session.padded)


def _accumulate_once(session: Session, rows: list[int], supervised: int) -> tuple[float, int, bool]:
    """Compute the share of this process; the last value tells whether it was given up, asked to stop."""
    division = Division(session.budget.tokens, session.training.micro_batch_size, padded=session.padded)
    parts = session.strategy.parts(rows, lengths_of(session.split, rows), division)
    nll, tokens, stopped = torch.zeros((), dtype=torch.float64), 0, not parts and session.stop()
    for part in parts:
        stopped = session.stop()
        if stopped:
            break
        batch = micro_batch(session.build, session.split, part).to(session.strategy.device)
        tokens += batch.tokens
        if not len(batch.labels) and not session.strategy.in_lockstep:
            continue
        with training_memory_errors(f"a forward and backward pass over {batch.tokens} tokens"):
            summed = session.strategy.summed_nll(session.forward, batch)
            session.strategy.backward(summed / supervised)
        nll += summed.detach().double().cpu()
    return float(nll), tokens, stopped


def _advanced(position: Position, outcome: StepOutcome, session: Session) -> Position:
    nll, supervised = position.epoch_nll + outcome.nll, position.epoch_tokens + outcome.supervised
    update: dict[str, object] = {
        "step": position.step + 1,
        "tokens": position.tokens + outcome.tokens,
        "micro_batch_tokens": session.budget.tokens,
    }
    if (position.step + 1) % session.steps_per_epoch == 0:
        update |= {"epoch_nll": 0.0, "epoch_tokens": 0, "last_epoch_loss": nll / supervised}
    else:
        update |= {"epoch_nll": nll, "epoch_tokens": supervised}
    return position.model_copy(update=update)


def _evaluation_loss(session: Session, step: int, saved: _Saved) -> float | None:
    every = session.training.evaluate_every_steps or session.steps_per_epoch
    if step % every != 0 and step != session.total_steps:
        return None
    with training_memory_errors("the evaluation of held-out rows"):
        loss = held_out_loss(session.forward, session.held_out, session.strategy, stop=session.stop)
    if loss is not None:
        require_finite(loss, what="the held-out loss", step=step, training=session.training, saved_step=saved.step)
    return loss


def _save(session: Session, position: Position, saved: _Saved) -> None:
    if position.step in {0, saved.step}:
        return
    state = session.strategy.snapshot(session.weights, session.optimizer)
    saved.step = position.step
    if session.group.world.rank != 0:
        return
    # Before another copy is made: memory was planned for one.
    session.writer.finish()
    if session.writer.in_background:
        state = state.copied()
    session.writer.begin(partial(_write, session, position, state, session.history.read()))


def _write(session: Session, position: Position, state: Snapshot, history: bytes) -> None:
    path = save_checkpoint(
        session.checkpoints,
        identity=session.identity,
        position=position,
        state=state,
        history=history,
        keep=session.training.keep_checkpoints,
    )
    _LOG.info("checkpoint %s written", path.name)


def _report(session: Session, position: Position, outcome: StepOutcome, seconds: float) -> None:
    speed = outcome.tokens / max(seconds, 1e-9)
    metrics: dict[str, float] = {
        ProgressMetric.STEP: position.step,
        ProgressMetric.TOTAL_STEPS: session.total_steps,
        ProgressMetric.LOSS: outcome.loss,
        ProgressMetric.LEARNING_RATE: outcome.rate,
        ProgressMetric.TOKENS_PER_SECOND: speed,
    }
    note = f"step {position.step}/{session.total_steps} loss {outcome.loss:.3f} {speed:.0f} tok/s"
    if position.evaluation_loss is not None:
        metrics[ProgressMetric.EVALUATION_LOSS] = position.evaluation_loss
        note += f" held-out {position.evaluation_loss:.3f}"
    session.reporter.update(position.step / session.total_steps, note=note, metrics=metrics)
