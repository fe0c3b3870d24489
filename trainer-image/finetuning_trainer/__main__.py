"""The trainer as a program: ``python -m finetuning_trainer``."""

import sys

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import (
    ArtifactResult,
    ChooseConfig,
    ConvertConfig,
    ExportConfig,
    PreflightConfig,
    PreflightResult,
    RunConfig,
    TrainConfig,
    TrainResult,
)
from finetuning_workload.errors import EnvironmentFault
from finetuning_workload.program import Context, run_program


def work(config: RunConfig, context: Context) -> PreflightResult | TrainResult | ArtifactResult | None:
    """Do what the RunConfig says."""
    # torch and transformers take seconds to import: not before they are needed.
    match config:
        case PreflightConfig():
            from finetuning_trainer.preflight import preflight

            return preflight(config, context)
        case TrainConfig():
            from finetuning_trainer.torchrun import run_training

            return run_training(config, context)
        case ChooseConfig():
            from finetuning_trainer.trials import choose

            return choose(config)
        case ConvertConfig():
            from finetuning_trainer.convert import convert

            return convert(config, context)
        case ExportConfig():
            from finetuning_trainer.merge import merge

            return merge(config, context)
        case _:
            message = f"the trainer does not know the kind {config.kind!r}"
            raise EnvironmentFault(Reason.INTERNAL, message, "Operator and image must be of one release.")


if __name__ == "__main__":
    sys.exit(run_program(work))
