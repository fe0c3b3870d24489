"""Training, from the inputs to the finished artifact."""

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.finetuningjob import MethodType
from finetuning_api.runconfig import TrainConfig, TrainResult
from finetuning_trainer import batching
from finetuning_trainer.adapters import Trainee, attach, require_supported
from finetuning_trainer.checkpoint import Checkpoint, Position, latest_checkpoint, restore
from finetuning_trainer.evaluate import HeldOut, chosen_rows
from finetuning_trainer.events import EventFiles
from finetuning_trainer.fusing import Fused, choose_fused, fused_parts
from finetuning_trainer.guard import training_memory_errors
from finetuning_trainer.history import History
from finetuning_trainer.loop import Session, train
from finetuning_trainer.loss import Forward
from finetuning_trainer.optim import make_optimizer
from finetuning_trainer.output import finished_result, save_output, train_result
from finetuning_trainer.plan import TrainingPlan, make_plan
from finetuning_trainer.probe import choose_paths
from finetuning_trainer.provenance import TrainingProvenance, plan_record, training_identity, versions
from finetuning_trainer.spikes import SpikeWatch
from finetuning_trainer.strategy import SingleProcess, require_single_process
from finetuning_workload.data import PreparedData, preparation_digest, prepare
from finetuning_workload.hardware import DtypeChoice, choose_device, choose_dtype, set_threads
from finetuning_workload.models import load_base_model, load_tokenizer, quiet_libraries, require_matching_tokenizer
from finetuning_workload.program import Context
from finetuning_workload.progress import Reporter

_LOG = logging.getLogger(__name__)
_SHOWN_TOKENS = 64
"""Of a row that somebody should look at."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is ready before the first step."""

    config: TrainConfig
    identity: str
    tokenizer: PreTrainedTokenizerBase
    data: PreparedData
    checkpoint: Checkpoint | None
    trainee: Trainee
    strategy: SingleProcess
    plan: TrainingPlan
    fused: Fused
    started_at: datetime


def train_model(config: TrainConfig, context: Context) -> TrainResult:
    """Train as the RunConfig says, from the newest checkpoint where there is one, and write the artifact.

    A training that is already finished is not repeated. Raises UserError and EnvironmentFault with their reasons, and
    Interrupted after a checkpoint when the program is asked to stop.
    """
    quiet_libraries()
    started_at = datetime.now(UTC)
    require_single_process(config.parallelism)
    require_supported(config.method)
    tokenizer = load_tokenizer(Path(config.model.tokenizer_path))
    data_digest = preparation_digest(config.dataset, tokenizer, training=config.training)
    identity = training_identity(config, data_digest)
    finished = finished_result(Path(config.output_path), identity=identity)
    if finished is not None:
        _LOG.info("already trained: %s is intact and of the same configuration", config.output_path)
        return finished
    reporter = context.reporter("Training")
    try:
        with training_memory_errors("loading the model"):
            prepared = _prepare(config, context, identity=identity, tokenizer=tokenizer, started_at=started_at)
        context.stop.raise_if_set("stopped before the first step")
        return _train(prepared, context, reporter)
    finally:
        reporter.close()


def _prepare(
    config: TrainConfig,
    context: Context,
    *,
    identity: str,
    tokenizer: PreTrainedTokenizerBase,
    started_at: datetime,
) -> _Prepared:
    threads, device = set_threads(context.environment), choose_device()
    data = prepare(config.dataset, tokenizer, training=config.training, cache=Path(config.cache_path))
    context.stop.raise_if_set("stopped before the model was loaded")
    checkpoint = latest_checkpoint(Path(config.checkpoint_path), identity=identity)
    dtype = _dtype(config, device, checkpoint)
    # Trained weights are fp32 always: what an update adds is often less than bf16 can hold.
    full = config.method.type is MethodType.FULL
    model = load_base_model(Path(config.model.path), dtype=torch.float32 if full else dtype.dtype, device=device)
    require_matching_tokenizer(model.config, tokenizer)
    strategy = SingleProcess(device, dtype.dtype)
    paths = choose_paths(model, strategy)
    trainee = attach(model, config.method, seed=config.training.seed)
    forward, build = Forward(trainee.causal, split_head=paths.split_head), _builder(packed=paths.packed)
    fused = choose_fused(trainee, forward, strategy, build=build)
    plan = make_plan(
        config, data=data, trainee=trainee, device=device, dtype=dtype, paths=paths, fused=fused, threads=threads
    )
    plan = _resumed(plan, checkpoint)
    return _Prepared(config, identity, tokenizer, data, checkpoint, trainee, strategy, plan, fused, started_at)


def _builder(*, packed: bool) -> batching.Build:
    return batching.pack if packed else batching.pad


