"""The fast paths compute what the plain ones compute: batches, losses, gradients."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.numerics import CPU, LENGTHS, load, split_of
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from finetuning_api.finetuningjob import MethodSpec, Schedule, TrainingSpec
from finetuning_trainer import batching, optim
from finetuning_trainer.adapters import attach
from finetuning_trainer.attention import SEGMENT_ATTENTION, register_segment_attention
from finetuning_trainer.loss import Forward
from finetuning_trainer.probe import choose_paths


def loss_and_gradients(
    folder: Path, build: batching.Build, *, most_rows: int | None, packed: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of one step over all rows and its gradients, divided as asked."""
    model = load(folder)
    register_segment_attention()
    trainee = attach(model, MethodSpec(rank=4, alpha=8), seed=3)
    with torch.no_grad():  # B begins as zero: then A would have no gradient to compare.
        for weight in trainee.trainable().values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * 0.05)
    if packed:
        model.set_attn_implementation(SEGMENT_ATTENTION)
    split, rows = split_of(), list(range(len(LENGTHS)))
    count, total = batching.supervised_count(split, rows), 0.0
    lengths = batching.lengths_of(split, rows)
    for part in batching.divide(rows, lengths, token_budget=10_000, most_rows=most_rows, padded=not packed):
        summed = Forward(model, split_head=packed).summed_nll(build(split, part))
        (summed / count).backward()
        total += float(summed.detach()) / count
    return total, {name: weight.grad for name, weight in trainee.trainable().items() if weight.grad is not None}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_one_big_batch_many_small_ones_and_a_packed_row_have_one_loss_and_one_gradient(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path)
    loss, gradients = loss_and_gradients(folder, batching.pad, most_rows=None, packed=False)
    others = [
        loss_and_gradients(folder, batching.pad, most_rows=1, packed=False),
        loss_and_gradients(folder, batching.pack, most_rows=None, packed=True),
        loss_and_gradients(folder, batching.pack, most_rows=3, packed=True),
    ]
    assert gradients
    for other_loss, other_gradients in others:
        assert other_loss == pytest.approx(loss, abs=1e-5)
        torch.testing.assert_close(other_gradients, gradients, atol=1e-5, rtol=1e-4)


