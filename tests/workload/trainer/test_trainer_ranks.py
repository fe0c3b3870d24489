"""Two ranks on CPUs give what one process gives: losses, weights, resumptions, whatever they share and how."""

import pytest
from tests.support.ranks import Event
from tests.support.side_by_side import DIVERGENCES, STOP_AT, TRAININGS, SideBySide, train_side_by_side
from tests.support.trained import assert_stock_peft_agrees

from finetuning_api.finetuningjob import ParallelismSpec, ParallelStrategy
from finetuning_trainer.strategy import shares

STRATEGIES = {
    str(strategy): ParallelismSpec(processes_per_worker=2, strategy=strategy)
    for strategy in (ParallelStrategy.DDP, ParallelStrategy.FSDP)
}
IN_FP32 = [name for name in TRAININGS if name != "bf16"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    learnt = [*((strategy, name) for strategy in STRATEGIES for name in IN_FP32), ("fsdp", "bf16")]
    return train_side_by_side(tmp_path_factory.mktemp("ranks"), STRATEGIES, learnt=learnt, moved=STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", IN_FP32)
def test_two_ranks_learn_what_one_process_learns(both: SideBySide, name: str, strategy: str) -> None:
    both.assert_learnt(strategy, name)


def test_ranks_of_ddp_have_the_whole_model_and_ranks_of_fsdp2_a_part_of_it(both: SideBySide) -> None:
    replicated, lora, full = both.told["ddp lora"], both.told["fsdp lora"], both.told["fsdp full"]

    assert (replicated.sharded_modules, replicated.sharded_weights) == (0, 0)
    # Its two layers; what is around them belongs to the module that is called.
    assert (lora.sharded_modules, lora.sharded_weights) == (2, 28)
    assert full.sharded_modules == 2
    assert full.sharded_weights > 0


def test_bf16_weights_are_divided_beside_the_fp32_of_lora(both: SideBySide) -> None:
    both.assert_learnt_in_bf16("fsdp")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_rank_that_is_asked_to_stop_stops_all_after_a_checkpoint(both: SideBySide, strategy: str) -> None:
    both.assert_stopped(strategy)
    assert (both.at(f"{strategy} moved").checkpoints / f"step-{STOP_AT:08d}").is_dir()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("event", DIVERGENCES)
def test_one_rank_that_diverges_ends_all_with_that_reason(both: SideBySide, event: Event, strategy: str) -> None:
    both.assert_diverged(strategy, event)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_that_resume_are_bit_for_bit_those_that_never_stopped(both: SideBySide, strategy: str) -> None:
    both.assert_resumed_exactly(strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_process_goes_on_from_what_two_ranks_left(both: SideBySide, strategy: str) -> None:
    both.assert_moved_to_one_process(strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_go_on_from_what_one_process_left(both: SideBySide, strategy: str) -> None:
    both.assert_taken_over(strategy)


def test_an_adapter_that_fsdp_trained_gives_the_same_logits_to_stock_peft(both: SideBySide) -> None:
    assert_stock_peft_agrees(both.at("fsdp lora"))


def test_rows_are_shared_by_their_tokens_and_some_ranks_may_get_none() -> None:
    assert shares([9, 1, 5, 4, 1], 2) == [[0, 1], [2, 3, 4]]
    assert shares([7], 3) == [[0], [], []]
    assert sorted(place for share in shares([3] * 10, 4) for place in share) == list(range(10))
