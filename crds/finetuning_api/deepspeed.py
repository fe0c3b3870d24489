"""Settings of DeepSpeed: what is asked of it here, and what a configuration of one's own may say."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field, WithJsonSchema

from finetuning_api.base import ApiModel, CelRule

EngineConfig = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
"""Settings in DeepSpeed's own words, as in its ds_config.json."""

ZERO_OPTIMIZATION = "zero_optimization"
FREE_SETTINGS = frozenset(
    {
        "comms_logger",
        "communication_data_type",
        "dump_state",
        "flops_profiler",
        "memory_breakdown",
        "steps_per_print",
        "wall_clock_breakdown",
        ZERO_OPTIMIZATION,
    }
)
"""Sections of a DeepSpeed configuration that a user may give."""
FREE_ZERO_SETTINGS = frozenset(
    {
        "allgather_bucket_size",
        "allgather_partitions",
        "contiguous_gradients",
        "overlap_comm",
        "reduce_bucket_size",
        "reduce_scatter",
        "round_robin_gradients",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold",
        "stage3_param_persistence_threshold",
        "stage3_prefetch_bucket_size",
        "sub_group_size",
    }
)
"""Settings of its section zero_optimization that a user may give: how tensors travel, not what is computed."""
_PRECISION = "spec.training.precision"
_OFFLOAD = "spec.parallelism.deepspeed.offload"
_INSTEAD: Mapping[str, str] = {
    "train_batch_size": "spec.training.batchSize",
    "train_micro_batch_size_per_gpu": "spec.training.microBatchSize",
    "gradient_accumulation_steps": "spec.training.batchSize and microBatchSize",
    "gradient_clipping": "spec.training.maxGradNorm",
    "optimizer": "spec.training.learningRate and weightDecay",
    "scheduler": "spec.training.schedule and warmupRatio",
    "amp": _PRECISION,
    "bf16": _PRECISION,
    "data_types": _PRECISION,
    "fp16": _PRECISION,
    "torch_autocast": _PRECISION,
    "checkpoint": "spec.training.checkpointEverySteps",
    "zero_optimization.stage": "spec.parallelism.deepspeed.stage",
    "zero_optimization.offload_optimizer": _OFFLOAD,
    "zero_optimization.offload_param": _OFFLOAD,
}
"""What says here what a setting of DeepSpeed says there."""


class DeepSpeedOffload(StrEnum):
    """What lies in the memory of the host instead of an accelerator's."""

    NONE = "none"
    OPTIMIZER = "optimizer"
    ALL = "all"


class DeepSpeedSpec(ApiModel):
    """How DeepSpeed divides a training."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.offload != 'all' || self.stage == 3",
            message="offload all takes weights that are divided: set stage to 3, or offload to optimizer",
            field="offload",
        ),
    )

    stage: int = Field(
        default=2,
        ge=1,
        le=3,
        description="Stage of ZeRO: 1 divides AdamW's moments among the processes, 2 the gradients too, 3 the weights"
        " too.",
    )
    offload: DeepSpeedOffload = Field(
        default=DeepSpeedOffload.NONE,
        description="What lies in the memory of the host: none; optimizer, AdamW's moments, and the CPU steps on them;"
        " all, with stage 3 the weights too.",
    )
    config: EngineConfig = Field(
        default_factory=dict,
        description="More settings in DeepSpeed's own words, as in its ds_config.json: how tensors travel and what is"
        " logged. What spec.training decides is refused.",
    )


def refused_settings(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return, in words, which settings of DeepSpeed's own a user may not give, and what to set instead."""
    refused = [name for name in _names(config) if name not in _FREE_NAMES]
    return tuple(f"{name} ({f'set {_INSTEAD[name]}' if name in _INSTEAD else 'remove it'})" for name in refused)


def _names(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings of a configuration, those of ZeRO one by one."""
    for name, value in config.items():
        if name == ZERO_OPTIMIZATION and isinstance(value, Mapping):
            yield from (f"{name}.{each}" for each in value)
        else:
            yield name


_FREE_NAMES = (FREE_SETTINGS - {ZERO_OPTIMIZATION}) | {f"{ZERO_OPTIMIZATION}.{name}" for name in FREE_ZERO_SETTINGS}
