"""Training, from the inputs to the finished artifact."""

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.finetuningjob import MethodType
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ScriptInput, TrainConfig, TrainResult
from finetuning_trainer import batching
from finetuning_trainer.adapters import Trainee, attach, require_supported
from finetuning_trainer.checkpoint import (
    Checkpoint,
    Newest,
    Position,
    checkpoint_of,
    latest_checkpoint,
    remove_checkpoints,
)
from finetuning_trainer.evaluate import HeldOut, chosen_rows
from finetuning_trainer.events import EventFiles
from finetuning_trainer.fusing import Fused, choose_fused, fused_parts
from finetuning_trainer.group import Alone, Group
from finetuning_trainer.guard import training_memory_errors
from finetuning_trainer.history import History
from finetuning_trainer.loop import Session, train
from finetuning_trainer.loss import Forward
from finetuning_trainer.memory import give_back_large_tensors, measure, peak_bytes
from finetuning_trainer.output import finished_result, save_output, train_result
from finetuning_trainer.plan import TrainingPlan, make_plan
from finetuning_trainer.probe import choose_paths
from finetuning_trainer.provenance import TrainingProvenance, plan_record, training_identity, versions
from finetuning_trainer.script import train_with_script
from finetuning_trainer.spikes import SpikeWatch
from finetuning_trainer.strategies import choose_strategy, require_known
from finetuning_trainer.strategy import SingleProcess
from finetuning_trainer.trials import rivalry
from finetuning_trainer.writer import CheckpointWriter, checkpoint_writer
from finetuning_workload.data import PreparedData, preparation_digest, prepare
from finetuning_workload.errors import EnvironmentFault
from finetuning_workload.files import format_bytes
from finetuning_workload.hardware import DtypeChoice, choose_device, choose_dtype, set_threads
from finetuning_workload.models import load_base_model, load_tokenizer, quiet_libraries, require_matching_tokenizer
from finetuning_workload.program import Context
from finetuning_workload.progress import Reporter, silent_reporter

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
    damaged: tuple[int, ...]
    """Steps of newer checkpoints, which are damaged; the first process knows them."""
    trainee: Trainee
    strategy: SingleProcess
    plan: TrainingPlan
    fused: Fused
    started_at: datetime

    @property
    def first(self) -> bool:
        """Whether this process writes what there is to write."""
        return self.strategy.group.world.rank == 0


def train_model(config: TrainConfig, context: Context) -> TrainResult:
    """Train as the RunConfig says in this one process, and write the artifact.

    Raises what `train_in_group` raises.
    """
    finished = already_trained(config)
    if finished is not None:
        return finished
    if config.script is not None:
        return _train_with_script(config, config.script, context)
    result = train_in_group(config, context, Alone(), device=choose_device())
    if result is None:
        message = "the only process of a training is its first"
        raise AssertionError(message)
    return result


def _train_with_script(config: TrainConfig, script: ScriptInput, context: Context) -> TrainResult:
    started_at = datetime.now(UTC)
    tokenizer = load_tokenizer(Path(config.model.tokenizer_path))
    identity = _identity(config, tokenizer)
    return train_with_script(config, script, context, identity=identity, tokenizer=tokenizer, started_at=started_at)


def already_trained(config: TrainConfig) -> TrainResult | None:
    """Return the result of a training that is finished: it is not repeated. Raises UserError(UNSUPPORTED)."""
    quiet_libraries()
    require_known(config)
    if config.script is None:
        require_supported(config.method)
    tokenizer = load_tokenizer(Path(config.model.tokenizer_path))
    finished = finished_result(Path(config.output_path), identity=_identity(config, tokenizer))
    if finished is not None:
        _LOG.info("already trained: %s is intact and of the same configuration", config.output_path)
    return finished


def train_in_group(config: TrainConfig, context: Context, group: Group, *, device: torch.device) -> TrainResult | None:
    """Do the part of this process in a training, from the newest checkpoint where there is one.

    The first process writes the artifact and returns the result. Raises UserError and EnvironmentFault with their
    reasons, and Interrupted after a checkpoint when the program is asked to stop.
    """
    quiet_libraries()
    started_at = datetime.now(UTC)
    reporter = context.reporter("Training") if group.world.rank == 0 else silent_reporter("Training")
    try:
        with training_memory_errors("loading the model"):
            prepared = _prepare(config, context, group, device=device, started_at=started_at)
        # Before the first step there is nothing to save, and nothing that the others wait for.
        context.stop.raise_if_set("stopped before the first step")
        return _train(prepared, context, reporter)
    finally:
        reporter.close()


