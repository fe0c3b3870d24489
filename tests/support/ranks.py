"""Trainings in two ranks, one after the other: a program for torchrun, and what runs it.

``python -m torch.distributed.run ... -m tests.support.ranks FILE``: the file has a JSON list of cases.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.support.trained import before_each_step
from torch import distributed
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # torch lists nothing as exported
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from finetuning_api.runconfig import TrainConfig
from finetuning_trainer import loop
from finetuning_trainer.batching import MicroBatch
from finetuning_trainer.group import Ranks, joined
from finetuning_trainer.loss import Forward
from finetuning_trainer.strategy import SingleProcess
from finetuning_trainer.train import train_in_group
from finetuning_trainer.zero import Zero
from finetuning_workload.errors import Interrupted, UserError
from finetuning_workload.program import Context, StopFlag


class Event(StrEnum):
    """What happens to one rank while it computes a step. The loss of an infinite gradient is right."""

    STOP = "asked to stop"
    LOSS_IS_NAN = "loss is nan"
    GRADIENT_IS_INFINITE = "gradient is infinite"


@dataclass(frozen=True)
class Happening:
    """An event in one rank, in a step that is counted from 1."""

    event: Event
    step: int
    rank: int = 1


@dataclass(frozen=True)
class Case:
    """A training in ranks, and what happens to one of them."""

    config: TrainConfig
    happening: Happening | None = None

    def to_wire(self) -> dict[str, Any]:
        return {"config": self.config.to_json(), "happening": asdict(self.happening) if self.happening else None}

    @classmethod
    def of(cls, wire: Mapping[str, Any]) -> "Case":
        happening = wire["happening"]
        return cls(
            TrainConfig.model_validate_json(wire["config"]),
            Happening(**happening | {"event": Event(happening["event"])}) if happening else None,
        )


@dataclass(frozen=True)
class Told:
    """What the ranks said of a training: of its end all of them, of the rest the first."""

    end: str
    """What they said at the end, once where all said the same: ``done``, the message of an interruption or of a refusal
    with its reason."""
    strategy: str
    sharded_modules: int
    """Modules of FSDP2's own type."""
    sharded_weights: int
    """Trained weights of which a rank keeps a part."""
    engine: str = ""
    """Of DeepSpeed: the types of its engine and of its optimizer, and the stage of ZeRO that it runs."""
    share_of_moments: float = 1.0
    """Of AdamW's moments, what the first rank keeps."""


def run_in_ranks(cases: Sequence[Case], folder: Path, *, ranks: int = 2, seconds: int = 240) -> list[Told]:
    """Run trainings in ranks under stock torchrun; return what they said of each."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "cases.json"
    file.write_text(json.dumps([case.to_wire() for case in cases]))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.support.ranks", str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [Told(**each) for each in json.loads((folder / "said.json").read_text())]


def _train(case: Case, ranks: Ranks) -> Told:
    flag, happening = StopFlag(), case.happening
    seen: list[loop.Session] = []
    with pytest.MonkeyPatch.context() as patch:

        def watch(session: loop.Session, step: int) -> None:
            seen.append(session)
            if happening and (step, ranks.world.rank) == (happening.step, happening.rank):
                _let(happening.event, flag, type(session.strategy), patch)

        before_each_step(patch, watch)
        end = _end_of(case.config, Context(stop=flag, environment={"OMP_NUM_THREADS": "1"}), ranks)
    session = seen[-1]
    weights = [weight for weight in session.weights.values() if isinstance(weight, DTensor)]
    told = Told(
        end=end,
        strategy=session.strategy.name,
        sharded_modules=sum(isinstance(module, FSDPModule) for module in session.forward.model.modules()),
        sharded_weights=sum(weight.to_local().numel() < weight.numel() for weight in weights),
    )
    return _with_engine(told, session) if isinstance(session.strategy, Zero) else told


def _end_of(config: TrainConfig, context: Context, ranks: Ranks) -> str:
    """Train, and return what the ranks say at the end."""
    try:
        train_in_group(config, context, ranks, device=ranks.device)
        end = "done"
    except Interrupted as error:
        end = error.message
    except UserError as error:
        end = f"{error.reason}: {error.message}"
    ends = [end] * ranks.world.size
    distributed.all_gather_object(ends, end)
    return " | ".join(dict.fromkeys(ends))


def _let(event: Event, flag: StopFlag, strategy: type[SingleProcess], patch: pytest.MonkeyPatch) -> None:
    """Let something happen to this rank."""
    computed = strategy.summed_nll

    def spoilt(self: SingleProcess, forward: Forward, batch: MicroBatch) -> torch.Tensor:
        loss = computed(self, forward, batch)
        if event is Event.LOSS_IS_NAN:
            return loss * math.nan
        loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    if event is Event.STOP:
        flag.set()
    else:
        patch.setattr(strategy, "summed_nll", spoilt)


def _with_engine(told: Told, session: loop.Session) -> Told:
    """Add what is to be known of DeepSpeed."""
    engine: Any = cast("Zero", session.strategy).engine.root
    weights: list[Any] = list(session.weights.values())
    moments = [state["exp_avg"].numel() for state in session.optimizer.state.values()]
    stage = engine.zero_optimization_stage()
    return replace(
        told,
        engine=f"{type(engine).__name__}, {type(engine.optimizer).__name__}, stage {stage}",
        sharded_weights=sum(weight.ds_tensor.numel() < weight.ds_numel for weight in weights if stage == 3),
        share_of_moments=sum(moments) / sum(weight.ds_numel if stage == 3 else weight.numel() for weight in weights),
    )


def main() -> None:
    """Run the cases of a file in this rank."""
    file = Path(sys.argv[1])
    with joined(os.environ) as ranks:
        said = []
        for number, wire in enumerate(json.loads(file.read_text())):
            board = PrefixStore(f"case {number}", ranks.board)  # type: ignore[arg-type]  # it is one
            said.append(asdict(_train(Case.of(wire), Ranks(ranks.world, ranks.device, board))))
        if ranks.world.rank == 0:
            (file.parent / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
