"""One process of several that train together, started by torch's launcher: ``python -m finetuning_trainer.rank``."""

import logging
import os
import sys
from pathlib import Path

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import TERMINATION_LOG_ENV, RunConfig, TrainConfig, TrainResult
from finetuning_trainer.group import explained_losses, joined
from finetuning_trainer.train import train_in_group
from finetuning_workload.errors import EnvironmentFault
from finetuning_workload.parent import PARENT_ENV
from finetuning_workload.program import Context, run_program


def work(config: RunConfig, context: Context) -> TrainResult | None:
    """Do this rank's part of a training."""
    if not isinstance(config, TrainConfig):
        message = f"a rank trains, and was told to {config.kind}"
        raise EnvironmentFault(Reason.INTERNAL, message, "Ranks are started by the trainer itself.")
    with joined(context.environment) as ranks:
        if ranks.world.rank != 0:
            # What every rank would say is said once.
            logging.getLogger("finetuning_trainer").setLevel(logging.WARNING)
            logging.getLogger("finetuning_workload").setLevel(logging.WARNING)
        with explained_losses(ranks.world):
            return train_in_group(config, context, ranks, device=ranks.device)


def words_path(folder: Path, local_rank: int) -> Path:
    """Return where a rank leaves its last words for the launcher of its worker."""
    return folder / f"{local_rank}.json"


if __name__ == "__main__":
    os.environ[TERMINATION_LOG_ENV] = str(words_path(Path(sys.argv[1]), int(os.environ["LOCAL_RANK"])))
    os.environ[PARENT_ENV] = str(os.getppid())
    sys.exit(run_program(work))
