"""One name for two models: who answers, how it is told, and that it can be repeated."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam
from tests.support.engines import ONE_THREAD, save_lively, write_lora
from tests.support.models import tiny_tokenizer
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served import Served, serve_config, served
from transformers import LlamaConfig

from finetuning_api.finetuningjob import Precision
from finetuning_api.runconfig import CanaryInput
from finetuning_server.engine.base import ServedModel
from finetuning_server.engine.batching import BatchingEngine, EngineSettings
from finetuning_server.http.names import Names

USERS = [f"user-{number}" for number in range(1000)]
TURN: ChatCompletionUserMessageParam = {"role": "user", "content": "refund please"}


def canary(weight: int) -> CanaryInput:
    return CanaryInput(name="live", stable="base", adapter="tuned", weight=weight)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(config=serve_config(canary=canary(25))) as running:
        yield running


def answering(server: Served, user: str) -> str:
    return server.openai().completions.create(model="live", prompt="x", max_tokens=1, user=user).model


def test_the_name_is_listed_with_its_shares(server: Served) -> None:
    listed = {model.id: model.model_dump().get("split") for model in server.openai().models.list().data}

    assert listed == {"base": None, "tuned": None, "live": {"base": 75, "tuned": 25}}
    assert server.openai().models.retrieve("live").model_dump()["root"] == "base"


def names(weight: int) -> Names:
    return Names(ScriptedEngine(), canary(weight))


def with_canary(weight: int) -> set[str]:
    drawn = names(weight)
    return {user for user in USERS if drawn.answering("live", key=user) == "tuned"}


def test_about_as_many_users_as_asked_get_the_canary() -> None:
    assert 0.2 < len(with_canary(25)) / len(USERS) < 0.3


def test_who_has_the_canary_keeps_it_when_its_share_grows() -> None:
    assert with_canary(10) < with_canary(25) < with_canary(60)


def test_nobody_and_everybody_are_shares_too() -> None:
    assert (with_canary(0), with_canary(100)) == (set(), set(USERS))


def test_other_names_draw_other_users() -> None:
    other = Names(ScriptedEngine(), canary(25).model_copy(update={"name": "other"}))
    assert {user for user in USERS if other.answering("other", key=user) == "tuned"} != with_canary(25)


def test_each_user_gets_one_model_in_every_replica(server: Served) -> None:
    here = [answering(server, user) for user in USERS[:30]]
    with served(config=serve_config(canary=canary(25))) as other:
        there = [answering(other, user) for user in USERS[:30]]

    assert here == there
    assert set(here) == {"base", "tuned"}


def test_requests_without_a_user_are_drawn_one_by_one_and_can_be_repeated_by_their_id(server: Served) -> None:
    def by_id(number: int) -> str:
        made = server.openai().completions.create(
            model="live", prompt="x", max_tokens=1, extra_headers={"X-Request-Id": f"id-{number}"}
        )
        return made.model

    first = [by_id(number) for number in range(30)]
    assert set(first) == {"base", "tuned"}
    assert [by_id(number) for number in range(30)] == first


def test_equal_requests_with_equal_seeds_get_equal_models(server: Served) -> None:
    def seeded(seed: int) -> str:
        return server.openai().completions.create(model="live", prompt="x", max_tokens=1, seed=seed).model

    first = [seeded(seed) for seed in range(30)]
    assert set(first) == {"base", "tuned"}
    assert [seeded(seed) for seed in range(30)] == first


def user_of(server: Served, model: str) -> str:
    return next(user for user in USERS if answering(server, user) == model)


@pytest.mark.parametrize("model", ["base", "tuned"])
def test_answer_header_log_and_metrics_tell_who_answered(server: Served, model: str) -> None:
    user = user_of(server, model)
    counted = server.metric("canary_requests_total", asked="live", model=model, status="200")
    raw = server.openai().chat.completions.with_raw_response.create(model="live", messages=[TURN], user=user)
    line = server.line(raw.headers["x-request-id"])

    assert raw.parse().model == raw.headers["x-served-model"] == model
    assert (line["model"], line["asked_model"]) == (model, "live")
    assert server.metric("canary_requests_total", asked="live", model=model, status="200") == counted + 1
    assert server.engine.requests[-1].model == model


def test_every_chunk_of_a_stream_tells_who_answers(server: Served) -> None:
    user = user_of(server, "tuned")
    stream = server.openai().chat.completions.with_raw_response.create(
        model="live", messages=[TURN], user=user, stream=True
    )

    assert stream.headers["x-served-model"] == "tuned"
    assert {chunk.model for chunk in stream.parse()} == {"tuned"}


def test_one_prompt_alone_is_drawn_too(server: Served) -> None:
    with server.http() as http:
        answers = [http.post("/prompt", json={"input_prompt": "x", "model": "live"}) for _ in range(30)]

    assert {answer.headers["x-served-model"] for answer in answers} == {"base", "tuned"}


def test_models_asked_for_by_their_own_names_are_not_drawn(server: Served) -> None:
    raw = server.openai().completions.with_raw_response.create(model="tuned", prompt="x", user="user-1")

    assert raw.headers["x-served-model"] == "tuned"
    assert "asked_model" not in server.line(raw.headers["x-request-id"])


def test_until_the_canary_is_there_the_stable_model_answers_everything() -> None:
    engine = ScriptedEngine(served=(ServedModel("base"),))
    with served(engine, config=serve_config(canary=canary(100))) as server:
        before = answering(server, "user-1")
        listed = server.openai().models.retrieve("live").model_dump()["split"]
        engine.served = (ServedModel("base"), ServedModel("tuned", parent="base"))
        after = answering(server, "user-1")

    assert (before, listed, after) == ("base", {"base": 100, "tuned": 0}, "tuned")


def test_a_name_that_is_not_served_is_refused_with_all_that_are(server: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="served are base, tuned, live"):
        server.openai().completions.create(model="other", prompt="x")


def test_a_real_model_and_its_adapter_answer_for_one_name(tmp_path: Path) -> None:
    """What is told to have answered has: the texts are those that each model gives under its own name."""
    tokenizer = tiny_tokenizer()
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = save_lively(
        LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes), tokenizer, tmp_path / "base"
    )
    tuned = write_lora(model, tmp_path / "tuned")
    config = serve_config(model, adapters=(tuned,), canary=canary(50))
    engine = BatchingEngine(config, environment=ONE_THREAD, settings=EngineSettings(precision=Precision.FP32))
    with served(engine, config=config) as server:
        client = server.openai()

        def greedy(name: str, user: str) -> tuple[str, str]:
            made = client.completions.create(model=name, prompt="the invoice", max_tokens=12, temperature=0, user=user)
            return made.model, made.choices[0].text

        own = dict(greedy(name, "anybody") for name in ("base", "tuned"))
        drawn = [greedy("live", user) for user in USERS[:12]]

    assert own["base"] != own["tuned"]
    assert {name for name, _ in drawn} == {"base", "tuned"}
    assert all(text == own[name] for name, text in drawn)
