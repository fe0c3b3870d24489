"""The engine answers many requests at once as transformers answers each alone."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import (
    Answer,
    ask,
    complete_folder,
    decoded,
    of_transformers,
    question,
    run,
    save_lively,
    serve_config,
    started,
    write_lora,
)
from tests.support.models import tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
)

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import AdapterInput
from finetuning_server.engine.base import FinishReason, GenerationRequest, Load, Sampling, ServedModel
from finetuning_server.engine.batching import BatchingEngine
from finetuning_server.engine.errors import EngineStopped, PromptTooLong, QueueFull, UnknownModel, UnknownToken
from finetuning_workload.errors import UserError
from finetuning_workload.generation import Ends, complete
from finetuning_workload.models import load_base_model, load_tokenizer

TEXTS = (
    "the invoice",
    "one",
    "Triage this message: two three four five six seven eight nine ten",
    "ä 漢字 🙂",
    "red green blue; the application crashes when the report is exported as a spreadsheet",
)
ANYTHING = 100_000


def sizes(**more: Any) -> dict[str, Any]:  # noqa: ANN401  (fields of a model's configuration)
    tokenizer = tiny_tokenizer()
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **more,
    }


def llama() -> PreTrainedConfig:
    return LlamaConfig(**sizes())


def gpt2() -> PreTrainedConfig:
    return GPT2Config(
        vocab_size=len(tiny_tokenizer()),
        n_positions=256,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def mistral() -> PreTrainedConfig:
    """Every layer sees eight tokens back only."""
    return MistralConfig(**sizes(sliding_window=8))


def gemma() -> PreTrainedConfig:
    """Layers of two kinds: one sees eight tokens back only."""
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3TextConfig(**sizes(head_dim=16, sliding_window=8, layer_types=kinds, query_pre_attn_scalar=16))


def lfm2() -> PreTrainedConfig:
    """One layer keeps the state of a convolution in place of keys and values: rows cannot share a step."""
    return Lfm2Config(**sizes(layer_types=["conv", "full_attention"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lively(llama(), tiny_tokenizer(), tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("make", [llama, gpt2, mistral, gemma, lfm2])
@pytest.mark.parametrize("chunk_tokens", [6, 256])
def test_requests_at_once_are_answered_as_transformers_answers_each_alone(
    make: Callable[[], PreTrainedConfig], chunk_tokens: int, tmp_path: Path
) -> None:
    model = save_lively(make(), tiny_tokenizer(), tmp_path)

    async def answers() -> tuple[list[Answer], list[str], bool]:
        async with started(serve_config(model), chunk_tokens=chunk_tokens) as engine:
            requests = [question(engine, text) for text in TEXTS]
            found = await asyncio.gather(*(ask(engine, request) for request in requests))
            expected = [decoded(engine, of_transformers(model, request)) for request in requests]
            return found, expected, engine.shares_steps

    found, expected, shares_steps = run(answers)
    assert [answer.text for answer in found] == expected
    assert len(set(expected)) == len(TEXTS)
    assert shares_steps == (make is not lfm2)


def full_copy(base: Path, folder: Path) -> AdapterInput:
    """Write what full fine-tuning makes: a whole model."""
    config = AutoModelForCausalLM.from_pretrained(base).config
    save_lively(config, tiny_tokenizer(), folder, seed=9)
    complete_folder(folder)
    return AdapterInput(name=folder.name, path=str(folder))


def test_base_and_adapters_of_every_kind_are_answered_at_once_as_each_is_alone(folder: Path, tmp_path: Path) -> None:
    adapters = [
        write_lora(folder, tmp_path / "lora", seed=1),
        write_lora(folder, tmp_path / "other", seed=2, target_modules=["q_proj", "down_proj"], r=8),
        write_lora(folder, tmp_path / "rslora", seed=3, use_rslora=True),
        write_lora(folder, tmp_path / "dora", seed=4, use_dora=True),
        write_lora(folder, tmp_path / "dora2", seed=5, use_dora=True),
        write_lora(folder, tmp_path / "head", seed=6, modules_to_save=["lm_head"]),
    ]
    whole = full_copy(folder, tmp_path / "full")

    async def answers() -> tuple[list[Answer], list[str], tuple[ServedModel, ...]]:
        async with started(serve_config(folder, adapters=[*adapters, whole])) as engine:
            names = [model.name for model in engine.models()]
            requests = [question(engine, text, model=name) for text in TEXTS[:3] for name in names]
            found = await asyncio.gather(*(ask(engine, request) for request in requests))
            paths = {adapter.name: adapter.path for adapter in adapters}
            expected = [
                of_transformers(Path(whole.path), request)
                if request.model == "full"
                else of_transformers(folder, request, adapter=paths.get(request.model))
                for request in requests
            ]
            return found, [decoded(engine, tokens) for tokens in expected], engine.models()

    found, expected, models = run(answers)
    assert [answer.text for answer in found] == expected
    assert len(set(expected)) == 3 * 8
    assert models[:2] == (ServedModel("base"), ServedModel("lora", parent="base"))


def test_an_adapter_that_trained_biases_leaves_the_base_model_as_it_was(tmp_path: Path) -> None:
    model = save_lively(gpt2(), tiny_tokenizer(), tmp_path / "gpt2")
    biased = write_lora(model, tmp_path / "biased", bias="all", fan_in_fan_out=True)
    plain = write_lora(model, tmp_path / "plain", fan_in_fan_out=True)

    async def answers() -> tuple[list[str], list[str]]:
        async with started(serve_config(model, adapters=[biased, plain])) as engine:
            paths = {"base": None, "biased": biased.path, "plain": plain.path}
            requests = [question(engine, TEXTS[0], model=name) for name in paths]
            found = await asyncio.gather(*(ask(engine, request) for request in requests))
            expected = [of_transformers(model, request, adapter=paths[request.model]) for request in requests]
            return [answer.text for answer in found], [decoded(engine, tokens) for tokens in expected]

    found, expected = run(answers)
    assert found == expected
    assert len(set(expected)) == 3


def test_a_model_that_does_not_go_on_from_its_cache_is_refused_at_start(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    small: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
    config = MambaConfig(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0, **small)
    model = save_lively(config, tokenizer, tmp_path)

    async def serve() -> None:
        async with started(serve_config(model)):
            pass

    with pytest.raises(UserError) as caught:
        run(serve)
    assert caught.value.reason is Reason.UNSUPPORTED


def test_requests_join_and_leave_while_others_go_on(folder: Path) -> None:
    async def answers() -> tuple[list[Answer], list[Answer]]:
        async with started(serve_config(folder, max_running=3)) as engine:
            requests = [question(engine, text, max_new_tokens=3 + 9 * place) for place, text in enumerate(TEXTS)]
            alone = [await ask(engine, request) for request in requests]
            # Seven requests for three places: the short ones make room for those that wait.
            return alone, await asyncio.gather(*(ask(engine, request) for request in [*requests, *requests[:2]]))

    alone, joined = run(answers)
    assert joined == [*alone, *alone[:2]]


def test_a_completion_ends_at_a_closing_token_and_at_its_limit(folder: Path) -> None:
    async def answers() -> tuple[list[Answer], int]:
        async with started(serve_config(folder)) as engine:
            asked = question(engine, TEXTS[0])
            tokens = of_transformers(folder, asked)
            closing = question(engine, TEXTS[0], closing_tokens=(tokens[4],))
            return [await ask(engine, one) for one in (asked, closing)], tokens.index(tokens[4])

    (limited, closed), place = run(answers)
    assert (limited.tokens, limited.finish) == (24, FinishReason.LENGTH)
    assert (closed.tokens, closed.finish) == (place + 1, FinishReason.STOP)
    assert limited.text.startswith(closed.text)


def test_stop_texts_cut_the_completion_as_in_evaluations(folder: Path) -> None:
    async def answers() -> tuple[list[Answer], list[str]]:
        async with started(serve_config(folder)) as engine:
            whole = [await ask(engine, question(engine, text)) for text in TEXTS]
            stops = [max(re.findall("[ -~]+", answer.text), key=len) for answer in whole]
            requests = [question(engine, text, stop=(stop,)) for text, stop in zip(TEXTS, stops, strict=True)]
            model = load_base_model(folder, dtype=torch.float32, device=torch.device("cpu"))
            expected = [
                complete(model, engine.tokenizer, [list(one.tokens)], max_new_tokens=24, ends=Ends(one.stop))[0].text
                for one in requests
            ]
            return list(await asyncio.gather(*(ask(engine, one) for one in requests))), expected

    found, expected = run(answers)
    assert [answer.text for answer in found] == expected
    assert {answer.finish for answer in found} == {FinishReason.STOP}


def test_equal_seeds_draw_equal_tokens_whatever_else_is_generated(folder: Path) -> None:
    async def answers() -> tuple[Answer, list[Answer]]:
        async with started(serve_config(folder)) as engine:
            asked = question(engine, TEXTS[0], sampling=Sampling(temperature=1.0, top_p=0.95, seed=7))
            seeds = [Sampling(temperature=1.0, seed=seed) for seed in range(len(TEXTS))]
            others = [question(engine, text, sampling=own) for text, own in zip(TEXTS, seeds, strict=True)]
            alone = await ask(engine, asked)
            return alone, await asyncio.gather(*(ask(engine, one) for one in [*others[:2], asked, *others[2:], asked]))

    alone, beside = run(answers)
    assert beside[2] == beside[-1] == alone
    assert len({answer.text for answer in beside}) == 6


def test_logarithms_of_probability_are_those_of_a_plain_forward_pass(folder: Path) -> None:
    async def answers() -> tuple[Answer, GenerationRequest]:
        async with started(serve_config(folder), chunk_tokens=8) as engine:
            asked = question(engine, TEXTS[2], top_logprobs=3, sampling=Sampling(temperature=0.5, seed=1))
            answer, *_ = await asyncio.gather(ask(engine, asked), ask(engine, question(engine, TEXTS[0])))
            return answer, asked

    answer, asked = run(answers)
    chosen = [score.token for score in answer.scores]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*asked.tokens, *chosen]])).logits[0, len(asked.tokens) - 1 : -1]
    logprobs = torch.log_softmax(logits, dim=-1)
    expected = [float(row[token]) for row, token in zip(logprobs, chosen, strict=True)]
    assert [score.logprob for score in answer.scores] == pytest.approx(expected, abs=1e-4)
    tokenizer = load_tokenizer(folder)
    for score, row in zip(answer.scores, logprobs, strict=True):
        top = torch.topk(row, 3)
        assert [text for text, _ in score.top] == [tokenizer.decode([token]) for token in top.indices.tolist()]
        assert [value for _, value in score.top] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_what_cannot_be_answered_is_refused_before_the_first_piece(folder: Path) -> None:
    async def refused(engine: BatchingEngine, request: GenerationRequest) -> str:
        with pytest.raises((UnknownModel, PromptTooLong, UnknownToken)) as caught:
            await ask(engine, request)
        return str(caught.value)

    async def refusals() -> list[str]:
        async with started(serve_config(folder)) as engine:
            return [
                await refused(engine, question(engine, "one", model="other")),
                await refused(engine, GenerationRequest("base", (5,) * 256, max_new_tokens=1)),
                await refused(engine, GenerationRequest("base", (5, ANYTHING), max_new_tokens=1)),
            ]

    size = len(tiny_tokenizer())
    assert run(refusals) == [
        "the model 'other' is not served here; served are base",
        "the prompt has 256 tokens; with at least one to generate the limit is 255",
        f"the prompt has the token {ANYTHING}; the model's tokens are 0 to {size - 1}",
    ]


def test_a_prompt_that_just_fits_is_continued_to_the_end_of_the_context(folder: Path) -> None:
    async def answer() -> Answer:
        async with started(serve_config(folder)) as engine:
            return await ask(engine, GenerationRequest("base", (5,) * 253, max_new_tokens=ANYTHING))

    found = run(answer)
    assert (found.tokens, found.finish) == (3, FinishReason.LENGTH)


def test_one_more_than_may_wait_is_refused_and_told_when_to_come_again(folder: Path) -> None:
    async def fill() -> tuple[QueueFull, Load, list[Answer]]:
        async with started(serve_config(folder, max_running=1, max_waiting=2)) as engine:
            asked = [asyncio.create_task(ask(engine, question(engine, text))) for text in TEXTS[:3]]
            await asyncio.sleep(0)
            with pytest.raises(QueueFull) as caught:
                await ask(engine, question(engine, TEXTS[3]))
            busy = engine.load()
            return caught.value, busy, await asyncio.gather(*asked)

    refusal, busy, found = run(fill)
    assert refusal.retry_after_seconds >= 1
    assert busy.running + busy.waiting == 3
    assert [answer.tokens for answer in found] == [24, 24, 24]


def test_who_leaves_frees_the_place_at_once(folder: Path) -> None:
    async def leave() -> tuple[Load, Load, Answer]:
        async with started(serve_config(folder, max_running=1, max_waiting=1)) as engine:
            pieces = engine.generate(question(engine, TEXTS[0], max_new_tokens=200))
            await anext(pieces)
            waiting = asyncio.create_task(ask(engine, question(engine, TEXTS[1], max_new_tokens=200)))
            await asyncio.sleep(0)
            busy = engine.load()
            await pieces.aclose()
            waiting.cancel()
            answer = await ask(engine, question(engine, TEXTS[1], max_new_tokens=3))
            return busy, engine.load(), answer

    busy, free, answer = run(leave)
    assert (busy.running, busy.waiting) == (1, 1)
    assert free == Load(running=0, waiting=0, cached_tokens=0)
    assert answer.tokens == 3


def test_stopping_ends_what_runs_and_refuses_what_comes(folder: Path) -> None:
    async def stop() -> None:
        async with started(serve_config(folder)) as engine:
            asked = question(engine, TEXTS[0], max_new_tokens=200)
            pieces = engine.generate(asked)
            await anext(pieces)
            await engine.stop()
            with pytest.raises(EngineStopped):
                async for _ in pieces:
                    pass
            with pytest.raises(EngineStopped):
                await ask(engine, asked)

    run(stop)