def prepare_data(config: TrainConfig) -> None:
    """Tokenise the data into the cache, where it is not there."""
    tokenizer = load_tokenizer(Path(config.model.tokenizer_path))
    prepare(config.dataset, tokenizer, training=config.training, cache=Path(config.cache_path))


def _identity(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    return training_identity(config, preparation_digest(config.dataset, tokenizer, training=config.training))


def _prepare(
    config: TrainConfig, context: Context, group: Group, *, device: torch.device, started_at: datetime
) -> _Prepared:
    set_threads(context.environment, processes=group.world.local_size)
    tokenizer = load_tokenizer(Path(config.model.tokenizer_path))
    identity = _identity(config, tokenizer)
    data = prepare(config.dataset, tokenizer, training=config.training, cache=Path(config.cache_path))
    context.stop.raise_if_set("stopped before the model was loaded")
    newest = _common_checkpoint(Path(config.checkpoint_path), identity, group)
    checkpoint = newest.checkpoint
    # What is measured differs between machines, and the ranks must agree.
    dtype = group.from_first(_dtype(config, device, checkpoint))
    strategy = choose_strategy(config.parallelism, group, device=device, dtype=dtype.dtype)
    # Trained weights are fp32 always: what an update adds is often less than bf16 can hold.
    full = config.method.type is MethodType.FULL
    model = load_base_model(
        Path(config.model.path), dtype=torch.float32 if full else dtype.dtype, device=strategy.loading_device
    )
    require_matching_tokenizer(model.config, tokenizer)
    paths = group.from_first(choose_paths(model, strategy))
    trainee = attach(model, config.method, seed=config.training.seed)
    forward, build = Forward(trainee.causal, split_head=paths.split_head), _builder(packed=paths.packed)
    fused = group.from_first(choose_fused(trainee, forward, strategy, build=build))
    measured = group.from_first(measure(trainee, forward, strategy, build=build, fused=fused))
    begun_with = checkpoint.position.micro_batch_tokens if checkpoint else None
    plan = make_plan(
        config,
        data=data,
        trainee=trainee,
        strategy=strategy,
        dtype=dtype,
        paths=paths,
        fused=fused,
        measured=replace(measured, begun_with=begun_with),
    )
    if plan.gives_memory_back:
        give_back_large_tensors()
    return _Prepared(
        config, identity, tokenizer, data, checkpoint, newest.damaged, trainee, strategy, plan, fused, started_at
    )


def _common_checkpoint(folder: Path, identity: str, group: Group) -> Newest:
    """Return the newest checkpoint that the first process can use. Raises EnvironmentFault where another cannot."""
    newest = latest_checkpoint(folder, identity=identity) if group.world.rank == 0 else Newest(None, ())
    step = group.from_first(newest.checkpoint.position.step if newest.checkpoint else None)
    if group.world.rank != 0 and step is not None:
        found = checkpoint_of(folder, step, identity=identity)
        if found is None:
            message = f"rank {group.world.rank} cannot read the checkpoint of step {step}, which rank 0 goes on from"
            hint = "All workers must see one volume: give the adapter a claim that several nodes can mount."
            raise EnvironmentFault(Reason.CHECKPOINT_CORRUPT, message, hint)
        return Newest(found, ())
    return newest


def _builder(*, packed: bool) -> batching.Build:
    return batching.pack if packed else batching.pad


def _dtype(config: TrainConfig, device: torch.device, checkpoint: Checkpoint | None) -> DtypeChoice:
    """Return the number format; a resumed training keeps the one that it began with, whatever is measured now."""
    if checkpoint is None:
        return choose_dtype(config.training.precision, device)
    return DtypeChoice(getattr(torch, checkpoint.position.dtype), "the checkpoint was computed in it")


def _train(prepared: _Prepared, context: Context, reporter: Reporter) -> TrainResult | None:
    if prepared.first:
        prepared.plan.log()
    strategy, trainee = prepared.strategy, prepared.trainee
    with (
        _event_files(prepared) as events,
        strategy.prepared(trainee),
        fused_parts(trainee, prepared.fused),
        checkpoint_writer(in_background=prepared.plan.background_checkpoints) as writer,
    ):
        session = _session(prepared, context, reporter, events=events, writer=writer)
        position = _start(prepared, session)
        saved_step = position.step or None
        position = train(session, position, saved_step=saved_step)
        # What is shared among processes is put together for the result; else the model has it all.
        shared = strategy.in_lockstep
        weights = {name: strategy.whole(weight) for name, weight in session.weights.items()} if shared else None
    result = None
    if prepared.first:
        record = _record(prepared, position, session, resumed_from_step=saved_step)
        expected = prepared.plan.memory_bytes
        _LOG.info("peak memory %s, expected %s", format_bytes(record.peak_memory_bytes or 0), format_bytes(expected))
        manifest = save_output(
            Path(prepared.config.output_path),
            trainee=trainee,
            weights=weights,
            tokenizer=prepared.tokenizer,
            record=record,
        )
        result = train_result(manifest, record)
        if prepared.config.trial is not None:
            # Of many trials, one is kept.
            remove_checkpoints(Path(prepared.config.checkpoint_path))
    # A worker that ended with success is never started again: none may before the result is there.
    strategy.group.wait()
    return result


def _event_files(prepared: _Prepared) -> EventFiles:
    folder, checkpoint = prepared.config.tensorboard_path if prepared.first else None, prepared.checkpoint
    return EventFiles(Path(folder) if folder else None, resumed_from=checkpoint.position.step if checkpoint else None)


def _session(
    prepared: _Prepared, context: Context, reporter: Reporter, *, events: EventFiles, writer: CheckpointWriter
) -> Session:
    plan = prepared.plan
    forward = Forward(prepared.trainee.causal, split_head=plan.split_head, fused_loss=plan.fused_loss)
    prepared.strategy.distribute(prepared.trainee, forward)
    weights = prepared.trainee.trainable()
    budget = batching.TokenBudget(plan.micro_batch_tokens)
    build, checkpoints = _builder(packed=plan.packed), Path(prepared.config.checkpoint_path)
    held_out = HeldOut(
        split=prepared.data.test,
        rows=chosen_rows(prepared.data.test),
        padded=not plan.packed,
        build=build,
        budget=budget,
    )
    known = prepared.checkpoint.history if prepared.checkpoint else b""
    history = History(checkpoints, content=known, events=events, writes=prepared.first)
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
        forward=forward,
        strategy=prepared.strategy,
        weights=weights,
        optimizer=prepared.strategy.optimizer(weights.values(), prepared.config.training),
        checkpoints=checkpoints,
        writer=writer,
        identity=prepared.identity,
        history=history,
        spikes=SpikeWatch(history.losses()),
        reporter=reporter,
        stop=lambda: prepared.strategy.stops(bool(context.stop)),
        behind=rivalry(prepared.config.trial),
    )


def _start(prepared: _Prepared, session: Session) -> Position:
    if prepared.checkpoint is None:
        return Position(dtype=prepared.plan.dtype, damaged_checkpoints=prepared.damaged)
    prepared.strategy.restore(prepared.checkpoint, session.weights, session.optimizer)
    position = prepared.checkpoint.position
    _LOG.info("resumed from the checkpoint of step %d of %d", position.step, session.total_steps)
    damaged = tuple(sorted({*position.damaged_checkpoints, *prepared.damaged}))
    return position.model_copy(update={"resumptions": position.resumptions + 1, "damaged_checkpoints": damaged})


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
        trial=config.trial.number if config.trial else None,
        given_up=position.given_up,
        peak_memory_bytes=peak_bytes(prepared.strategy.device),
        resumed_from_step=resumed_from_step,
        resumptions=position.resumptions,
        damaged_checkpoints=position.damaged_checkpoints,
        started_at=prepared.started_at,
        finished_at=datetime.now(UTC),
    )
