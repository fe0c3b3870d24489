"""Everything that can be wrong, found on the CPU before an accelerator is taken."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from finetuning_api.finetuningjob import MethodSpec, MethodType
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import DatasetCounts, PreflightConfig, PreflightResult
from finetuning_api.trials import told, with_parameters
from finetuning_api.tuning import TrialParameter
from finetuning_trainer.adapters import attach, parameter_counts, require_supported
from finetuning_trainer.batching import total_steps
from finetuning_trainer.estimate import (
    ModelShape,
    activation_bytes,
    micro_batch_tokens,
    model_shape,
    step_tokens,
    weight_bytes,
)
from finetuning_trainer.guard import training_memory_errors
from finetuning_trainer.preferences import with_objective
from finetuning_trainer.script import require_startable
from finetuning_trainer.strategies import require_known
from finetuning_trainer.trials import draw_trials
from finetuning_workload.data import PreparedData, prepare, write_row_files
from finetuning_workload.errors import UserError
from finetuning_workload.evaluated import read_inputs
from finetuning_workload.files import format_bytes, require_free_space
from finetuning_workload.hardware import choose_device, choose_dtype, memory_limit, set_threads
from finetuning_workload.models import (
    load_model_config,
    load_tokenizer,
    quiet_libraries,
    require_matching_tokenizer,
    weight_files,
)
from finetuning_workload.program import Context

_LOG = logging.getLogger(__name__)
_FP32_BYTES = torch.float32.itemsize
_MOMENTS = 2


def preflight(config: PreflightConfig, context: Context) -> PreflightResult:
    """Check model, tokenizer, targets, data, metrics, memory and disk; tokenise the data into the cache.

    Raises UserError with the reason of the first thing that cannot work; what may go wrong becomes a warning.
    """
    quiet_libraries()
    set_threads(context.environment)
    config = with_objective(config)
    require_known(config)
    trials = draw_trials(config.tuning) if config.tuning else ()
    config = dearest(config, trials)
    if config.script is None:
        require_supported(config.method)
    else:
        require_startable(config.script)
    model_path = Path(config.model.path)
    model_config = load_model_config(model_path)
    tokenizer = load_tokenizer(Path(config.model.tokenizer_path))
    require_matching_tokenizer(model_config, tokenizer)
    weight_files(model_path)
    shape = _shape(config, model_config)
    reporter = context.reporter("Preflight")
    try:
        data = prepare(
            config.dataset, tokenizer, training=config.training, cache=Path(config.cache_path), reporter=reporter
        )
    finally:
        reporter.close()
    if config.dataset.rows.rejected is not None:
        write_row_files(config.dataset, tokenizer, cache=Path(config.cache_path))
    context.stop.raise_if_set("stopped during preflight")
    if config.evaluation is not None:
        # After training it would be told as well: when everything has been paid for.
        read_inputs(config.evaluation, config.dataset)
    warnings = [*_length_warnings(config, model_config, data), *_row_warnings(data.counts)]
    # What a script needs is its own affair.
    memory, memory_warnings = _memory(config, shape, data) if config.script is None else (None, [])
    warnings += [*memory_warnings, *_disk_warnings(config, shape)]
    for warning in warnings:
        _LOG.warning("%s", warning)
    training = config.training
    return PreflightResult(
        dataset=data.counts,
        parameters=shape.parameters,
        trainable_parameters=shape.trainable,
        total_steps=total_steps(
            len(data.train), batch_size=training.batch_size, epochs=training.epochs, max_steps=training.max_steps
        ),
        memory_bytes=memory,
        trials=trials,
        warnings=tuple(warnings),
    )


def dearest(config: PreflightConfig, trials: Sequence[Sequence[float]]) -> PreflightConfig:
    """Return a configuration that costs at least what each trial does: what works for it works for all.

    Raises UserError(INVALID_SPEC) for a trial whose numbers do not fit together.
    """
    if config.tuning is None:
        return config
    names = [parameter.name for parameter in config.tuning.parameters]
    settings = (config.method, config.training)
    for number, values in enumerate((*trials, [max(column) for column in zip(*trials, strict=True)])):
        parameters = [TrialParameter(name=name, value=value) for name, value in zip(names, values, strict=True)]
        try:
            method, training = with_parameters(settings, parameters)
        except ValueError as error:
            message = f"spec.tuning: trial {number} ({told(parameters)}) cannot be trained: {error}"
            raise UserError(Reason.INVALID_SPEC, message, "Change spec.tuning.parameters.") from error
    return config.model_copy(update={"method": method, "training": training})


def _shape(config: PreflightConfig, model_config: PreTrainedConfig) -> ModelShape:
    """Return the sizes of the model with its adapter, built without memory; finds target modules that do not exist."""
    with training_memory_errors("building the model's outline"):
        try:
            with torch.device("meta"):
                model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)
        except (ValueError, KeyError, AttributeError) as error:
            message = f"model type {model_config.model_type!r} is not a causal language model that transformers builds"
            hint = "Choose a causal language model that transformers supports itself."
            raise UserError(Reason.MODEL_UNREADABLE, message, hint) from error
        model.tie_weights()
        parameters, trainable = parameter_counts(attach(model, _counted(config), seed=0))
    return model_shape(model_config, parameters=parameters, trainable=trainable)


def _counted(config: PreflightConfig) -> MethodSpec:
    """Return the method whose parameters are counted: a script may do what the built-in training cannot."""
    if config.method.type is not MethodType.QLORA:
        return config.method
    return config.method.model_copy(update={"type": MethodType.LORA})


def _length_warnings(config: PreflightConfig, model_config: PreTrainedConfig, data: PreparedData) -> list[str]:
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    wanted = config.training.max_length
    if not positions or wanted <= positions:
        return []
    longest = int(max(data.train.lengths.max(), data.test.lengths.max()))
    if longest > positions:
        message = (
            f"spec.training.maxLength is {wanted} and the longest row has {longest} tokens, but the model has"
            f" {positions} positions"
        )
        raise UserError(Reason.INVALID_SPEC, message, f"Set spec.training.maxLength to {positions} or less.")
    return [f"spec.training.maxLength is {wanted}, the model has {positions} positions; no row is longer than that"]


def _row_warnings(counts: DatasetCounts) -> list[str]:
    stories = {
        "were cut to spec.training.maxLength": counts.truncated_rows,
        "were dropped": counts.dropped_rows,
        "have no token that carries loss": counts.masked_rows,
    }
    return [f"{number} of {counts.rows} rows {story}" for story, number in stories.items() if number]


def _memory(config: PreflightConfig, shape: ModelShape, data: PreparedData) -> tuple[int, list[str]]:
    """Return the estimated peak in bytes and warnings. Raises UserError(OUT_OF_MEMORY) where not even weights fit."""
    device = choose_device()
    dtype = choose_dtype(config.training.precision, device).dtype
    limit = memory_limit() // config.parallelism.processes_per_worker  # Each of them has a model of its own.
    weights = weight_bytes(shape, config.method.type, dtype)
    longest = int(data.train.lengths.max())
    budget = micro_batch_tokens(shape, weights=weights, limit=limit, longest=longest, dtype=dtype)
    tokens = step_tokens(data, config.training, budget=budget)
    peak = weights + activation_bytes(shape, dtype, tokens=tokens)
    if weights > limit:
        message = (
            f"training needs {format_bytes(weights)} for weights and optimizer alone; {format_bytes(limit)} are allowed"
        )
        hint = "Raise resources.limits.memory, use method lora in place of full, or take a smaller model."
        raise UserError(Reason.OUT_OF_MEMORY, message, hint)
    if peak <= limit:
        return peak, []
    warning = (
        f"training is estimated to need {format_bytes(peak)} of memory and {format_bytes(limit)} are allowed;"
        " lower spec.training.maxLength or spec.training.microBatchSize if it runs out"
    )
    return peak, [warning]


def _disk_warnings(config: PreflightConfig, shape: ModelShape) -> list[str]:
    """Raise EnvironmentFault(DISK_FULL) when the result does not fit; warn when its checkpoints may not."""
    output = Path(config.output_path)
    result = _FP32_BYTES * (shape.parameters if config.method.type is MethodType.FULL else shape.trainable)
    require_free_space(output, result, purpose="the trained weights")
    one = _FP32_BYTES * shape.trainable * (1 + _MOMENTS)
    needed = result + one * (config.training.keep_checkpoints + 1)
    existing = next(folder for folder in (output, *output.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed <= free:
        return []
    warning = (
        f"checkpoints and result need about {format_bytes(needed)}, {format_bytes(free)} are free; lower"
        " spec.training.keepCheckpoints or give the adapter's volume a larger size"
    )
    return [warning]
