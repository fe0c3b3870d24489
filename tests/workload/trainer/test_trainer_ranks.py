"""Two ranks on CPUs give what one process gives: losses, weights, resumptions, whatever they share and how."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.models import tiny_llama
from tests.support.ranks import Case, Told, run_in_ranks
from tests.support.training import Workshop, colour_rows, quiet_context, write_rows
from tests.workload.trainer.test_trainer_programs import _LOAD_WITH_STOCK_PEFT, losses, stop_after, weights

from finetuning_api.finetuningjob import ParallelismSpec, ParallelStrategy
from finetuning_trainer.strategy import shares
from finetuning_trainer.train import train_model
from finetuning_workload.errors import Interrupted
from finetuning_workload.models import load_adapter, load_base_model

TOLERANCE = 1e-5
DDP, FSDP = (
    ParallelismSpec(processes_per_worker=2, strategy=strategy)
    for strategy in (ParallelStrategy.DDP, ParallelStrategy.FSDP)
)
TRAININGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "one row a step": {"batch_size": 1, "max_steps": 6},
    "one row at a time": {"micro_batch_size": 1},
    "rows of the last step": {"batch_size": 3, "epochs": 1},
    "full": {"method": {"type": "full"}, "learning_rate": 1e-3},
    "dora": {"method": {"dora": True}},
    "rank 8, best of three": {"method": {"rank": 8}, "early_stopping": {"patience": 1}, "evaluate_every_steps": 3},
}
STRATEGIES = {"ddp": DDP, "fsdp": FSDP}
STOP_AT = 4


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("ranks")
    return Workshop(folder, tiny_llama(folder / "model"), write_rows(folder / "data", colour_rows()))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def at(shop: Workshop, place: str) -> Workshop:
    """Return a workshop of the same model and data with a claim of its own."""
    return Workshop(shop.folder / place.replace(" ", "-"), shop.model, shop.data)


def alone(shop: Workshop, place: str, **training: Any) -> Workshop:  # noqa: ANN401  (fields of TrainingSpec)
    """Train in one process, from a checkpoint where there is one."""
    here = at(shop, place)
    train_model(here.train_config(**training), quiet_context())
    return here


@pytest.fixture(scope="module")
def ended(shop: Workshop) -> dict[str, Told]:
    """All trainings in two ranks, and what was told of each; ranks take seconds to start, so they start once."""
    configs = {
        f"{strategy} {name}": at(shop, f"{strategy} {name}").train_config(parallelism=parallelism, **training)
        for strategy, parallelism in STRATEGIES.items()
        for name, training in TRAININGS.items()
    }
    mixed = at(shop, "fsdp bf16").train_config(parallelism=FSDP, precision="bf16")
    cases = {name: Case(config) for name, config in configs.items()} | {"fsdp bf16": Case(mixed)}
    for strategy, parallelism in STRATEGIES.items():
        stopped = at(shop, f"{strategy} stopped").train_config(parallelism=parallelism)
        cases[f"{strategy} stopped"] = Case(stopped, stop_at=STOP_AT)
        moved = at(shop, f"{strategy} moved").train_config(parallelism=parallelism)
        cases[f"{strategy} moved"] = Case(moved, stop_at=STOP_AT, stopped_rank=0)
        cases[f"{strategy} resumed"] = Case(stopped)
    interrupted_alone(shop)
    for strategy, parallelism in STRATEGIES.items():
        copied = at(shop, f"{strategy} taken over")
        subprocess.run(["cp", "-r", at(shop, "alone stopped").folder, copied.folder], check=True)
        cases[f"{strategy} taken over"] = Case(copied.train_config(parallelism=parallelism))
    told = run_in_ranks(list(cases.values()), shop.folder / "torchrun")
    return dict(zip(cases, told, strict=True))


def interrupted_alone(shop: Workshop) -> None:
    """Train in one process up to a checkpoint."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match=f"step {STOP_AT} of"):
        train_model(at(shop, "alone stopped").train_config(), quiet_context(stop_after(patch, STOP_AT)))


def assert_alike(one: Workshop, other: Workshop, *, tolerance: float = TOLERANCE) -> None:
    assert [step["step"] for step in one.history()] == [step["step"] for step in other.history()]
    for (loss, held_out), (other_loss, other_held_out) in zip(losses(one), losses(other), strict=True):
        assert loss == pytest.approx(other_loss, abs=tolerance)
        assert held_out == (None if other_held_out is None else pytest.approx(other_held_out, abs=tolerance))