def _resumed(plan: TrainingPlan, checkpoint: Checkpoint | None) -> TrainingPlan:
    """Return the plan with micro-batches no larger than those of a checkpoint, which memory may have taught."""
    known = checkpoint.position.micro_batch_tokens if checkpoint else None
    return plan if known is None else replace(plan, micro_batch_tokens=min(plan.micro_batch_tokens, known))


def _dtype(config: TrainConfig, device: torch.device, checkpoint: Checkpoint | None) -> DtypeChoice:
    """Return the number format; a resumed training keeps the one that it began with, whatever is measured now."""
    if checkpoint is None:
        return choose_dtype(config.training.precision, device)
    return DtypeChoice(getattr(torch, checkpoint.position.dtype), "the checkpoint was computed in it")


def _train(prepared: _Prepared, context: Context, reporter: Reporter) -> TrainResult:
    prepared.plan.log()
    with _event_files(prepared) as events:
        session = _session(prepared, context, reporter, events=events)
        position = _start(prepared, session)
        saved_step = position.step or None
        with prepared.strategy.prepared(prepared.trainee), fused_parts(prepared.trainee, prepared.fused):
            position = train(session, position, saved_step=saved_step)
    record = _record(prepared, position, session, resumed_from_step=saved_step)
    manifest = save_output(
        Path(prepared.config.output_path), trainee=prepared.trainee, tokenizer=prepared.tokenizer, record=record
    )
    return train_result(manifest, record)


def _event_files(prepared: _Prepared) -> EventFiles:
    folder, checkpoint = prepared.config.tensorboard_path, prepared.checkpoint
    return EventFiles(Path(folder) if folder else None, resumed_from=checkpoint.position.step if checkpoint else None)


def _session(prepared: _Prepared, context: Context, reporter: Reporter, *, events: EventFiles) -> Session:
    plan, weights = prepared.plan, prepared.trainee.trainable()
    budget = batching.TokenBudget(plan.micro_batch_tokens)
    build, checkpoints = _builder(packed=plan.packed), Path(prepared.config.checkpoint_path)
    held_out = HeldOut(
        split=prepared.data.test,
        rows=chosen_rows(prepared.data.test),
        padded=not plan.packed,
        build=build,
        budget=budget,
    )
    history = History(checkpoints, content=prepared.checkpoint.history if prepared.checkpoint else b"", events=events)
    _LOG.info("the held-out loss is taken on %d of %d held-out rows", len(held_out.rows), len(prepared.data.test))
    return Session(
        training=prepared.config.training,
        total_steps=plan.total_steps,
        budget=budget,
        split=prepared.data.train,
        text=lambda row: str(prepared.tokenizer.decode(prepared.data.train.sample(row).ids[:_SHOWN_TOKENS])),
        held_out=held_out,
        build=build,
        padded=not plan.packed,
        forward=Forward(prepared.trainee.causal, split_head=plan.split_head, fused_loss=plan.fused_loss),
        strategy=prepared.strategy,
        weights=weights,
        optimizer=make_optimizer(weights.values(), prepared.config.training),
        checkpoints=checkpoints,
        identity=prepared.identity,
        history=history,
        spikes=SpikeWatch(history.losses()),
        reporter=reporter,
        stop=lambda: bool(context.stop),
    )


def _start(prepared: _Prepared, session: Session) -> Position:
    if prepared.checkpoint is None:
        return Position(dtype=prepared.plan.dtype)
    restore(prepared.checkpoint, weights=session.weights, optimizer=session.optimizer)
    position = prepared.checkpoint.position
    _LOG.info("resumed from the checkpoint of step %d of %d", position.step, session.total_steps)
    return position.model_copy(update={"resumptions": position.resumptions + 1})


def _record(
    prepared: _Prepared, position: Position, session: Session, *, resumed_from_step: int | None
) -> TrainingProvenance:
    config = prepared.config
    running = position.epoch_nll / position.epoch_tokens if position.epoch_tokens else position.last_epoch_loss
    return TrainingProvenance(
        job=config.job,
        identity=prepared.identity,
        model=config.model.provenance,
        tokenizer=config.model.tokenizer_provenance,
        dataset=config.dataset.provenance,
        prepared_data=prepared.data.digest,
        method=config.method,
        training=config.training,
        seed=config.training.seed,
        versions=versions(),
        plan=plan_record(prepared.plan, micro_batch_tokens=position.micro_batch_tokens),
        counts=prepared.data.counts,
        steps=position.step,
        tokens=position.tokens,
        loss=running,
        evaluation_loss=position.evaluation_loss,
        evaluation_rows=len(session.held_out.rows),
        loss_spikes=session.history.spikes(),
        best_step=position.best_step,
        stopped_early=position.step < prepared.plan.total_steps,
        resumed_from_step=resumed_from_step,
        resumptions=position.resumptions,
        started_at=prepared.started_at,
        finished_at=datetime.now(UTC),
    )
