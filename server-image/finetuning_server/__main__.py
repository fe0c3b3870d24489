"""The server's programs: ``python -m finetuning_server``."""

import sys

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import PredictConfig, PredictResult, PromptConfig, RunConfig, ServeConfig
from finetuning_workload.errors import EnvironmentFault
from finetuning_workload.program import Context, run_program


def work(config: RunConfig, context: Context) -> PredictResult | None:
    """Do what the RunConfig says."""
    # torch and transformers take seconds to import: not before they are needed.
    match config:
        case ServeConfig():
            from finetuning_server.serve import serve

            serve(config, context)
        case PromptConfig():
            from finetuning_server.groups import batching_engines
            from finetuning_server.prompt import answer_prompt

            answer_prompt(config, context, engines=batching_engines(context.environment))
        case PredictConfig():
            from finetuning_server.groups import batching_engines
            from finetuning_server.predict import predict

            return predict(config, context, engines=batching_engines(context.environment))
        case _:
            message = f"the server does not know the kind {config.kind!r}"
            raise EnvironmentFault(Reason.INTERNAL, message, "Operator and image must be of one release.")
    return None


if __name__ == "__main__":
    sys.exit(run_program(work))
