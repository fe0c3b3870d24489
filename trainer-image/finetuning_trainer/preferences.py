"""Learning from preferences: which program does it, in the frame of a user's own one."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from finetuning_api.finetuningjob import Objective
from finetuning_api.runconfig import Provenance, ScriptInput, TrainingInputs

Inputs = TypeVar("Inputs", bound=TrainingInputs)
_PROGRAM = "finetuning_trainer.dpo"


def with_objective(config: Inputs) -> Inputs:
    """Return what is trained with the program that its objective needs; as it is where the built-in loop learns it.

    The program is part of the identity of a training, as a user's is: what another version of TRL learns is another
    training.
    """
    if config.training.objective is not Objective.DPO:
        return config
    library = f"trl {version('trl')}"
    script = ScriptInput(
        path=str(Path(__file__).parent),
        command=("python", "-P", "-m", _PROGRAM),
        provenance=Provenance(
            source=_PROGRAM,
            resolved_revision=library,
            digest=f"sha256:{hashlib.sha256(library.encode()).hexdigest()}",
        ),
    )
    return config.model_copy(update={"script": script})
