"""The server's programs: ``python -m finetuning_server``."""

import sys

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import PromptConfig, RunConfig
from finetuning_workload.errors import EnvironmentFault
from finetuning_workload.program import Context, run_program


def work(config: RunConfig, context: Context) -> None:
    """Do what the RunConfig says."""
    if not isinstance(config, PromptConfig):
        message = f"the server does not know the kind {config.kind!r}"
        raise EnvironmentFault(Reason.INTERNAL, message, "Operator and image must be of one release.")
    # torch and transformers take seconds to import: not before they are needed.
    from finetuning_server.prompt import answer_prompt

    answer_prompt(config, context)


if __name__ == "__main__":
    sys.exit(run_program(work))
