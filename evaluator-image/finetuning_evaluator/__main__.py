"""The evaluator as a program: ``python -m finetuning_evaluator``."""

import sys

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import EvaluateConfig, EvaluateResult, RunConfig
from finetuning_workload.errors import EnvironmentFault
from finetuning_workload.program import Context, run_program


def work(config: RunConfig, context: Context) -> EvaluateResult:
    """Do what the RunConfig says."""
    if not isinstance(config, EvaluateConfig):
        message = f"the evaluator does not know the kind {config.kind!r}"
        raise EnvironmentFault(Reason.INTERNAL, message, "Operator and image must be of one release.")
    # torch and transformers take seconds to import: not before they are needed.
    from finetuning_evaluator.evaluate import evaluate

    return evaluate(config, context)


if __name__ == "__main__":
    sys.exit(run_program(work))
