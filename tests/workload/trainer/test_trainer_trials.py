"""Trials as the trainer sees them: which numbers are drawn, who is given up, and what is left of them."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.trained import trained
from tests.support.training import JOB, Workshop, quiet_context, run_trainer

from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import ChooseConfig, TrainConfig, TrialInput
from finetuning_api.tuning import HalvingSpec, TuningSpec
from finetuning_trainer.preflight import preflight
from finetuning_trainer.trials import choose, draw_trials, is_behind
from finetuning_workload.artifact import require_intact
from finetuning_workload.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

RANKS: dict[str, Any] = {"name": "method.rank", "values": [2, 4]}
RATES: dict[str, Any] = {"name": "training.learningRate", "min": 1e-5, "max": 1e-2, "scale": "log"}
BY_HALF = HalvingSpec(reduction_factor=2)


def drawn(*parameters: dict[str, Any], **tuning: object) -> tuple[tuple[float, ...], ...]:
    return draw_trials(TuningSpec.model_validate({"parameters": parameters, **tuning}))


def folder_of(workshop: Workshop, number: int) -> Path:
    return workshop.folder / "claim" / "trials" / str(number)


def trial_config(
    workshop: Workshop,
    number: int,
    *,
    halving: HalvingSpec | None = BY_HALF,
    **training: Any,  # noqa: ANN401  (fields of TrainingSpec)
) -> TrainConfig:
    folder = folder_of(workshop, number)
    return workshop.train_config(epochs=3, **training).model_copy(
        update={
            "output_path": str(folder / "adapter"),
            "checkpoint_path": str(folder / "checkpoints"),
            "trial": TrialInput(number=number, folder=str(folder.parent), halving=halving),
        }
    )


def choosing(workshop: Workshop, number: int, digest: str) -> ChooseConfig:
    return ChooseConfig(
        job=JOB,
        folder=str(workshop.folder / "claim" / "trials"),
        number=number,
        digest=digest,
        output_path=str(workshop.output),
        checkpoint_path=str(workshop.checkpoints),
    )


def test_a_grid_is_every_combination_once_in_an_order_that_follows_from_the_seed() -> None:
    dropouts = {"name": "method.dropout", "values": [0.0, 0.1, 0.2]}

    first = drawn(RANKS, dropouts, search="grid")

    assert sorted(first) == [(rank, dropout) for rank in (2, 4) for dropout in (0.0, 0.1, 0.2)]
    assert drawn(RANKS, dropouts, search="grid") == first
    assert drawn(RANKS, dropouts, search="grid", seed=7) != first


def test_random_numbers_lie_in_their_ranges_and_follow_from_the_seed() -> None:
    batches = {"name": "training.batchSize", "min": 4, "max": 64, "scale": "log"}

    trials = drawn(RATES, batches, RANKS, trials=40)

    assert len(set(trials)) == 40
    assert all(1e-5 <= rate <= 1e-2 and 4 <= batch <= 64 and rank in {2, 4} for rate, batch, rank in trials)
    assert all(batch == int(batch) and rate == float(f"{rate:.3g}") for rate, batch, _ in trials)
    # Each order of magnitude of a logarithmic range has about a third of the rates.
    assert 6 <= sum(rate < 1e-4 for rate, _, _ in trials) <= 20
    assert drawn(RATES, batches, RANKS, trials=40) == trials
    assert drawn(RATES, batches, RANKS, trials=40, seed=1) != trials


def test_no_combination_is_drawn_twice_however_few_there_are() -> None:
    assert sorted(drawn(RANKS, trials=10)) == [(2,), (4,)]


def test_a_number_with_few_digits_stays_in_its_range() -> None:
    narrow = {"name": "training.learningRate", "min": 1.2341e-4, "max": 1.2349e-4}

    assert drawn(narrow, trials=1) == ((1.2341e-4,),)


@pytest.mark.parametrize(
    ("own", "others", "behind"),
    [
        ([9.0], [], False),  # Nobody to be compared with.
        ([2.0], [[1.0, 0.9]], True),
        ([0.9], [[1.0, 0.9]], False),
        ([1.5], [[1.0], [2.0], [3.0]], False),  # The better half of four.
        ([2.5], [[1.0], [2.0], [3.0]], True),
        ([0.5, 5.0], [[1.0, 0.9], [1.0, 0.8]], True),  # Ahead at the first rung, behind at the second.
        ([0.5, 0.7, 5.0], [[1.0, 0.9, 0.8, 0.7]] * 3, False),  # The third evaluation is no rung: 1, 2, 4.
        ([0.5, 0.7, 0.6, 5.0], [[1.0, 0.9, 0.8, 0.7]] * 3, True),
        ([0.5, 5.0], [[1.0], [2.0]], False),  # Nobody else came to the second rung.
        ([], [[1.0]], False),
    ],
)
def test_at_each_rung_the_better_part_goes_on(own: list[float], others: list[list[float]], *, behind: bool) -> None:
    assert is_behind(own, others, BY_HALF) is behind


def test_the_best_so_far_always_goes_on_and_rungs_begin_where_they_are_told_to() -> None:
    many: Sequence[list[float]] = [[2.0, 2.0, 2.0]] * 20

    assert not is_behind([1.9], many, HalvingSpec(reduction_factor=16))
    assert not is_behind([3.0], many, HalvingSpec(min_evaluations=2))
    assert is_behind([3.0, 3.0], many, HalvingSpec(min_evaluations=2))


def test_preflight_draws_and_measures_the_dearest_trial(workshop: Workshop) -> None:
    plain = workshop.preflight_config()
    tuning = TuningSpec.model_validate({"parameters": [RANKS | {"values": [2, 8]}], "search": "grid"})

    small, large = (preflight(plain.model_copy(update=update), quiet_context()) for update in ({}, {"tuning": tuning}))

    assert sorted(large.trials) == [(2.0,), (8.0,)]
    assert small.trials == ()
    assert large.trainable_parameters == 2 * small.trainable_parameters  # Rank 8 beside 4.


def test_numbers_that_do_not_fit_together_are_found_before_anything_is_trained(workshop: Workshop) -> None:
    plain = workshop.preflight_config(micro_batch_size=4)
    tuning = TuningSpec.model_validate({"parameters": [{"name": "training.batchSize", "values": [2]}]})

    with pytest.raises(
        UserError, match=r"trial 0 \(training.batchSize 2\) cannot be trained: microBatchSize"
    ) as caught:
        preflight(plain.model_copy(update={"tuning": tuning}), quiet_context())

    assert caught.value.reason is Reason.INVALID_SPEC


def test_a_trial_that_falls_behind_is_given_up_with_an_adapter_and_without_checkpoints(workshop: Workshop) -> None:
    best = trained(trial_config(workshop, 0))
    worse = trained(trial_config(workshop, 1, learning_rate=1e-6))

    assert (best.given_up, best.steps) == (False, 15)
    assert (worse.given_up, worse.stopped_early, worse.steps) == (True, True, 5)
    assert worse.evaluation_loss is not None
    assert best.evaluation_loss is not None
    assert worse.evaluation_loss > best.evaluation_loss
    assert require_intact(folder_of(workshop, 1) / "adapter").digest == worse.digest
    for number in (0, 1):
        assert [path.name for path in (folder_of(workshop, number) / "checkpoints").iterdir()] == ["metrics.jsonl"]
    provenance = json.loads((folder_of(workshop, 1) / "adapter" / "provenance.json").read_text())
    assert (provenance["trial"], provenance["givenUp"]) == (1, True)


def test_without_halving_every_trial_is_trained_to_its_end(workshop: Workshop) -> None:
    trained(trial_config(workshop, 0))

    assert trained(trial_config(workshop, 1, halving=None, learning_rate=1e-6)).given_up is False


def test_a_trial_is_the_same_training_as_one_alone(workshop: Workshop) -> None:
    alone = trained(workshop.train_config(epochs=3))
    trial = trained(trial_config(workshop, 0))

    weights = [
        load_file(path / "adapter_model.safetensors") for path in (workshop.output, folder_of(workshop, 0) / "adapter")
    ]
    assert trial.evaluation_loss == alone.evaluation_loss
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_trial_that_was_killed_after_the_verdict_goes_on_to_the_same_end(workshop: Workshop) -> None:
    trained(trial_config(workshop, 0))
    config = trial_config(workshop, 1, learning_rate=1e-6, checkpoint_every_steps=1)
    checkpoints = folder_of(workshop, 1) / "checkpoints"

    killed = run_trainer(config, workshop.folder / "run", when=(checkpoints / "step-00000004" / "manifest.json").exists)
    done = trained(config)

    assert killed.code in {ExitCode.INTERRUPTED, ExitCode.DONE}
    assert (done.given_up, done.steps) == (True, 5)


def test_the_chosen_trial_becomes_the_jobs_and_nothing_else_is_left(workshop: Workshop) -> None:
    trained(trial_config(workshop, 0, halving=None))
    best = trained(trial_config(workshop, 1, halving=None))

    result = choose(choosing(workshop, 1, best.digest))

    assert result == best
    assert require_intact(workshop.output).digest == best.digest
    assert [path.name for path in workshop.checkpoints.iterdir()] == ["metrics.jsonl"]
    assert not (workshop.folder / "claim" / "trials").exists()
    assert choose(choosing(workshop, 1, best.digest)) == best


def test_choosing_that_was_ended_between_its_moves_does_the_rest(workshop: Workshop) -> None:
    best = trained(trial_config(workshop, 0))
    trial = folder_of(workshop, 0)
    shutil.move(trial / "checkpoints", workshop.checkpoints)

    assert choose(choosing(workshop, 0, best.digest)) == best
    assert [path.name for path in workshop.checkpoints.iterdir()] == ["metrics.jsonl"]


def test_an_adapter_that_changed_since_its_trial_is_not_chosen(workshop: Workshop) -> None:
    best = trained(trial_config(workshop, 0))
    with (folder_of(workshop, 0) / "adapter" / "README.md").open("a") as file:
        file.write("changed")

    with pytest.raises(UserError) as caught:
        choose(choosing(workshop, 0, best.digest))

    assert caught.value.reason is Reason.ARTIFACT_CORRUPT
    assert caught.value.message.startswith("the adapter of trial 0, the best, is not what the trial left: ")
    assert folder_of(workshop, 0).exists()
