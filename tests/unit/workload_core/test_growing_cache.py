"""The cache that has room holds what transformers' own does, and copies it seldom."""

import torch
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig

from finetuning_workload.growing_cache import growing_cache

CONFIG = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, num_key_value_heads=2)


def update(cache: DynamicCache, tokens: int, rows: int, *, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    drawn = (torch.randn((2, rows, 2, tokens, 4), generator=draw) for _ in range(2))
    return [cache.update(keys, values, layer) for layer, (keys, values) in enumerate(drawn)]


def test_it_holds_what_the_usual_one_does_also_when_rows_leave_and_tokens_are_taken_back() -> None:
    ours, usual = growing_cache(CONFIG), DynamicCache(config=CONFIG)
    rows = 4
    for step in range(150):
        if step in {40, 41, 100}:
            rows -= 1
            for cache in (ours, usual):
                cache.batch_select_indices(torch.tensor(list(range(rows, 0, -1))))
        if step == 60:
            for cache in (ours, usual):
                cache.crop(-3)
        tokens = 9 if step == 0 else 1
        for found, expected in zip(
            update(ours, tokens, rows, seed=step), update(usual, tokens, rows, seed=step), strict=True
        ):
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])
    assert ours.get_seq_length() == usual.get_seq_length() == 155


def test_what_it_holds_stays_where_it_is_from_token_to_token() -> None:
    cache = growing_cache(CONFIG)

    places = {update(cache, 1, 2, seed=step)[0][0].data_ptr() for step in range(130)}

    assert len(places) <= 3


def test_layers_that_keep_a_window_are_those_of_transformers() -> None:
    config = Gemma3TextConfig(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])

    kinds = [type(layer).__name__ for layer in growing_cache(config).layers]

    assert kinds == ["DynamicSlidingWindowLayer", "_GrowingLayer"]