def test_the_loss_is_that_of_transformers_on_the_same_labels(tmp_path: Path) -> None:
    model, split = load(tiny_llama(tmp_path)), split_of()
    batch = batching.pad(split, range(len(LENGTHS)))
    labels = torch.full((batch.ids.numel(),), -100)
    labels[batch.sources + 1] = batch.labels
    theirs = model(input_ids=batch.ids, attention_mask=batch.mask, labels=labels.view(batch.ids.shape)).loss
    ours = Forward(model, split_head=True).summed_nll(batch) / batching.supervised_count(split, range(len(LENGTHS)))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_only_supervised_tokens_are_labels_and_the_first_token_of_a_row_never_is() -> None:
    split = split_of((4, 6))
    split.supervised[:] = [0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    batch = batching.pack(split, [0, 1])
    assert batch.labels.tolist() == split.ids[[2, 3, 8, 9]].tolist()
    assert batch.sources.tolist() == [1, 2, 7, 8]
    assert batching.supervised_count(split, [0, 1]) == 4
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_models_with_exchangeable_attention_are_run_packed(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    model = load(make(tmp_path))
    paths = choose_paths(model, CPU)
    assert (paths.packed, paths.split_head) == (True, True)
    assert model.config._attn_implementation == SEGMENT_ATTENTION


def test_a_model_whose_output_is_not_its_head_alone_keeps_its_own_forward(tmp_path: Path) -> None:
    class Scaled(LlamaForCausalLM):
        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 3
            return output

    model = Scaled.from_pretrained(tiny_llama(tmp_path), dtype=torch.float32)
    assert choose_paths(model, CPU).split_head is False


def test_a_model_that_lets_samples_see_each_other_is_padded_and_says_why(tmp_path: Path) -> None:
    class Leaking(LlamaForCausalLM):
        def forward(self, *args: object, **kwargs: object) -> object:
            if kwargs.get("cu_seq_lens_q") is not None:
                kwargs["cu_seq_lens_q"] = torch.tensor([0, kwargs["input_ids"].shape[1]])  # type: ignore[attr-defined]
            return super().forward(*args, **kwargs)

        @property
        def base_model(self) -> torch.nn.Module:
            return self

    model = Leaking.from_pretrained(tiny_llama(tmp_path), dtype=torch.float32)
    paths = choose_paths(model, CPU)
    assert paths.packed is False
    assert "differ" in paths.why
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("error", [TypeError("no such argument"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_path_that_is_refused_is_left_and_memory_that_runs_out_is_not_taken_for_that(
    tmp_path: Path, error: Exception
) -> None:
    class Refusing(LlamaForCausalLM):
        def forward(self, *args: object, **kwargs: object) -> object:
            if kwargs.get("cu_seq_lens_q") is not None:
                raise error
            return super().forward(*args, **kwargs)

        @property
        def base_model(self) -> torch.nn.Module:
            return self

    model = Refusing.from_pretrained(tiny_llama(tmp_path), dtype=torch.float32)
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(torch.OutOfMemoryError):
            choose_paths(model, CPU)
        return
    paths = choose_paths(model, CPU)
    assert paths.packed is False
    assert "the architecture refuses it: TypeError('no such argument')" in paths.why


def test_a_sliding_window_holds_inside_packed_rows() -> None:
    config = MistralConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    split, rows = split_of(), range(len(LENGTHS))
    expected = Forward(model, split_head=False).logits(batching.pad(split, rows))
    register_segment_attention()
    model.set_attn_implementation(SEGMENT_ATTENTION)
    torch.testing.assert_close(Forward(model, split_head=True).logits(batching.pack(split, rows)), expected)


def test_every_row_is_seen_once_an_epoch_in_an_order_that_follows_from_seed_and_epoch() -> None:
    def epoch(number: int, seed: int = 7) -> list[int]:
        steps = range(number * 4, number * 4 + 4)
        return [row for step in steps for row in batching.rows_of_step(step, rows=10, batch_size=3, seed=seed)]

    assert sorted(epoch(0)) == sorted(epoch(5)) == list(range(10))
    assert epoch(0) == epoch(0)
    assert len({tuple(epoch(0)), tuple(epoch(1)), tuple(epoch(0, seed=8))}) == 3


def test_a_division_covers_every_row_once_and_keeps_to_the_budget() -> None:
    rows = list(range(len(LENGTHS)))
    for padded in (False, True):
        parts = list(batching.divide(rows, LENGTHS, token_budget=40, most_rows=3, padded=padded))
        assert [row for part in parts for row in part] == rows
        for part in parts:
            lengths = [LENGTHS[row] for row in part]
            size = max(lengths) * len(part) if padded else sum(lengths)
            assert size <= 40
            assert len(part) <= 3


def test_a_row_longer_than_the_budget_goes_alone() -> None:
    assert list(batching.divide([0, 1, 2], [5, 90, 5], token_budget=20, most_rows=None, padded=False)) == [
        [0],
        [1],
        [2],
    ]


@pytest.mark.parametrize(
    ("budget", "lengths", "padded", "left"),
    [
        (8192, [100] * 10, False, 500),
        (8192, [10] * 9 + [100], False, 100),
        (8192, [10] * 9 + [100], True, 500),
        (300, [100] * 10, False, 150),
        (150, [100] * 10, False, 100),
    ],
)
def test_a_budget_is_halved_from_what_was_tried_down_to_the_longest_row(
    budget: int, lengths: list[int], left: int, *, padded: bool
) -> None:
    made = batching.TokenBudget(budget)
    assert made.halve(lengths, padded=padded)
    assert made.tokens == left


def test_a_single_row_cannot_be_divided() -> None:
    for budget, lengths in ((8192, [100]), (100, [100, 100]), (50, [100, 20])):
        made = batching.TokenBudget(budget)
        assert not made.halve(lengths, padded=False)
        assert made.tokens == budget


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"), [(1, None, 4), (2.5, None, 10), (0.1, None, 1), (3, 5, 5), (0.3, None, 2)]
)
def test_steps_follow_from_epochs_and_their_limit(epochs: float, max_steps: int | None, expected: int) -> None:
    assert batching.total_steps(10, batch_size=3, epochs=epochs, max_steps=max_steps) == expected


@pytest.mark.parametrize(
    ("schedule", "middle"), [(Schedule.COSINE, 0.5), (Schedule.LINEAR, 0.5), (Schedule.CONSTANT, 1)]
)
def test_the_learning_rate_rises_to_its_peak_and_follows_the_schedule(schedule: Schedule, middle: float) -> None:
    training = TrainingSpec(learning_rate=1.0, schedule=schedule, warmup_ratio=0.2)
    rates = [optim.learning_rate(step, training=training, total=20) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(middle)
    assert all(rate > 0 for rate in rates)


def test_a_training_of_one_step_has_the_full_rate() -> None:
    assert optim.learning_rate(0, training=TrainingSpec(warmup_ratio=1.0, learning_rate=0.5), total=1) == 0.5


def test_clipping_leaves_small_gradients_alone_and_shortens_long_ones() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert optim.clip_gradients([weight], 10.0) == 5.0
    assert weight.grad.tolist() == [3.0, 4.0]
    assert optim.clip_gradients([weight], 1.0) == 5.0
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))
