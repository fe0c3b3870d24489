"""The fused parts compute what the plain ones compute, and are used where that was measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.numerics import CPU, LENGTHS, load, split_of
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import LlamaForCausalLM, PreTrainedModel

from finetuning_api.finetuningjob import MethodSpec, MethodType
from finetuning_trainer import batching
from finetuning_trainer.adapters import Trainee, attach
from finetuning_trainer.attention import SEGMENT_ATTENTION, register_segment_attention, segment_attention
from finetuning_trainer.cross_entropy import summed_nll
from finetuning_trainer.fused_lora import fused_lora, is_fusible, lora_layers, lora_linear
from finetuning_trainer.fused_norm import rms_norm
from finetuning_trainer.fusing import Fused, choose_fused, fused_parts
from finetuning_trainer.loss import Forward
from finetuning_trainer.strategy import SingleProcess

MIXED = SingleProcess(torch.device("cpu"), torch.bfloat16)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def asking(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_()


@pytest.mark.parametrize("biased", [False, True])
def test_the_gradients_of_fused_lora_are_right(*, biased: bool) -> None:
    weight, bias = randn(6, 5, seed=1), randn(6, seed=2) if biased else None

    def fused(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return lora_linear(x, weight, bias, down=down, up=up, scale=1.7)

    operands = [asking(randn(*shape, seed=seed)) for seed, shape in enumerate([(2, 4, 5), (3, 5), (6, 3)], start=3)]
    x, down, up = operands
    plain = torch.nn.functional.linear(x, weight, bias) + 1.7 * (x @ down.t()) @ up.t()
    torch.testing.assert_close(fused(*operands), plain)
    assert torch.autograd.gradcheck(fused, operands)


def test_the_gradient_of_the_fused_loss_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetuning_trainer.cross_entropy._BLOCK_VALUES", 24)  # Two of seven tokens at a time.
    hidden, weight, labels = asking(randn(7, 5)), randn(11, 5, seed=1), torch.tensor([0, 10, 3, 3, 7, 1, 5])
    torch.testing.assert_close(
        summed_nll(hidden, weight, labels), cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    )
    assert torch.autograd.gradcheck(lambda states: summed_nll(states, weight, labels) * 0.3, [hidden])


def test_a_label_that_the_model_rules_out_has_a_finite_loss() -> None:
    hidden, weight = torch.tensor([[300.0], [1.0]], requires_grad=True), torch.tensor([[1.0], [-1.0], [0.0]])
    labels = torch.tensor([1, 0])
    expected = cross_entropy(hidden.detach() @ weight.t(), labels, reduction="sum")
    torch.testing.assert_close(summed_nll(hidden, weight, labels).detach(), expected)
    assert float(expected) > 600


def test_the_gradient_of_the_fused_norm_is_right() -> None:
    x, weight = asking(randn(2, 3, 8)), randn(8, seed=1)
    expected = torch.nn.functional.rms_norm(x, (8,), weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected)
    assert torch.autograd.gradcheck(lambda rows: rms_norm(rows, weight, 1e-5), [x])


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_attention_in_bf16_has_the_gradients_of_exact_attention(key_heads: int) -> None:
    lengths = (3, 300, 1, 40)  # One of them longer than a block of queries.
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    total, size = int(ends[-1]), 16
    values = [randn(1, heads, total, size, seed=heads + place) for place, heads in enumerate((4, key_heads, key_heads))]
    query, key, value = (asking(tensor.bfloat16()) for tensor in values)
    outward = randn(1, total, 4, size, seed=9, dtype=torch.bfloat16)
    module = torch.nn.Module()
    output, _ = segment_attention(module, query, key, value, None, cu_seq_lens_q=ends)
    output.backward(outward)
    exact = [asking(tensor.detach().double()) for tensor in (query, key, value)]
    expected = torch.cat(
        [
            scaled_dot_product_attention(one, two, three, is_causal=True, enable_gqa=True)
            for one, two, three in zip(*(tensor.split(lengths, 2) for tensor in exact), strict=True)
        ],
        dim=2,
    ).transpose(1, 2)
    expected.backward(outward.double())
    assert deviation(output, expected) < 0.01
    for ours, right in zip((query, key, value), exact, strict=True):
        assert ours.grad is not None
        assert right.grad is not None
        assert deviation(ours.grad, right.grad) < 0.02


def deviation(one: torch.Tensor, right: torch.Tensor) -> float:
    """Return the difference as a share of the size."""
    return float((one.detach().double() - right.detach()).norm() / right.detach().norm())


def packed_trainee(folder: Path, method: MethodSpec | None = None, dtype: torch.dtype = torch.float32) -> Trainee:
    model = load(folder).to(dtype)  # type: ignore[arg-type]  # the stub knows devices only
    register_segment_attention()
    model.set_attn_implementation(SEGMENT_ATTENTION)
    return attach(model, method or MethodSpec(rank=4, alpha=8), seed=3)


def chosen(trainee: Trainee, strategy: SingleProcess = CPU) -> Fused:
    return choose_fused(trainee, Forward(trainee.causal, split_head=True), strategy, build=batching.pack)


def course(trainee: Trainee, forward: Forward, build: batching.Build, *, steps: int = 5) -> list[float]:
    """Train some steps on all rows with AdamW and return the losses."""
    split, rows = split_of(), range(len(LENGTHS))
    count = batching.supervised_count(split, rows)
    optimizer = torch.optim.AdamW(trainee.trainable().values(), lr=1e-2)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = forward.summed_nll(build(split, rows)) / count
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_fused_training_has_the_losses_and_weights_of_a_padded_loop_with_stock_peft(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path)
    ours = packed_trainee(folder)
    fused = chosen(ours)
    forward = Forward(ours.causal, split_head=True, fused_loss=fused.loss)
    with fused_parts(ours, fused):
        losses = course(ours, forward, batching.pack)
    theirs = attach(load(folder), MethodSpec(rank=4, alpha=8), seed=3)
    expected = course(theirs, Forward(theirs.causal, split_head=False), batching.pad)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < losses[0] - 0.1
    torch.testing.assert_close(ours.trainable(), theirs.trainable(), atol=1e-3, rtol=1e-3)


def test_everything_that_can_be_is_fused_and_probing_leaves_no_trace(tmp_path: Path) -> None:
    trainee = packed_trainee(tiny_llama(tmp_path))
    before, chance = {name: weight.clone() for name, weight in trainee.trainable().items()}, torch.get_rng_state()
    fused = chosen(trainee)
    assert fused == Fused(loss=True, lora=14, norms=5, why="loss and gradients agree with the plain model's")
    assert all(torch.equal(weight, before[name]) for name, weight in trainee.trainable().items())
    assert all(weight.grad is None for weight in trainee.trainable().values())
    assert torch.equal(torch.get_rng_state(), chance)
    assert not any("forward" in vars(module) for module in trainee.wrapped.modules())


def test_all_is_fused_in_bf16_too(tmp_path: Path) -> None:
    fused = chosen(packed_trainee(tiny_llama(tmp_path), dtype=torch.bfloat16), MIXED)
    assert (fused.loss, fused.lora, fused.norms) == (True, 14, 5)


@pytest.mark.parametrize("method", [{"dora": True}, {"dropout": 0.1}])
def test_variants_of_lora_and_dropout_are_left_to_peft(tmp_path: Path, method: dict[str, Any]) -> None:
    fused = chosen(packed_trainee(tiny_llama(tmp_path), MethodSpec.model_validate({"rank": 4} | method)))
    assert (fused.loss, fused.lora, fused.norms) == (True, 0, 5)


def test_layers_of_gpt2_are_fused_and_its_layer_norms_are_not(tmp_path: Path) -> None:
    fused = chosen(packed_trainee(tiny_gpt2(tmp_path)))
    assert (fused.loss, fused.lora, fused.norms) == (True, 8, 0)


def test_full_fine_tuning_fuses_nothing_whose_weights_it_trains(tmp_path: Path) -> None:
    trainee = packed_trainee(tiny_llama(tmp_path), MethodSpec(type=MethodType.FULL))
    assert chosen(trainee) == Fused(why="nothing in this model and method can be")


def test_a_part_that_computes_something_else_is_not_used_and_the_plan_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "finetuning_trainer.loss.summed_nll", lambda hidden, weight, labels: summed_nll(hidden * 1.01, weight, labels)
    )
    fused = chosen(packed_trainee(tiny_llama(tmp_path)))
    assert (fused.loss, fused.lora, fused.norms) == (False, 14, 5)
    assert "loss: its loss or gradients differ by" in fused.why


def test_a_norm_of_another_formula_is_left_alone(tmp_path: Path) -> None:
    trainee = packed_trainee(tiny_llama(tmp_path))
    norm: Any = trainee.causal.base_model.norm
    kind = type(norm)

    def doubled(self: torch.nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(kind.forward(self, hidden_states) * 2)

    norm.__class__ = type("DoubledRMSNorm", (kind,), {"forward": doubled})
    assert chosen(trainee).norms == 4


def with_random_lora(base: PreTrainedModel) -> Any:  # noqa: ANN401  (what a PeftModel passes on is typed as a tensor)
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def test_an_adapter_that_is_switched_off_is_off_while_fused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    base: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        expected = base(ids).logits
        tuned = with_random_lora(base)
        with fused_lora(tuned) as layers:
            assert layers == len(lora_layers(tuned)) == 14
            on = tuned(input_ids=ids).logits
            with tuned.disable_adapter():
                off = tuned(input_ids=ids).logits
        torch.testing.assert_close(off, expected)
        torch.testing.assert_close(on, tuned(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    assert (on - off).abs().max() > 0.1


def test_two_adapters_at_once_are_left_to_peft(tmp_path: Path) -> None:
    trainee = packed_trainee(tiny_llama(tmp_path))
    assert isinstance(trainee.wrapped, PeftModel)
    trainee.wrapped.add_adapter("second", LoraConfig(r=2, target_modules="all-linear"))
    assert all(is_fusible(layer) for layer in lora_layers(trainee.wrapped))
    tuner: Any = trainee.wrapped.base_model
    tuner.set_adapter(["default", "second"])
    assert not any(is_fusible(layer) for layer in lora_layers(trainee.wrapped))
