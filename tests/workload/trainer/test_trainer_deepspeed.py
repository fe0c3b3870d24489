"""Two ranks of DeepSpeed on CPUs give what one process gives, at every stage, offloaded or not, and any goes on."""

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
from tests.workload.trainer.test_trainer_programs import _LOAD_WITH_STOCK_PEFT, losses, weights
from tests.workload.trainer.test_trainer_ranks import (
    STOP_AT,
    TRAININGS,
    alone,
    assert_alike,
    assert_alike_weights,
    at,
    interrupted_alone,
)

from finetuning_api.deepspeed import FREE_SETTINGS, FREE_ZERO_SETTINGS, DeepSpeedOffload, DeepSpeedSpec
from finetuning_api.finetuningjob import ParallelismSpec, ParallelStrategy, TrainingSpec
from finetuning_trainer.train import train_model
from finetuning_trainer.zero import engine_config, load_deepspeed
from finetuning_workload.models import load_adapter, load_base_model

SETTINGS = {"zero_optimization": {"reduce_bucket_size": 1000, "stage3_prefetch_bucket_size": 1000}}
"""Buckets that several of a tiny model's weights fill."""


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
    *((strategy, name) for strategy in STAGES for name in ("lora", "full", "one row a step", "one row at a time")),
    *((strategy, name) for strategy in OFFLOADED for name in ("lora", "one row at a time")),
    ("deepspeed stage 3", "rank 8, best of three"),
]
"""Trainings by their strategies."""
MOVED = ["deepspeed stage 1", "deepspeed stage 3"]
"""Those that keep whole weights, and those that divide them."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("deepspeed")
    return Workshop(folder, tiny_llama(folder / "model"), write_rows(folder / "data", colour_rows()))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def case(shop: Workshop, strategy: str, place: str, *, stop_at: int | None = None, **training: Any) -> Case:  # noqa: ANN401
    config = at(shop, f"{strategy} {place}").train_config(parallelism=STRATEGIES[strategy], **training)
    return Case(config, stop_at=stop_at)


@pytest.fixture(scope="module")
def ended(shop: Workshop) -> dict[str, Told]:
    """All trainings in two ranks, and what was told of each; ranks take seconds to start, so they start once."""
    cases = {f"{strategy} {name}": case(shop, strategy, name, **TRAININGS[name]) for strategy, name in LEARNT}
    for strategy in STRATEGIES:
        cases[f"{strategy} stopped"] = case(shop, strategy, "stopped", stop_at=STOP_AT)
        cases[f"{strategy} resumed"] = case(shop, strategy, "stopped")
    interrupted_alone(shop)
    for strategy in MOVED:
        cases[f"{strategy} moved"] = case(shop, strategy, "moved", stop_at=STOP_AT)
        copied = at(shop, f"{strategy} taken over")
        subprocess.run(["cp", "-r", at(shop, "alone stopped").folder, copied.folder], check=True)
        cases[f"{strategy} taken over"] = case(shop, strategy, "taken over")
        cases[f"{strategy} bf16"] = case(shop, strategy, "bf16", precision="bf16")
    told = run_in_ranks(list(cases.values()), shop.folder / "torchrun", seconds=540)
    return dict(zip(cases, told, strict=True))


@pytest.mark.parametrize(("strategy", "name"), LEARNT)
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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_deepspeed_s_own_engine_divides_what_its_stage_says(ended: dict[str, Told], strategy: str) -> None:
    stage = int(strategy.removeprefix("deepspeed stage ")[0])
    told = ended[f"{strategy} lora"]
    optimizer = "DeepSpeedZeroOptimizer" + ("_Stage3" if stage == 3 else "")

    assert told.engine == f"DeepSpeedEngine, {optimizer}, stage {stage}"
    # Parts are padded to one size.
    assert told.share_of_moments < 0.51
    assert told.sharded_weights == (28 if stage == 3 else 0)


@pytest.mark.parametrize("strategy", MOVED)
def test_bf16_weights_are_divided_beside_the_fp32_of_lora(
    shop: Workshop, ended: dict[str, Told], strategy: str
) -> None:
    single = at(shop, "alone bf16")
    if not single.output.exists():
        alone(shop, "alone bf16", precision="bf16")
    assert ended[f"{strategy} bf16"].end == "done"
    assert_alike(at(shop, f"{strategy} bf16"), single, tolerance=0.03)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_rank_that_is_asked_to_stop_stops_all_after_a_checkpoint(ended: dict[str, Told], strategy: str) -> None:
    assert ended[f"{strategy} stopped"].end == f"stopped at step {STOP_AT} of 10, after a checkpoint"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_that_resume_are_bit_for_bit_those_that_never_stopped(
    shop: Workshop, ended: dict[str, Told], strategy: str
) -> None:
    resumed, straight = at(shop, f"{strategy} stopped"), at(shop, f"{strategy} lora")
    assert ended[f"{strategy} resumed"].end == "done"
    assert losses(resumed) == losses(straight)
    assert weights(resumed).keys() == weights(straight).keys()
    assert all(torch.equal(weight, weights(straight)[name]) for name, weight in weights(resumed).items())


@pytest.mark.parametrize("strategy", MOVED)
@pytest.mark.usefixtures("ended")
def test_one_process_goes_on_from_what_two_ranks_left(shop: Workshop, strategy: str) -> None:
    moved = at(shop, f"{strategy} moved")
    assert train_model(moved.train_config(), quiet_context()).resumed_from_step == STOP_AT
    assert_alike(moved, at(shop, f"{strategy} lora"))
    assert_alike_weights(moved, at(shop, f"{strategy} lora"))


@pytest.mark.parametrize("strategy", MOVED)
@pytest.mark.usefixtures("ended")
def test_two_ranks_go_on_from_what_one_process_left(shop: Workshop, strategy: str) -> None:
    taken_over, reference = at(shop, f"{strategy} taken over"), at(shop, f"{strategy} lora")
    assert_alike(taken_over, reference)
    assert_alike_weights(taken_over, reference)


@pytest.mark.parametrize("strategy", ["deepspeed stage 3", "deepspeed stage 3, all offloaded"])
@pytest.mark.usefixtures("ended")
def test_an_adapter_of_divided_weights_is_whole_for_stock_peft(shop: Workshop, tmp_path: Path, strategy: str) -> None:
    trained = at(shop, f"{strategy} lora")
    base = load_base_model(trained.model, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        tuned = load_adapter(base, trained.output)(ids).logits
    script = [sys.executable, "-c", _LOAD_WITH_STOCK_PEFT, str(trained.model), str(trained.output)]
    subprocess.run([*script, str(tmp_path / "theirs")], check=True, timeout=120)
    torch.testing.assert_close(load_file(tmp_path / "theirs")["logits"], tuned, atol=1e-6, rtol=0)
    assert all(weight.abs().sum() > 0 for name, weight in weights(trained).items() if "lora_B" in name)


def test_three_ranks_go_on_where_weights_are_no_multiple_of_them(shop: Workshop) -> None:
    interrupted_alone(at(shop, "three"))
    folder = at(shop, "three").folder / "alone-stopped"
    here = Workshop(folder, shop.model, shop.data)
    (told,) = run_in_ranks(
        [Case(here.train_config(parallelism=divided(3)))], shop.folder / "torchrun-of-three", ranks=3
    )

    assert told.end == "done"
    if not at(shop, "alone lora").output.exists():
        alone(shop, "alone lora")
    assert_alike(here, at(shop, "alone lora"))
    assert_alike_weights(here, at(shop, "alone lora"))


def test_settings_that_users_may_give_are_deepspeed_s_own() -> None:
    deepspeed = load_deepspeed(torch.device("cpu"))
    known = deepspeed.runtime.zero.config.DeepSpeedZeroConfig.model_fields
    assert {name for name in FREE_ZERO_SETTINGS if not _has(known, name)} == set()
    assert engine_config(DeepSpeedSpec(), TrainingSpec()).keys() & FREE_SETTINGS == {"zero_optimization"}


def _has(fields: Any, name: str) -> bool:  # noqa: ANN401  (of pydantic)
    return name in fields or any(field.alias == name for field in fields.values())
