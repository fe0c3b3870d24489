"""Tuning: several trainings of one job that differ in some of its numbers, and what became of them."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from finetuning_api.base import INT32_MAX, ApiModel, CelRule, Digest, Message, keyed_by

MOST_TRIALS = 64
"""Of one job: each is a line of its status, and a training."""
_MOST_PARAMETERS = 8
TOO_MANY_TRIALS = (
    f"spec.tuning tries {{count}} combinations, and {MOST_TRIALS} are the most: give fewer values, or set"
    f" spec.tuning.search to random and spec.tuning.trials to {MOST_TRIALS} or less"
)
_COMBINATIONS = " * ".join(
    f"(self.parameters.size() > {place} && has(self.parameters[{place}].values)"
    f" ? self.parameters[{place}].values.size() : 1)"
    for place in range(_MOST_PARAMETERS)
)
"""In CEL, which has no product of a list; to tell it would cost an API server too much."""


class TunedField(StrEnum):
    """Fields of a job that a trial may have a number of its own for, by their place below spec.

    What changes how a loss is counted is not among them: trials must be comparable.
    """

    RANK = "method.rank"
    ALPHA = "method.alpha"
    DROPOUT = "method.dropout"
    EPOCHS = "training.epochs"
    LEARNING_RATE = "training.learningRate"
    WARMUP_RATIO = "training.warmupRatio"
    WEIGHT_DECAY = "training.weightDecay"
    MAX_GRAD_NORM = "training.maxGradNorm"
    BATCH_SIZE = "training.batchSize"


class SearchType(StrEnum):
    """Which combinations are tried."""

    GRID = "grid"
    RANDOM = "random"


class Scale(StrEnum):
    """How numbers of a range are drawn."""

    LINEAR = "linear"
    LOG = "log"


class TunedParameter(ApiModel):
    """The numbers that are tried for one field."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="has(self.min) == has(self.max) && has(self.values) != has(self.min)",
            message="give either values or both min and max",
            field="values",
        ),
        CelRule(
            rule="!has(self.min) || !has(self.max) || self.min < self.max",
            message="the range is empty: min must be less than max",
            field="min",
        ),
        CelRule(
            rule="!has(self.min) || self.scale != 'log' || self.min > 0.0",
            message="a range of scale log begins above 0",
            field="min",
        ),
    )

    name: TunedField = Field(description="Field, for example method.rank or training.learningRate.")
    # Not a set: an API server finds sets of numbers different from themselves where one of them is written as 4.
    values: list[float] | None = Field(default=None, min_length=1, max_length=32, description="Numbers to try.")
    min: float | None = Field(default=None, description="Least number of a range; only with search random.")
    max: float | None = Field(default=None, description="Greatest number of a range.")
    scale: Scale = Field(
        default=Scale.LINEAR, description="log draws each order of magnitude of a range equally often, linear does not."
    )


class HalvingSpec(ApiModel):
    """When a trial is given up: asynchronous successive halving (ASHA), as Optuna decides it."""

    reduction_factor: int = Field(
        default=3,
        ge=2,
        le=16,
        description="Of this many trials that came to a rung, one goes on. Rungs are minEvaluations evaluations of the"
        " held-out loss, and this many times as many each time.",
    )
    min_evaluations: int = Field(
        default=1, ge=1, le=1000, description="Evaluations of the held-out loss before a trial can be given up."
    )


class TuningSpec(ApiModel):
    """Trials: trainings that differ in some numbers. The one with the lowest held-out loss is the job's result."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.search != 'grid' || self.parameters.all(p, has(p.values))",
            message="search grid tries every combination of values: give values in place of min and max, or set search"
            " to random",
            field="parameters",
        ),
        CelRule(
            rule="self.search != 'grid' || !has(self.trials)",
            message="search grid tries every combination: remove trials, or set search to random",
            field="trials",
        ),
        CelRule(
            rule=f"self.search != 'grid' || {_COMBINATIONS} <= {MOST_TRIALS}",
            message=TOO_MANY_TRIALS.format(count="too many"),
            field="parameters",
        ),
    )

    parameters: list[TunedParameter] = Field(
        min_length=1,
        max_length=_MOST_PARAMETERS,
        description="What trials differ in; every other field is the job's own.",
        json_schema_extra=keyed_by("name"),
    )
    search: SearchType = Field(
        default=SearchType.RANDOM, description="grid: every combination of values; random: as many as trials says."
    )
    trials: int | None = Field(default=None, ge=1, le=MOST_TRIALS, description="Trials of search random; unset is 10.")
    seed: int = Field(default=42, ge=0, le=INT32_MAX, description="Seed of the search: the same gives the same trials.")
    parallelism: int = Field(default=1, ge=1, le=MOST_TRIALS, description="Trials that run at the same time.")
    max_failed: int = Field(default=3, ge=0, le=MOST_TRIALS, description="Trials that may fail; one more ends the job.")
    halving: HalvingSpec | None = Field(
        default=None, description="Give up trials that fall behind; unset trains all of them to their end."
    )


class TrialState(StrEnum):
    """Where a trial stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    GIVEN_UP = "GivenUp"
    FAILED = "Failed"


class TrialParameter(ApiModel):
    """A number of one trial."""

    name: TunedField = Field(description="Field.")
    value: float = Field(description="Its number in this trial.")


class TrialStatus(ApiModel):
    """What became of one trial."""

    number: int = Field(ge=0, lt=MOST_TRIALS, description="Which trial, counted from 0.")
    state: TrialState = Field(
        default=TrialState.PENDING, description="Where it stands; GivenUp ended early because others were better."
    )
    parameters: list[TrialParameter] = Field(
        default_factory=list,
        max_length=_MOST_PARAMETERS,
        description="Its numbers.",
        json_schema_extra=keyed_by("name"),
    )
    evaluation_loss: float | None = Field(
        default=None, description="Held-out loss of its weights (nats per supervised token)."
    )
    steps: int | None = Field(default=None, ge=0, description="Optimizer steps that it was trained for.")
    attempts: int = Field(default=0, ge=0, description="How often it was started.")
    resumptions: int = Field(default=0, ge=0, description="How often it went on from a checkpoint.")
    digest: Digest | None = Field(default=None, description="Digest of its adapter.")
    message: Message = Field(default="", description="Why it failed.")

    @property
    def ended(self) -> bool:
        """Whether it will not run again."""
        return self.state not in {TrialState.PENDING, TrialState.RUNNING}


TrialNumber = Annotated[int, Field(ge=0, lt=MOST_TRIALS)]


class TuningStatus(ApiModel):
    """What became of the trials."""

    best: TrialNumber | None = Field(
        default=None, description="Trial with the lowest held-out loss of those that have ended."
    )
    trials: list[TrialStatus] = Field(
        default_factory=list,
        max_length=MOST_TRIALS,
        description="All trials, in the order in which they are started.",
        json_schema_extra=keyed_by("number"),
    )
