"""Batched greedy generation writes what transformers' own generate writes prompt by prompt."""

from pathlib import Path

import pytest
import torch
from tests.support.models import tiny_gpt2, tiny_llama
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetuning_api.reasons import Reason
from finetuning_workload.errors import Interrupted, UserError
from finetuning_workload.generation import Completion, Ends, complete, generate, plan_batches
from finetuning_workload.models import load_base_model, load_tokenizer

PROMPTS = ("the invoice", "one", "Triage this message: two three four five six seven", "ä 漢字 🙂", "red green")
NEW_TOKENS = 24


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = {"llama": tiny_llama, "gpt2": tiny_gpt2}[request.param]
    return make(tmp_path_factory.mktemp(request.param), positions=64)


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    loaded = load_base_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    # Random models of this size repeat themselves; larger weights make every prompt go its own way.
    with torch.no_grad():
        for parameter in loaded.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return loaded


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [list(tokenizer(text)["input_ids"]) for text in PROMPTS]


def of_transformers(model: PreTrainedModel, prompt: list[int], *, eos: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(  # type: ignore[operator]  # a mixin that the type hints do not see
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return [int(token) for token in output[0, len(prompt) :].tolist()]


@pytest.mark.parametrize("batch_tokens", [1, 120, 10_000])
def test_every_prompt_is_continued_as_if_it_were_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> None:
    expected = [of_transformers(model, prompt, eos=[tokenizer.eos_token_id]) for prompt in prompts(tokenizer)]

    found = complete(model, tokenizer, prompts(tokenizer), max_new_tokens=NEW_TOKENS, batch_tokens=batch_tokens)

    assert [completion.text for completion in found] == [
        tokenizer.decode(ids, skip_special_tokens=True) for ids in expected
    ]
    assert [completion.tokens for completion in found] == [len(ids) for ids in expected]


def test_rows_that_end_early_leave_the_batch_and_change_nothing_for_the_others(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    free = [of_transformers(model, prompt, eos=[tokenizer.eos_token_id]) for prompt in prompts(tokenizer)]
    ends = {free[0][2], free[2][9]}
    expected = [of_transformers(model, prompt, eos=[tokenizer.eos_token_id, *ends]) for prompt in prompts(tokenizer)]

    found = complete(model, tokenizer, prompts(tokenizer), max_new_tokens=NEW_TOKENS, ends=Ends(tokens=ends))

    assert len({len(ids) for ids in expected}) > 1
    assert [completion.tokens for completion in found] == [len(ids) for ids in expected]
    assert [completion.text for completion in found] == [
        tokenizer.decode(ids, skip_special_tokens=True) for ids in expected
    ]
    assert found[0].stopped


class Remembered:
    """Completions in memory, and which were made."""

    def __init__(self, known: dict[int, Completion]) -> None:
        self.known = known
        self.made: dict[int, Completion] = {}

    def append(self, number: int, completion: Completion) -> None:
        self.made[number] = completion


@pytest.mark.parametrize("batch_tokens", [1, 120, 10_000])
def test_what_is_kept_is_not_written_again_and_changes_nothing_for_the_others(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> None:
    whole = complete(model, tokenizer, prompts(tokenizer), max_new_tokens=NEW_TOKENS)
    kept = Remembered({1: Completion("another", 3, stopped=True), 3: whole[3]})

    found = complete(
        model, tokenizer, prompts(tokenizer), max_new_tokens=NEW_TOKENS, batch_tokens=batch_tokens, kept=kept
    )

    assert found == [whole[0], kept.known[1], *whole[2:]]
    assert kept.made == {number: whole[number] for number in (0, 2, 4)}


def test_a_stop_text_ends_a_completion_and_is_not_part_of_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    (whole,) = generate(model, tokenizer, prompts(tokenizer)[:1], max_new_tokens=NEW_TOKENS)
    stop = whole[7:9]

    (found,) = complete(
        model, tokenizer, prompts(tokenizer)[:1], max_new_tokens=NEW_TOKENS, ends=Ends([stop, "\0never"])
    )

    assert found.text == whole[: whole.index(stop)]
    assert found.stopped
    assert found.tokens < NEW_TOKENS


def test_generation_stops_at_the_end_of_the_model_s_context(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = (prompts(tokenizer)[2] * 20)[:60]

    (found,) = complete(model, tokenizer, [prompt], max_new_tokens=50)

    assert found.tokens == 5
    assert not found.stopped


@pytest.mark.parametrize(("length", "message"), [(0, "no tokens"), (64, "no room")])
def test_a_prompt_that_cannot_be_continued_is_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        complete(model, tokenizer, [[5] * length], max_new_tokens=4)

    assert caught.value.reason is Reason.UNSUPPORTED


def test_progress_counts_tokens_and_may_stop_the_work(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    seen: list[tuple[int, int]] = []

    def on_progress(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) > 30:
            message = "stop"
            raise Interrupted(message)

    with pytest.raises(Interrupted):
        complete(
            model,
            tokenizer,
            prompts(tokenizer),
            max_new_tokens=NEW_TOKENS,
            batch_tokens=1,
            on_progress=on_progress,
        )
    assert seen[0] == (1, 5 * NEW_TOKENS)
    assert [done for done, _ in seen] == list(range(1, 32))


def test_batches_keep_to_their_budget_and_begin_with_the_longest() -> None:
    lengths = [3, 9, 1, 9, 5]

    assert plan_batches(lengths, extra=1, batch_tokens=20) == [[1, 3], [4, 0, 2]]
    assert plan_batches([50], batch_tokens=8) == [[0]]