def assert_alike_weights(one: Workshop, other: Workshop) -> None:
    (name,) = (path.name for path in one.output.glob("*model.safetensors"))
    mine, theirs = load_file(one.output / name), load_file(other.output / name)
    assert mine.keys() == theirs.keys()
    for key, weight in mine.items():
        torch.testing.assert_close(weight, theirs[key], atol=TOLERANCE, rtol=0, msg=key)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_learn_what_one_process_learns(
    shop: Workshop, ended: dict[str, Told], name: str, strategy: str
) -> None:
    single = at(shop, f"alone {name}")
    if not single.output.exists():
        alone(shop, f"alone {name}", **TRAININGS[name])
    shared = at(shop, f"{strategy} {name}")

    assert (ended[f"{strategy} {name}"].end, ended[f"{strategy} {name}"].strategy) == ("done", strategy)
    assert_alike(shared, single)
    # AdamW would not notice gradients that are all twice as large.
    norms = [[step["grad_norm"] for step in each.history()] for each in (shared, single)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert_alike_weights(shared, single)


def test_ranks_of_ddp_have_the_whole_model_and_ranks_of_fsdp2_a_part_of_it(ended: dict[str, Told]) -> None:
    replicated, lora, full = ended["ddp lora"], ended["fsdp lora"], ended["fsdp full"]

    assert (replicated.sharded_modules, replicated.sharded_weights) == (0, 0)
    # Its two layers; what is around them belongs to the module that is called.
    assert (lora.sharded_modules, lora.sharded_weights) == (2, 28)
    assert full.sharded_modules == 2
    assert full.sharded_weights > 0


def test_bf16_weights_are_divided_beside_the_fp32_of_lora(shop: Workshop, ended: dict[str, Told]) -> None:
    single = alone(shop, "alone bf16", precision="bf16")
    assert ended["fsdp bf16"].end == "done"
    assert_alike(at(shop, "fsdp bf16"), single, tolerance=0.03)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_rank_that_is_asked_to_stop_stops_all_after_a_checkpoint(
    shop: Workshop, ended: dict[str, Told], strategy: str
) -> None:
    assert ended[f"{strategy} stopped"].end == f"stopped at step {STOP_AT} of 10, after a checkpoint"
    assert (at(shop, f"{strategy} moved").checkpoints / f"step-{STOP_AT:08d}").is_dir()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_that_resume_are_bit_for_bit_those_that_never_stopped(
    shop: Workshop, ended: dict[str, Told], strategy: str
) -> None:
    resumed, straight = at(shop, f"{strategy} stopped"), at(shop, f"{strategy} lora")
    assert ended[f"{strategy} resumed"].end == "done"
    assert losses(resumed) == losses(straight)
    assert weights(resumed).keys() == weights(straight).keys()
    assert all(torch.equal(weight, weights(straight)[name]) for name, weight in weights(resumed).items())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.usefixtures("ended")
def test_one_process_goes_on_from_what_two_ranks_left(shop: Workshop, strategy: str) -> None:
    assert train_model(at(shop, f"{strategy} moved").train_config(), quiet_context()).resumed_from_step == STOP_AT
    reference = at(shop, f"{strategy} lora")
    assert_alike(at(shop, f"{strategy} moved"), reference)
    assert_alike_weights(at(shop, f"{strategy} moved"), reference)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.usefixtures("ended")
def test_two_ranks_go_on_from_what_one_process_left(shop: Workshop, strategy: str) -> None:
    taken_over, reference = at(shop, f"{strategy} taken over"), at(shop, f"{strategy} lora")
    assert_alike(taken_over, reference)
    assert_alike_weights(taken_over, reference)


@pytest.mark.usefixtures("ended")
def test_an_adapter_that_fsdp_trained_gives_the_same_logits_to_stock_peft(shop: Workshop, tmp_path: Path) -> None:
    trained = at(shop, "fsdp lora")
    base = load_base_model(trained.model, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        tuned = load_adapter(base, trained.output)(ids).logits
    script = [sys.executable, "-c", _LOAD_WITH_STOCK_PEFT, str(trained.model), str(trained.output)]
    subprocess.run([*script, str(tmp_path / "theirs")], check=True, timeout=120)
    torch.testing.assert_close(load_file(tmp_path / "theirs")["logits"], tuned, atol=1e-6, rtol=0)
    assert all(weight.abs().sum() > 0 for name, weight in weights(trained).items() if "lora_B" in name)


def test_rows_are_shared_by_their_tokens_and_some_ranks_may_get_none() -> None:
    assert shares([9, 1, 5, 4, 1], 2) == [[0, 1], [2, 3, 4]]
    assert shares([7], 3) == [[0], [], []]
    assert sorted(place for share in shares([3] * 10, 4) for place in share) == list(range(10))
