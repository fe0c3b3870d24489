"""The same trainings in several ranks and in one process, side by side, and what is alike of them."""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support.models import tiny_llama
from tests.support.ranks import Case, Event, Happening, Told, run_in_ranks
from tests.support.trained import (
    assert_alike,
    assert_alike_losses,
    assert_same_training,
    interrupt,
    threads_as_before,
    trained,
)
from tests.support.training import Workshop, colour_rows, write_rows

from finetuning_api.finetuningjob import ParallelismSpec

TRAININGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "one row a step": {"batch_size": 1, "max_steps": 6},
    "one row at a time": {"micro_batch_size": 1},
    "rows of the last step": {"batch_size": 3, "epochs": 1},
    "full": {"method": {"type": "full"}, "learning_rate": 1e-3},
    "dora": {"method": {"dora": True}},
    "rank 8, best of three": {"method": {"rank": 8}, "early_stopping": {"patience": 1}, "evaluate_every_steps": 3},
    "bf16": {"precision": "bf16"},
}
STOP_AT = 4
"""The last step before a stop."""
DIVERGENCES = {
    Event.LOSS_IS_NAN: "the training loss is nan",
    Event.GRADIENT_IS_INFINITE: "the norm of the gradients is (nan|inf)",
}
"""What all ranks say of what happens to one."""
DIVERGES_AT = 4
"""The step after which nothing is good; before it there is a checkpoint of every second."""
_BF16_NOISE = 0.03


@dataclass(frozen=True)
class SideBySide:
    """Trainings of one model and data by what they are called, each in a folder of its own."""

    shop: Workshop
    strategies: Mapping[str, ParallelismSpec]
    told: dict[str, Told] = field(default_factory=dict)
    """What ranks said, by strategy and name of a training."""

    def at(self, place: str) -> Workshop:
        """Return a workshop of the same model and data with a claim of its own."""
        return Workshop(self.shop.folder / place.replace(" ", "-"), self.shop.model, self.shop.data)

    def alone(self, name: str) -> Workshop:
        """Return a training of one process, which is done once."""
        here = self.at(f"alone {name}")
        if not here.output.exists():
            trained(here.train_config(**TRAININGS[name]))
        return here

    def stopped_alone(self, place: str) -> Workshop:
        """Return what one process left that was asked to stop, in a place of one's own."""
        left, here = self.at("alone stopped"), self.at(place)
        if not left.checkpoints.exists():
            interrupt(left, after=STOP_AT)
        shutil.copytree(left.folder, here.folder)
        return here

    def case(self, strategy: str, place: str, *, happening: Happening | None = None, **training: Any) -> Case:  # noqa: ANN401  (fields of TrainingSpec)
        here = self.at(f"{strategy} {place}")
        return Case(here.train_config(parallelism=self.strategies[strategy], **training), happening)

    def assert_learnt(self, strategy: str, name: str) -> None:
        """Losses, gradients and weights are those of one process."""
        single, shared = self.alone(name), self.at(f"{strategy} {name}")
        told = self.told[f"{strategy} {name}"]
        assert (told.end, told.strategy) == ("done", strategy)
        assert_alike(shared, single)
        # AdamW would not notice gradients that are all twice as large.
        norms = [[step["grad_norm"] for step in each.history()] for each in (shared, single)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)

    def assert_learnt_in_bf16(self, strategy: str) -> None:
        """Losses are those of one process, but for what bf16 cannot hold."""
        assert self.told[f"{strategy} bf16"].end == "done"
        assert_alike_losses(self.at(f"{strategy} bf16"), self.alone("bf16"), tolerance=_BF16_NOISE)

    def assert_stopped(self, strategy: str) -> None:
        """One rank was asked to stop, and all did after a checkpoint."""
        assert self.told[f"{strategy} stopped"].end == f"stopped at step {STOP_AT} of 10, after a checkpoint"

    def assert_resumed_exactly(self, strategy: str) -> None:
        """Ranks that were stopped and went on are bit for bit those that never stopped."""
        assert self.told[f"{strategy} resumed"].end == "done"
        assert_same_training(self.at(f"{strategy} stopped"), self.at(f"{strategy} lora"))

    def assert_moved_to_one_process(self, strategy: str) -> None:
        """One process goes on from what ranks left."""
        moved = self.at(f"{strategy} moved")
        assert trained(moved.train_config()).resumed_from_step == STOP_AT
        assert_alike(moved, self.at(f"{strategy} lora"))

    def assert_taken_over(self, strategy: str) -> None:
        """Ranks went on from what one process left."""
        assert self.told[f"{strategy} taken over"].end == "done"
        assert_alike(self.at(f"{strategy} taken over"), self.at(f"{strategy} lora"))

    def assert_diverged(self, strategy: str, event: Event) -> None:
        """All ranks ended of what happened to one, with one reason, and the last good checkpoint is kept."""
        end = self.told[f"{strategy} {event}"].end
        said = f"LossDiverged: {DIVERGENCES[event]} at step {DIVERGES_AT}; the checkpoint of step 2 is kept"
        assert re.fullmatch(said, end)
        left = self.at(f"{strategy} {event}")
        assert [path.name for path in left.checkpoints.glob("*step*")] == ["step-00000002"]
        assert not left.output.exists()


def train_side_by_side(
    folder: Path,
    strategies: Mapping[str, ParallelismSpec],
    *,
    learnt: Iterable[tuple[str, str]],
    moved: Iterable[str],
    seconds: int = 240,
) -> SideBySide:
    """Train in two ranks all that is looked at; ranks take seconds to start, so they start once.

    ``learnt`` has strategies and names of trainings, ``moved`` the strategies that take turns with one process.
    """
    shop = Workshop(folder, tiny_llama(folder / "model"), write_rows(folder / "data", colour_rows()))
    both = SideBySide(shop, strategies)
    cases = {f"{strategy} {name}": both.case(strategy, name, **TRAININGS[name]) for strategy, name in learnt}
    for strategy in strategies:
        cases[f"{strategy} stopped"] = both.case(strategy, "stopped", happening=Happening(Event.STOP, STOP_AT + 1))
        cases[f"{strategy} resumed"] = both.case(strategy, "stopped")
        for event in DIVERGENCES:
            divergence = Happening(event, DIVERGES_AT)
            cases[f"{strategy} {event}"] = both.case(strategy, event, happening=divergence, checkpoint_every_steps=2)
    with threads_as_before():
        for strategy in moved:
            stop_of_first = Happening(Event.STOP, STOP_AT + 1, rank=0)
            cases[f"{strategy} moved"] = both.case(strategy, "moved", happening=stop_of_first)
            both.stopped_alone(f"{strategy} taken over")
            cases[f"{strategy} taken over"] = both.case(strategy, "taken over")
    told = run_in_ranks(list(cases.values()), folder / "torchrun", seconds=seconds)
    both.told.update(zip(cases, told, strict=True))
    return both
