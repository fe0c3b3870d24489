"""Trainings in two ranks, one after the other: a program for torchrun, and what runs it.

``python -m torch.distributed.run ... -m tests.support.ranks FILE``: the file has a JSON list of cases.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # torch lists nothing as exported
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from finetuning_api.runconfig import TrainConfig
from finetuning_trainer import loop
from finetuning_trainer.group import Ranks, joined
from finetuning_trainer.train import train_in_group
from finetuning_trainer.zero import Zero
from finetuning_workload.errors import Interrupted
from finetuning_workload.program import Context, StopFlag


@dataclass(frozen=True)
class Case:
    """A training in ranks; ``stop_at`` asks one rank to stop while it computes that step, counted from 0."""

    config: TrainConfig
    stop_at: int | None = None
    stopped_rank: int = 1

    def to_wire(self) -> dict[str, Any]:
        return {"config": self.config.to_json(), "stop_at": self.stop_at, "stopped_rank": self.stopped_rank}

    @classmethod
    def of(cls, wire: Mapping[str, Any]) -> "Case":
        return cls(TrainConfig.model_validate_json(wire["config"]), wire["stop_at"], wire["stopped_rank"])


@dataclass(frozen=True)
class Told:
    """What the first rank said of a training."""

    end: str
    """The message of an interruption; else ``done``."""
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
    """Run trainings in ranks under stock torchrun; return what the first rank said of each."""
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
    flag, compute = StopFlag(), loop.compute_step
    seen: list[loop.Session] = []

    def watched(session: loop.Session, step: int, *, saved_step: int | None) -> loop.StepOutcome:
        seen.append(session)
        if step == case.stop_at and ranks.world.rank == case.stopped_rank:
            flag.set()
        return compute(session, step, saved_step=saved_step)

    context = Context(stop=flag, environment={"OMP_NUM_THREADS": "1"})
    loop.compute_step = watched
    try:
        train_in_group(case.config, context, ranks, device=ranks.device)
        end = "done"
    except Interrupted as error:
        end = error.message
    finally:
        loop.compute_step = compute
    session = seen[-1]
    weights = [weight for weight in session.weights.values() if isinstance(weight, DTensor)]
    told = Told(
        end=end,
        strategy=session.strategy.name,
        sharded_modules=sum(isinstance(module, FSDPModule) for module in session.forward.model.modules()),
        sharded_weights=sum(weight.to_local().numel() < weight.numel() for weight in weights),
    )
    return _with_engine(told, session) if isinstance(session.strategy, Zero) else told


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
