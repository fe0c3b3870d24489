"""Two ranks of DeepSpeed on CPUs give what one process gives, at every stage, offloaded or not, and any goes on."""

from typing import Any

import pytest
import torch
from tests.support.ranks import Case, Event, run_in_ranks
from tests.support.side_by_side import DIVERGENCES, SideBySide, train_side_by_side
from tests.support.trained import assert_alike, assert_stock_peft_agrees

from finetuning_api.deepspeed import FREE_SETTINGS, FREE_ZERO_SETTINGS, DeepSpeedOffload, DeepSpeedSpec
from finetuning_api.finetuningjob import ParallelismSpec, ParallelStrategy, TrainingSpec
from finetuning_trainer.zero import engine_config, load_deepspeed

SETTINGS = {
    "zero_optimization": {
        "reduce_bucket_size": 1000,
        "stage3_prefetch_bucket_size": 1000,
        "stage3_param_persistence_threshold": 0,
    }
}
"""Buckets that several of a tiny model's weights fill, and none of them so small that each rank keeps it whole."""


def divided(stage: int, offload: DeepSpeedOffload = DeepSpeedOffload.NONE) -> ParallelismSpec:
    spec = DeepSpeedSpec(stage=stage, offload=offload, config=SETTINGS)
    return ParallelismSpec(processes_per_worker=2, strategy=ParallelStrategy.DEEPSPEED, deepspeed=spec)


STAGES = {f"deepspeed stage {stage}": divided(stage) for stage in (1, 2, 3)}
OFFLOADED = {
    "deepspeed stage 2, optimizer offloaded": divided(2, DeepSpeedOffload.OPTIMIZER),
    "deepspeed stage 3, all offloaded": divided(3, DeepSpeedOffload.ALL),
}
STRATEGIES = STAGES | OFFLOADED
LEARNT = [
    *(
        (strategy, name)
        for strategy in STAGES
        for name in ("lora", "dora", "full", "one row a step", "one row at a time")
    ),
    *((strategy, name) for strategy in OFFLOADED for name in ("lora", "one row at a time")),
    ("deepspeed stage 3", "rank 8, best of three"),
]
"""Trainings by their strategies."""
MOVED = ["deepspeed stage 1", "deepspeed stage 3"]
"""Those that keep whole weights, and those that divide them."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    learnt = [*LEARNT, *((strategy, "bf16") for strategy in MOVED)]
    folder = tmp_path_factory.mktemp("deepspeed")
    return train_side_by_side(folder, STRATEGIES, learnt=learnt, moved=MOVED, seconds=540)


@pytest.mark.parametrize(("strategy", "name"), LEARNT)
def test_two_ranks_learn_what_one_process_learns(both: SideBySide, name: str, strategy: str) -> None:
    both.assert_learnt(strategy, name)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_deepspeed_s_own_engine_divides_what_its_stage_says(both: SideBySide, strategy: str) -> None:
    stage = int(strategy.removeprefix("deepspeed stage ")[0])
    told = both.told[f"{strategy} lora"]
    optimizer = "DeepSpeedZeroOptimizer" + ("_Stage3" if stage == 3 else "")

    assert told.engine == f"DeepSpeedEngine, {optimizer}, stage {stage}"
    # Parts are padded to one size.
    assert told.share_of_moments < 0.51
    assert told.sharded_weights == (28 if stage == 3 else 0)


@pytest.mark.parametrize("strategy", MOVED)
def test_bf16_weights_are_divided_beside_the_fp32_of_lora(both: SideBySide, strategy: str) -> None:
    both.assert_learnt_in_bf16(strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_rank_that_is_asked_to_stop_stops_all_after_a_checkpoint(both: SideBySide, strategy: str) -> None:
    both.assert_stopped(strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("event", DIVERGENCES)
def test_one_rank_that_diverges_ends_all_with_that_reason(both: SideBySide, event: Event, strategy: str) -> None:
    both.assert_diverged(strategy, event)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_that_resume_are_bit_for_bit_those_that_never_stopped(both: SideBySide, strategy: str) -> None:
    both.assert_resumed_exactly(strategy)


@pytest.mark.parametrize("strategy", MOVED)
def test_one_process_goes_on_from_what_two_ranks_left(both: SideBySide, strategy: str) -> None:
    both.assert_moved_to_one_process(strategy)


@pytest.mark.parametrize("strategy", MOVED)
def test_two_ranks_go_on_from_what_one_process_left(both: SideBySide, strategy: str) -> None:
    both.assert_taken_over(strategy)


@pytest.mark.parametrize("strategy", ["deepspeed stage 3", "deepspeed stage 3, all offloaded"])
def test_an_adapter_of_divided_weights_is_whole_for_stock_peft(both: SideBySide, strategy: str) -> None:
    assert_stock_peft_agrees(both.at(f"{strategy} lora"))


def test_three_ranks_go_on_where_weights_are_no_multiple_of_them(both: SideBySide) -> None:
    here = both.stopped_alone("three")
    case = Case(here.train_config(parallelism=divided(3)))
    (told,) = run_in_ranks([case], both.shop.folder / "torchrun-of-three", ranks=3)

    assert told.end == "done"
    assert_alike(here, both.alone("lora"))


def test_settings_that_users_may_give_are_deepspeed_s_own() -> None:
    deepspeed = load_deepspeed(torch.device("cpu"))
    known = deepspeed.runtime.zero.config.DeepSpeedZeroConfig.model_fields
    assert {name for name in FREE_ZERO_SETTINGS if not _has(known, name)} == set()
    assert engine_config(DeepSpeedSpec(), TrainingSpec()).keys() & FREE_SETTINGS == {"zero_optimization"}


def _has(fields: Any, name: str) -> bool:  # noqa: ANN401  (of pydantic)
    return name in fields or any(field.alias == name for field in fields.values())
